"""Where the registry is: an argument, else HFQ_REGISTRY, else the platform's folder for user data."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs
import sqlalchemy.engine
import sqlalchemy.exc

from hfq.schema.errors import UsageError

from .home import expanded

__all__ = ["ENVIRONMENT_VARIABLE", "Address", "find_address"]

ENVIRONMENT_VARIABLE: Final = "HFQ_REGISTRY"

_SCHEME: Final = re.compile(r"(sqlite|postgres(ql)?|mysql|mariadb)(\+\w+)?:", re.IGNORECASE)
"""Without its slashes a URL would be taken for a file of that name."""

_MEMORY: Final = ":memory:"


@dataclass(frozen=True, slots=True)
class Address:
    """The database file. Its folder is made when needed only if it is `default`: a misspelt path is an error."""

    path: Path
    is_default: bool


def find_address(url: str | os.PathLike[str] | None = None) -> Address:
    """The registry that `url` (a path or an SQLAlchemy URL), the environment or the platform names.

    Raises:
        UsageError: a URL that cannot be read, one of another database than SQLite, or what SQLite would not take for a
            plain path (`:memory:`, `file:...`).
    """
    given = os.fspath(url) if url is not None else os.environ.get(ENVIRONMENT_VARIABLE, "")
    if not given:
        return Address(Path(platformdirs.user_data_dir("hfq", appauthor=False)) / "registry.sqlite", is_default=True)
    if given == _MEMORY or given.startswith("file:"):
        raise UsageError(
            "a registry is one file, and this is SQLite's name of something else",
            expected="a path or sqlite:////folder/registry.sqlite",
            found=given,
            todo=f"write ./{given} if the file is called that",
        )
    path = _path_of_url(given) if "://" in given or _SCHEME.match(given) else given
    return Address(expanded(path, ENVIRONMENT_VARIABLE if url is None else None).absolute(), is_default=False)


def _path_of_url(text: str) -> str:
    try:
        url = sqlalchemy.engine.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UsageError("not a database URL", expected="sqlite:////folder/registry.sqlite or a path") from None
    if url.get_backend_name() != "sqlite":
        raise UsageError(
            "this release keeps registries in SQLite", expected="a path or sqlite:///...", found=url.drivername
        )
    # What SQLAlchemy would drop without a word: a host, a user, and whatever stands behind a question mark.
    if not url.database or url.database == _MEMORY or text != f"{url.drivername}:///{url.database}":
        raise UsageError(
            "a registry is one file, and this address says more or less than its path",
            expected="sqlite:////folder/registry.sqlite", found=text,
            todo="give the path itself if a ? stands in its name",
        )  # fmt: skip
    return url.database
