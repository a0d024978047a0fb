"""`hfq push` and `hfq pull` write down where a registered delta lies, and the card says where its base lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factory import make_delta
from pushing import BASE, REPO, ROLES, Capture, hfq, hfq_json, id_of, rows
from stand_in import TOKEN, Repo, StandIn

from hfq.registry import Registry

pytestmark = pytest.mark.usefixtures("own_hub")


@pytest.fixture(autouse=True)
def token(own_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def push(capsys: Capture, folder: Path, *more: str) -> Any:
    return hfq_json(capsys, "push", folder, REPO, "--base-model", BASE, "--license", "apache-2.0", *more)


def places(registry: Registry, folder: Path) -> list[tuple[str, str | None, str]]:
    return [(copy.commit, copy.tag, copy.how) for copy in registry.get(id_of(folder)).hub]


def test_a_push_is_a_place_with_its_tag_and_again_is_the_same(
    capsys: Capture, registry: Registry, hub: StandIn, delta: Path
) -> None:
    registry.register(delta)
    push(capsys, delta, "--dry-run")
    assert places(registry, delta) == []
    first, second = push(capsys, delta), push(capsys, delta)
    assert first["commit"] == second["commit"]
    assert places(registry, delta) == [(first["commit"], first["tag"], "pushed")]
    kinds = [event.kind for event in registry.get(id_of(delta)).events]
    assert kinds == ["registered", "pushed", "pushed"]


def test_a_new_card_is_a_new_place_and_the_tag_stays_with_the_old(
    capsys: Capture, registry: Registry, hub: StandIn, base: Repo, delta: Path
) -> None:
    registry.register(delta)
    first = push(capsys, delta)
    assert hfq(capsys, "register", delta, "--base-hub", BASE)[0] == 0
    second = push(capsys, delta)
    assert f"https://huggingface.co/{BASE}/tree/{base.head().oid}" in second["card"]
    assert BASE in second["card"].split("---\n", 2)[2].lstrip().splitlines()[0]
    assert places(registry, delta) == [
        (second["commit"], None, "pushed"),
        (first["commit"], first["tag"], "pushed"),
    ]


def test_the_card_names_no_commit_of_another_base(
    capsys: Capture, registry: Registry, hub: StandIn, delta: Path
) -> None:
    mirror = hub.add("someone/mirror")
    mirror.put({f"{role}.safetensors": f"{role} file wan22".encode() for role in ROLES})
    assert hfq(capsys, "register", delta, "--base-hub", "someone/mirror")[0] == 0
    assert mirror.head().oid not in push(capsys, delta)["card"]


def test_a_pull_request_is_no_place(capsys: Capture, registry: Registry, hub: StandIn, delta: Path) -> None:
    hub.add(REPO)
    registry.register(delta)
    push(capsys, delta, "--create-pr")
    assert places(registry, delta) == []
    assert [event.kind for event in registry.get(id_of(delta)).events] == ["registered", "pushed"]


def test_a_pull_is_a_place_too(capsys: Capture, registry: Registry, repo: Repo, delta: Path, tmp_path: Path) -> None:
    registry.register(delta)
    (tag,) = repo.tags
    hfq_json(capsys, "pull", REPO, "-o", tmp_path / "one")
    hfq_json(capsys, "pull", REPO, "-o", tmp_path / "two", "--revision", tag)
    assert places(registry, delta) == [(repo.head().oid, tag, "pulled")]


def test_what_is_not_registered_is_not_written_down(
    capsys: Capture, registry: Registry, repo: Repo, delta: Path, tmp_path: Path
) -> None:
    hfq_json(capsys, "pull", REPO, "-o", tmp_path / "one")
    assert not registry.path.exists()
    make_delta(tmp_path / "other", seed="b")
    registry.register(tmp_path / "other")
    hfq_json(capsys, "pull", REPO, "-o", tmp_path / "two")
    assert rows(registry, "SELECT count(*) FROM hub_copy") == [(0,)]


def test_a_registry_of_another_revision_is_said_before_the_hub_is_asked(
    capsys: Capture, old_registry: Registry, hub: StandIn, repo: Repo, delta: Path, tmp_path: Path
) -> None:
    for arguments in (
        ["push", delta, REPO, "--base-model", BASE, "--license", "mit"],
        ["pull", REPO, "-o", tmp_path / "out"],
    ):
        code, _, err = hfq(capsys, *arguments)
        assert (code, "hfq db upgrade" in err) == (1, True)
    assert hub.requests == []
    assert not (tmp_path / "out").exists()
