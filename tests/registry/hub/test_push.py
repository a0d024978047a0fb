"""Pushing: what lies in the repository afterwards, and what is refused before anything is sent."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from factory import make_delta
from huggingface_hub import constants
from pushing import BASE, REPO, id_of, push_to
from stand_in import TOKEN, StandIn

from hfq.registry.hub import Recorded, Score, check_card, push
from hfq.schema.errors import (
    DigestMismatchError,
    HubNotFoundError,
    MissingPathError,
    UsageError,
)


def test_push_is_one_commit_of_the_deltas_files_and_a_tag(hub: StandIn, delta: Path) -> None:
    (delta / "notes.txt").write_text("private")
    (delta / "model.pkl").write_bytes(b"\x80\x04.")
    (delta / "README.md").write_text("of somebody's editor")
    pushed = push_to(hub, delta)
    repo = hub.repos[REPO]
    head = repo.head()
    assert head.oid == pushed.commit
    assert head.parent is not None
    assert repo.commits[head.parent].parent is None  # the initial commit: there is one of ours
    assert hub.count("POST .*/commit/") == 1
    assert repo.tags == {f"delta-{id_of(delta)}": pushed.commit} == {pushed.tag: pushed.commit}
    names = ("ptq_state.json", "ptq_state.safetensors", "provenance.json", "report.json")
    assert set(head.files) == {*names, "README.md", ".gitattributes"}
    for name in names:
        assert head.files[name].data == (delta / name).read_bytes()
    assert head.files["ptq_state.safetensors"].lfs
    assert head.files["README.md"].data.decode() == pushed.card
    assert check_card(pushed.card)["base_model"] == [BASE]
    assert pushed.url == f"{hub.url}/{REPO}/tree/{pushed.tag}"
    assert {file.name: file.sha256 for file in pushed.files} == {
        name: hashlib.sha256(blob.data).hexdigest() for name, blob in head.files.items() if name != ".gitattributes"
    }
    assert (pushed.id, pushed.is_new) == (id_of(delta), True)


def test_nobody_but_the_named_hub_is_asked_and_it_learns_little(
    hub: StandIn, delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY")
    seen = []
    for name in names:
        monkeypatch.setattr(constants, name, False)
    hub.before_commit = lambda _: seen.append([getattr(constants, name) for name in names])
    push_to(hub, delta)
    assert seen == [[True, True]]
    assert [getattr(constants, name) for name in names] == [False, False]
    assert hub.count("xet|agent-harnesses") == 0
    agents = {headers["user-agent"] for _, path, headers in hub.requests if "storage" not in path}
    assert all(agent.startswith("hfq/") and "torch" not in agent for agent in agents)


def test_pushing_again_changes_nothing(hub: StandIn, delta: Path) -> None:
    first = push_to(hub, delta)
    second = push_to(hub, delta)
    assert (second.commit, second.tag, second.is_new) == (first.commit, first.tag, False)
    assert hub.count("POST .*/commit/") == 1
    assert hub.count("POST .*/tag/") == 1


def test_new_scores_are_a_new_card_and_the_tag_stays(hub: StandIn, delta: Path) -> None:
    first = push_to(hub, delta)
    second = push_to(hub, delta, recorded=Recorded((Score("VBench", 0.81, "prompts-64", "vbench 0.1.5", 64, 0.83),)))
    repo = hub.repos[REPO]
    assert repo.head().oid == second.commit != first.commit
    assert second.url == f"{hub.url}/{REPO}/tree/{second.commit}"  # the tag shows the older card
    assert "VBench" in repo.head().files["README.md"].data.decode()
    assert repo.tags == {first.tag: first.commit}


def test_the_report_of_the_delta_before_goes(hub: StandIn, delta: Path, tmp_path: Path) -> None:
    push_to(hub, delta)
    make_delta(tmp_path / "other", seed="b")
    push_to(hub, tmp_path / "other")
    repo = hub.repos[REPO]
    assert "report.json" not in repo.head().files
    assert len(repo.tags) == 2


def test_other_files_of_the_repository_stay(hub: StandIn, delta: Path) -> None:
    hub.add(REPO).put({"sample.mp4": b"clip"})
    push_to(hub, delta)
    assert hub.repos[REPO].head().files["sample.mp4"].data == b"clip"


def test_dry_run_contacts_nobody(hub: StandIn, delta: Path) -> None:
    pushed = push_to(hub, delta, dry_run=True, token=None)
    assert hub.requests == []
    assert (pushed.commit, pushed.tag) == (None, None)
    assert [file.name for file in pushed.files] == [
        "ptq_state.json",
        "ptq_state.safetensors",
        "provenance.json",
        "report.json",
        "README.md",
    ]
    assert pushed.card == push_to(hub, delta).card


def test_a_branch_is_made_and_main_stays(hub: StandIn, delta: Path) -> None:
    main = hub.add(REPO).head().oid
    pushed = push_to(hub, delta, revision="w4a4/try")
    assert hub.repos[REPO].branches == {"main": main, "w4a4/try": pushed.commit}


def test_a_pull_request_has_no_tag(hub: StandIn, delta: Path) -> None:
    main = hub.add(REPO).head().oid
    pushed = push_to(hub, delta, create_pr=True)
    repo = hub.repos[REPO]
    assert (repo.pulls, repo.head().oid, repo.tags) == ([pushed.commit], main, {})
    assert pushed.tag is None
    assert pushed.url == f"{hub.url}/{REPO}/discussions/1"
    assert "--revision" not in pushed.card


def test_private_makes_a_private_repository_and_refuses_a_public_one(hub: StandIn, delta: Path) -> None:
    push_to(hub, delta, private=True)
    assert hub.repos[REPO].private
    hub.repos[REPO].private = False
    head = hub.repos[REPO].head().oid
    with pytest.raises(UsageError, match="public"):
        push_to(hub, delta, private=True, recorded=Recorded((Score("PSNR", 27.9, "p", "s", 1),)))
    assert hub.repos[REPO].head().oid == head


def test_what_the_hub_remarks_on_the_card_is_passed_on(hub: StandIn, delta: Path) -> None:
    hub.card_warnings.append("unknown library")
    assert "unknown library" in push_to(hub, delta).notes[0]


def test_a_damaged_delta_is_not_pushed(hub: StandIn, delta: Path) -> None:
    data = bytearray((delta / "ptq_state.safetensors").read_bytes())
    data[-1] ^= 1
    (delta / "ptq_state.safetensors").write_bytes(data)
    with pytest.raises(DigestMismatchError):
        push_to(hub, delta)
    with pytest.raises(MissingPathError):
        push_to(hub, delta / "absent")
    assert hub.requests == []


def test_a_state_file_that_changes_after_its_check_is_not_pushed(
    hub: StandIn, delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["hfq.registry.hub.push"]
    check = module.read_delta_folder  # type: ignore[attr-defined]

    def check_then_change(folder: Path) -> Any:
        facts = check(folder)
        (folder / "ptq_state.safetensors").write_bytes(b"\0" * facts.state_size_bytes)
        return facts

    monkeypatch.setattr(module, "read_delta_folder", check_then_change)
    with pytest.raises(DigestMismatchError, match="while it was read"):
        push_to(hub, delta)
    assert hub.requests == []


def test_a_report_of_another_delta_is_not_pushed(hub: StandIn, delta: Path) -> None:
    report = json.loads((delta / "report.json").read_text())
    (delta / "report.json").write_text(json.dumps({**report, "delta": "0" * 64}))
    with pytest.raises(DigestMismatchError, match=r"report\.json"):
        push_to(hub, delta)
    assert hub.requests == []


@pytest.mark.parametrize(
    "how",
    [
        {"base_model": ""},
        {"base_model": []},
        {"base_model": "Wan2.2"},
        {"base_model": ["Wan-AI/Wan2.2", "../x"]},
        {"license": "Apache"},
        {"license": ""},
        {"pipeline_tag": "text-generation"},
        {"revision": "a b"},
        {"revision": "0" * 40},
        {"revision": "-x"},
        {"endpoint": "http://hub.example"},
        {"endpoint": "ftp://127.0.0.1"},
        {"endpoint": "https://user:word@hub.example"},
    ],
)
def test_arguments_are_refused_before_anything_is_sent(hub: StandIn, delta: Path, how: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        push_to(hub, delta, **how)
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["name", "a/b/c", "a/../b", "a/b--c", "/b", "a/b.git", "a/b\n", "a/-b", "https://x/y"])
def test_names_that_are_no_repository_are_refused(hub: StandIn, delta: Path, repo: str) -> None:
    with pytest.raises(UsageError):
        push(delta, repo, base_model=BASE, license="mit", endpoint=hub.url, token=TOKEN)
    assert hub.requests == []


def test_missing_base_names_the_releases_that_would_fit(hub: StandIn, delta: Path) -> None:
    with pytest.raises(UsageError, match=BASE):
        push_to(hub, delta, base_model="")


def test_a_pull_request_needs_a_repository(hub: StandIn, delta: Path) -> None:
    with pytest.raises(HubNotFoundError) as caught:
        push_to(hub, delta, create_pr=True)
    assert caught.value.exit_code == 5
    assert hub.repos == {}
