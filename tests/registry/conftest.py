"""A registry of one's own for every test: the user's is never touched."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from hfq.registry import Registry, open_registry

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An absent registry, which the command line finds as well."""
    path = tmp_path / "registry.sqlite"
    monkeypatch.setenv("HFQ_REGISTRY", str(path))
    return open_registry()


@pytest.fixture
def old_registry(registry: Registry) -> Registry:
    """A registry of revision 0001 with three deltas."""
    with closing(sqlite3.connect(registry.path)) as connection:
        connection.executescript((DATA / "registry-0001.sql").read_text(encoding="utf-8"))
    return registry
