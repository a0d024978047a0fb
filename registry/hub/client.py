"""The Hub's own client, asked again while the Hub is busy, and its failures as ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, and not in __all__

from hfq.schema.errors import (
    HfqError,
    HubAccessError,
    HubBusyError,
    HubConflictError,
    HubError,
    HubNotFoundError,
    HubUnavailableError,
)
from hfq.schema.version import VERSION

from .address import check_endpoint, saved_token_fits
from .session import Refusals, asked_pause_s, bounded_session

__all__ = ["Hub", "open_hub"]

T = TypeVar("T")

_ATTEMPTS: Final = 5
_ALL_PAUSES_S: Final = 60.0

_REFUSED: Final = (429, 503)
"""The server did nothing and says so: whatever was asked may be asked again."""

# The client's errors derive from those of the HTTP library it uses, which has changed three times.
_HTTP_ERROR: Final[type[BaseException]] = HfHubHTTPError.__mro__[1]


class Hub:
    """One endpoint, seen with one token.

    Attributes:
        api: the client. Its methods are called through `read` and `write` alone.
        endpoint: the address without a final slash.
    """

    def __init__(self, api: HfApi, endpoint: str) -> None:
        self.api = api
        self.endpoint = endpoint

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a download: who asks, the token, and no compression, so that sizes are those of the files."""
        with bounded_session(Refusals()):
            headers = build_hf_headers(token=self.api.token, library_name="hfq", library_version=VERSION)
        return {**headers, "Accept-Encoding": "identity"}

    def read(self, where: str, ask: Callable[[], T]) -> T:
        """What `ask` returns; asked again when the server is busy or the connection breaks.

        Args:
            where: repository or file, for messages.

        Raises:
            HubError and its subclasses
        """
        return _repeat(where, ask, (*_REFUSED, 500, 502, 504), again_when_cut=True)

    def write(self, where: str, ask: Callable[[], T]) -> T:
        """What `ask` returns; asked again only when the server says that it did nothing.

        After a broken connection nobody knows whether the change was made, so that is an error.

        Raises:
            HubError and its subclasses
        """
        return _repeat(where, ask, _REFUSED, again_when_cut=False)


def open_hub(endpoint: str | None = None, token: str | None = None) -> Hub:
    """The Hub at `endpoint`, else the client's own. Nothing is sent yet.

    Args:
        token: None takes the user's saved token, but only where `endpoint` is the client's own.

    Raises:
        UsageError: no address of a Hub.
    """
    address = check_endpoint(endpoint)
    chosen: str | bool | None = token if token is not None or saved_token_fits(address) else False
    api = HfApi(endpoint=address, token=chosen, library_name="hfq", library_version=VERSION)
    return Hub(api, address)


def _repeat(where: str, ask: Callable[[], T], statuses: tuple[int, ...], *, again_when_cut: bool) -> T:
    refusals = Refusals()
    cuts, spent_s = 0, 0.0
    while True:
        try:
            with bounded_session(refusals):
                return ask()
        except HfqError:
            raise
        except Exception as raised:
            error = _cause(raised)
            answer = error.response if isinstance(error, HfHubHTTPError) else None
            is_cut = isinstance(error, _HTTP_ERROR) and answer is None
            cuts += is_cut
            tries = refusals.count + cuts
            pause_s = asked_pause_s(answer) if answer is not None else None
            if pause_s is None:
                pause_s = 2.0 ** (tries - 1)
            spent_s += pause_s
            again = answer.status_code in statuses if answer is not None else is_cut and again_when_cut
            if not again or tries >= _ATTEMPTS or spent_s > _ALL_PAUSES_S:
                raise _translate(error, where, tries) from raised
            time.sleep(pause_s)


def _cause(error: BaseException) -> BaseException:
    # An LFS upload wraps whatever happened into a RuntimeError.
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def _translate(error: BaseException, where: str, attempts: int) -> HfqError:
    if isinstance(error, HfqError):
        return error
    if isinstance(error, HfHubHTTPError):
        return _translate_status(error, where, attempts)
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnavailableError("the Hub's client is set to offline", where=where, todo="unset HF_HUB_OFFLINE")
    if isinstance(error, _HTTP_ERROR):
        return HubUnavailableError(
            "no connection to the Hub, or it broke off", where=where, found=_words(error), todo="try again"
        )
    if isinstance(error, OSError):
        return HubError("the Hub's client failed", where=where, found=_words(error))
    return HubError("an answer that the Hub's client cannot read", where=where, found=_words(error))


def _translate_status(error: HfHubHTTPError, where: str, attempts: int) -> HfqError:
    status = error.response.status_code
    found = f"status {status}" + (f": {error.server_message}" if error.server_message else "")
    if isinstance(error, GatedRepoError):
        return HubAccessError("the repository is gated", where=where, found=found, todo="ask for access on its page")
    if isinstance(error, RevisionNotFoundError):
        return HubNotFoundError("no such revision", where=where, found=found)
    if status in (401, 403):
        # The Hub also says 401 for a repository that does not exist, so as not to tell who has which.
        return HubAccessError(
            "the Hub does not allow this",
            where=where,
            found=found,
            todo="check the name and the token (`hf auth login`, or HF_TOKEN)",
        )
    if isinstance(error, RepositoryNotFoundError) or status in (404, 410):
        return HubNotFoundError("the Hub does not have it, or does not show it", where=where, found=found)
    if status in (409, 412):
        return HubConflictError("the repository has changed", where=where, found=found, todo="run the command again")
    if status == 429:
        return HubBusyError(
            "the Hub limits how often it is asked", where=where, found=f"{found}, {_times(attempts)}", todo="wait"
        )
    if status >= 500:
        return HubUnavailableError(
            "the Hub fails", where=where, found=f"{found}, {_times(attempts)}", todo="try again later"
        )
    return HubError("the Hub refuses the request", where=where, found=found)


def _times(attempts: int) -> str:
    return "once" if attempts == 1 else f"{attempts} times"


def _words(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
