"""A stand-in Hub, and a user who has saved no token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from factory import make_delta
from pushing import add_report
from stand_in import StandIn


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the stand-in is on this machine
    server = StandIn()
    yield server
    server.close()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are written down instead of slept; requests stay real."""
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A delta with a report."""
    folder = tmp_path / "delta"
    make_delta(folder)
    add_report(folder)
    return folder
