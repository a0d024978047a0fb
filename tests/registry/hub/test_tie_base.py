"""A base on disk and a revision on the Hub: the same bytes or not, without a download."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from stand_in import TOKEN, Repo, StandIn

from hfq.registry.hub import HubRevision, tie_base
from hfq.schema.errors import HubAccessError, HubListingError, HubNotFoundError, UsageError

REPO = "Wan-AI/Wan2.2-T2V-A14B"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def base(hub: StandIn) -> Repo:
    repo = hub.add(REPO)
    repo.put({f"{role}_noise_model/m.safetensors": role.encode() for role in ("high", "low")} | {"config.json": b"{}"})
    return repo


def tie(hub: StandIn, files: dict[str, bytes], **how: str) -> HubRevision:
    return tie_base(REPO, {name: sha256(data) for name, data in files.items()}, endpoint=hub.url, **how)


def test_files_are_found_by_their_bytes_and_nothing_is_downloaded(hub: StandIn, base: Repo) -> None:
    found = tie(hub, {"high_noise_model/m.safetensors": b"high", "renamed/l.safetensors": b"low"})
    assert found.matched == {
        "high_noise_model/m.safetensors": "high_noise_model/m.safetensors",
        "renamed/l.safetensors": "low_noise_model/m.safetensors",
    }
    assert (found.commit, found.missing, found.is_tied) == (base.head().oid, (), True)
    assert [path.partition("?")[0] for _, path, _ in hub.requests] == [f"/api/models/{REPO}/revision/main"]


def test_other_bytes_under_the_right_name_are_missing(hub: StandIn, base: Repo) -> None:
    found = tie(hub, {"high_noise_model/m.safetensors": b"High", "low_noise_model/m.safetensors": b"low"})
    assert found.missing == ("high_noise_model/m.safetensors",)
    assert not found.is_tied


def test_a_file_without_a_listed_sha256_counts_as_missing(hub: StandIn, base: Repo) -> None:
    assert tie(hub, {"config.json": b"{}"}).missing == ("config.json",)


def test_no_files_tie_nothing(hub: StandIn, base: Repo) -> None:
    assert not tie(hub, {}).is_tied


def test_twins_are_told_apart_by_path_then_by_name(hub: StandIn, base: Repo) -> None:
    base.put({"a/m.safetensors": b"twin", "b/n.safetensors": b"twin", "b/m.safetensors": b"twin"})
    found = tie(hub, {"b/m.safetensors": b"twin", "z/n.safetensors": b"twin", "q.safetensors": b"twin"})
    assert found.matched == {
        "b/m.safetensors": "b/m.safetensors",
        "z/n.safetensors": "b/n.safetensors",
        "q.safetensors": "a/m.safetensors",
    }


def test_a_branch_becomes_its_commit(hub: StandIn, base: Repo) -> None:
    then = base.head().oid
    base.tags["v1"] = then
    base.put({"high_noise_model/m.safetensors": b"newer"})
    files = {"high_noise_model/m.safetensors": b"high"}
    assert tie(hub, files).missing
    assert (tie(hub, files, revision="v1").commit, tie(hub, files, revision=then).commit) == (then, then)


@pytest.mark.parametrize("name", ["../m.safetensors", "a\x1b[31m", "a//b"])
def test_a_hostile_list_ties_nothing(hub: StandIn, base: Repo, name: str) -> None:
    base.siblings.append(
        {"rfilename": name, "size": 4, "lfs": {"sha256": sha256(b"high"), "size": 4, "pointerSize": 9}}
    )
    with pytest.raises(HubListingError):
        tie(hub, {"high_noise_model/m.safetensors": b"high"})


def test_another_commit_than_was_asked_for_is_refused(hub: StandIn, base: Repo) -> None:
    hub.answered_commit = "f" * 40
    with pytest.raises(HubListingError, match="another commit"):
        tie(hub, {"high_noise_model/m.safetensors": b"high"}, revision=base.head().oid)


def test_failures_have_their_classes(hub: StandIn, base: Repo) -> None:
    with pytest.raises(UsageError):
        tie_base("Wan2.2", {}, endpoint=hub.url)
    with pytest.raises(HubNotFoundError):
        tie(hub, {}, revision="nowhere")
    with pytest.raises(HubNotFoundError):
        tie_base("no/body", {}, endpoint=hub.url, token=TOKEN)
    base.private = True
    with pytest.raises(HubAccessError):
        tie(hub, {})
    base.private = False
    base.siblings.append({"rfilename": "x", "size": 1})
    with pytest.raises(HubListingError):
        tie(hub, {})


def test_a_local_path_is_no_address(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        tie_base(REPO, {}, endpoint=str(tmp_path))
