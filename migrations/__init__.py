"""The registry's database revisions, run by Alembic from inside the package. Users never see an alembic.ini."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["HEAD", "REVISIONS", "VERSION_TABLE", "script_location"]

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010")
"""Oldest first. Written out, so that an ordinary command knows without Alembic whether it can read a database."""

HEAD: Final = REVISIONS[-1]

VERSION_TABLE: Final = "hfq_revision"
"""Not Alembic's default name: another program's Alembic database must not look like a registry of unknown revision."""


def script_location() -> Path:
    """The folder that holds env.py and versions/."""
    return Path(__file__).resolve().parent
