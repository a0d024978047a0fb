"""A stand-in Hub, and a user who has saved no token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from factory import make_delta
from pushing import BASE, REPO, ROLES, add_report, push_to
from stand_in import Repo, StandIn


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


@pytest.fixture
def own_hub(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in is the client's own Hub, as with HF_ENDPOINT."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def repo(hub: StandIn, delta: Path) -> Repo:
    """Where the delta lies, pushed from elsewhere."""
    push_to(hub, delta)
    hub.requests.clear()
    return hub.repos[REPO]


@pytest.fixture
def base(hub: StandIn) -> Repo:
    """The base's repository: its files are those whose SHA-256 the factory writes into a provenance."""
    repo = hub.add(BASE)
    repo.put({f"{role}_model/m.safetensors": f"{role} file wan22".encode() for role in ROLES})
    return repo
