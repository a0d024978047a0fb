"""The Hub client's shared HTTP session and switches, for the length of one call: quiet, bounded, and put back.

`huggingface_hub` has one session and one set of switches in a process.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from huggingface_hub import constants, get_session
from huggingface_hub.utils import logging as client_logging

from hfq.schema.errors import HubBusyError

__all__ = ["LONGEST_PAUSE_S", "TIMEOUT_S", "Refusals", "asked_pause_s", "bounded_session"]

TIMEOUT_S: Final = 60.0
"""The longest silence of a connection. The client's own default for most requests is to wait for ever."""

LONGEST_PAUSE_S: Final = 30.0

_SWITCHES: Final[Mapping[str, object]] = {
    # Xet would bring a third host into an upload; files of a delta go by LFS, which every Hub and mirror speaks.
    "HF_HUB_DISABLE_XET": True,
    # To describe the caller, the client asks the public Hub, whichever endpoint was named.
    "HF_HUB_DISABLE_TELEMETRY": True,
    # A block that is not whole is not written: with the client's 10 MB nothing would be kept of a small delta.
    "DOWNLOAD_CHUNK_SIZE": 1 << 20,
}

_RETRIED: Final = (408, 429, 500, 502, 503, 504)  # by the client itself, where it retries at all

_SECONDS: Final = re.compile(r"([0-9]{1,9})")
_EXHAUSTED: Final = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*([0-9]{1,9})\b")

_LOCK: Final = threading.RLock()


@dataclass
class Refusals:
    """How often a server put the caller off, those times included that the client dealt with by itself."""

    count: int = 0


@contextlib.contextmanager
def bounded_session(refusals: Refusals) -> Iterator[None]:
    """Calls inside have our switches and timeout, print nothing, and make no pause longer than LONGEST_PAUSE_S.

    Raises:
        HubBusyError: from inside a call, when a server asks for a longer pause.
    """

    def see(response: Any) -> None:
        if response.status_code in _RETRIED:
            refusals.count += 1
            _refuse_long_pause(response)

    with _LOCK:
        before: dict[str, Any] = {name: getattr(constants, name, None) for name in _SWITCHES}
        verbosity = client_logging.get_verbosity()
        session: Any = get_session()
        hooks, timeout = session.event_hooks, session.timeout
        try:
            for name, value in _SWITCHES.items():
                setattr(constants, name, value)
            client_logging.set_verbosity(logging.CRITICAL)
            session.event_hooks = {**hooks, "response": [*hooks["response"], see]}
            session.timeout = TIMEOUT_S
            yield
        finally:
            for name, old in before.items():
                setattr(constants, name, old)
            client_logging.set_verbosity(verbosity)
            session.event_hooks, session.timeout = hooks, timeout


def asked_pause_s(response: Any) -> float | None:
    """Seconds that `Retry-After`, or for 429 an exhausted `RateLimit`, asks for; a date is not understood."""
    headers = response.headers
    exhausted = _EXHAUSTED.search(headers.get("RateLimit", "")) if response.status_code == 429 else None
    found = exhausted or _SECONDS.fullmatch(headers.get("Retry-After", "").strip())
    return float(found[1]) if found else None


def _refuse_long_pause(response: Any) -> None:
    """The client sleeps as long as a server tells it to, a day if need be."""
    asked = asked_pause_s(response)
    if asked is not None and asked > LONGEST_PAUSE_S:
        raise HubBusyError(
            "the Hub is busy",
            where=response.request.url.host,
            expected=f"a pause of at most {LONGEST_PAUSE_S:.0f} s",
            found=f"status {response.status_code}, come back after {asked:.0f} s",
            todo="try again later",
        )
