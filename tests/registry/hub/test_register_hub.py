"""`hfq register --hub` and `--base-hub`: what the Hub must confirm, what is remembered, what a refusal leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factory import make_delta, write_json
from pushing import BASE, REPO, ROLES, Capture, hfq, hfq_json, id_of, push_to, rows
from stand_in import Repo, StandIn

from hfq.registry import Registry

pytestmark = pytest.mark.usefixtures("own_hub")


def refused(capsys: Capture, registry: Registry, *arguments: object) -> tuple[int, str]:
    """Exit code and message; nothing may have been registered."""
    code, out, err = hfq(capsys, "register", *arguments)
    assert (out, err.count("\n")) == ("", 1), err
    assert not registry.path.exists()
    return code, err


def test_a_confirmed_copy_is_remembered_and_nothing_is_downloaded(
    capsys: Capture, registry: Registry, hub: StandIn, repo: Repo, delta: Path
) -> None:
    code, _, err = hfq(capsys, "register", delta, "--hub", REPO)
    assert code == 0
    assert f"on the Hub: {REPO}, commit {repo.head().oid}" in err
    assert [path.partition("?")[0] for _, path, _ in hub.requests] == [f"/api/models/{REPO}/revision/main"]
    (copy,) = registry.get(id_of(delta)).hub
    assert (copy.endpoint, copy.repo, copy.commit, copy.tag, copy.how) == (
        hub.url, REPO, repo.head().oid, None, "registered",
    )  # fmt: skip


def test_twice_is_one_row_and_a_tag_is_added(capsys: Capture, registry: Registry, repo: Repo, delta: Path) -> None:
    (tag,) = repo.tags
    for place in (REPO, f"{REPO}@{repo.head().oid}", f"{REPO}@{tag}", REPO):
        assert hfq(capsys, "register", delta, "--hub", place)[0] == 0
    record = registry.get(id_of(delta))
    assert [(copy.commit, copy.tag) for copy in record.hub] == [(repo.head().oid, tag)]
    assert [event.kind for event in record.events] == ["registered", "found-on-hub"]


def test_show_and_lineage_say_where_the_delta_and_its_base_lie(
    capsys: Capture, registry: Registry, hub: StandIn, repo: Repo, base: Repo, delta: Path
) -> None:
    (tag,) = repo.tags
    document = hfq_json(capsys, "register", delta, "--hub", f"{REPO}@{tag}", "--base-hub", BASE)
    assert document["hub"] == {"endpoint": hub.url, "repo": REPO, "commit": repo.head().oid, "tag": tag}
    assert [(place["repo"], place["commit"]) for place in document["base_hub"]] == [(BASE, base.head().oid)]
    page, base_page = f"{hub.url}/{REPO}/tree/{repo.head().oid}", f"{hub.url}/{BASE}/tree/{base.head().oid}"
    shown, lineage = hfq(capsys, "show", delta)[1], hfq(capsys, "lineage", delta)[1]
    for text in (shown, lineage):
        assert f"{page}  registered " in text
        assert f", tag {tag}" in text
        assert base_page in text
    assert "high_noise: high_noise_model/m.safetensors" in lineage
    record = hfq_json(capsys, "show", delta)
    assert record["hub"][0]["commit"] == repo.head().oid
    (tied,) = record["base"]["hub"]
    assert [(file["role"], file["path"]) for file in tied["files"]] == [
        (role, f"{role}_model/m.safetensors") for role in ROLES
    ]
    mermaid = hfq(capsys, "lineage", delta, "--format", "mermaid")[1]
    assert f'hub_0(["{REPO}<br/>commit {repo.head().oid[:12]}"])' in mermaid
    assert {"  hub_0 -.-> delta", "  base_hub_0 -.-> base"} <= set(mermaid.splitlines())


def edit_state(folder: Path) -> None:
    """Another delta, whole in itself."""
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    make_delta(folder, seed="b")


def edit_json(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        write_json(folder / name, {**json.loads((folder / name).read_text())})  # same content, other bytes
        (folder / name).write_text((folder / name).read_text() + "\n")

    return edit


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (edit_state, "ptq_state.json"),
        (edit_json("ptq_state.json"), "ptq_state.json"),
        (edit_json("provenance.json"), "provenance.json"),
        (edit_json("report.json"), "report.json"),
        (lambda folder: (folder / "report.json").unlink(), "report.json"),
    ],
)
def test_a_folder_that_differs_is_exit_3_and_the_file_is_named(
    capsys: Capture, registry: Registry, repo: Repo, delta: Path, change: Callable[[Path], None], name: str
) -> None:
    change(delta)
    code, err = refused(capsys, registry, delta, "--hub", REPO)
    assert code == 3
    assert f"{REPO}@{repo.head().oid[:12]}: {name}" in err
    assert "digest-mismatch" in err


@pytest.mark.parametrize("lfs", [True, False])
def test_another_state_file_there_is_exit_3(
    capsys: Capture, registry: Registry, repo: Repo, delta: Path, lfs: bool
) -> None:
    blob = repo.head().files["ptq_state.safetensors"]
    blob.lfs = lfs
    assert hfq(capsys, "register", delta, "--hub", REPO)[0] == 0
    registry.path.unlink()
    for path in registry.path.parent.glob("registry.sqlite-*"):
        path.unlink()
    blob.data = blob.data[:-1] + b"\xff"
    code, err = refused(capsys, registry, delta, "--hub", REPO)
    assert (code, "ptq_state.safetensors" in err) == (3, True)


def test_a_report_that_only_the_hub_has_or_lacks_is_exit_3(
    capsys: Capture, registry: Registry, repo: Repo, delta: Path
) -> None:
    del repo.head().files["report.json"]
    code, err = refused(capsys, registry, delta, "--hub", REPO)
    assert (code, "the folder has a file that the Hub does not have" in err) == (3, True)


def test_the_card_and_other_files_do_not_matter(capsys: Capture, registry: Registry, repo: Repo, delta: Path) -> None:
    repo.put({"README.md": b"rewritten", "sample.mp4": b"clip"})
    (delta / "notes.txt").write_text("mine")
    assert hfq(capsys, "register", delta, "--hub", REPO)[0] == 0


def test_a_branch_that_moved_on_holds_it_at_the_older_commit(
    capsys: Capture, registry: Registry, hub: StandIn, repo: Repo, delta: Path, tmp_path: Path
) -> None:
    then = repo.head().oid
    make_delta(tmp_path / "other", seed="b")
    push_to(hub, tmp_path / "other")
    assert refused(capsys, registry, delta, "--hub", REPO)[0] == 3
    assert hfq(capsys, "register", delta, "--hub", f"{REPO}@{then}")[0] == 0
    assert registry.get(id_of(delta)).hub[0].commit == then


def test_a_tag_of_another_delta_and_an_answer_of_another_commit_are_refused(
    capsys: Capture, registry: Registry, hub: StandIn, repo: Repo, delta: Path
) -> None:
    repo.tags["delta-000000000000"] = repo.head().oid
    assert refused(capsys, registry, delta, "--hub", f"{REPO}@delta-000000000000")[0] == 3
    hub.answered_commit = "f" * 40
    assert refused(capsys, registry, delta, "--hub", f"{REPO}@{repo.head().oid}")[0] == 1


@pytest.mark.parametrize("option", ["--hub", "--base-hub"])
@pytest.mark.parametrize(
    ("name", "exit_code"),
    [("someone/else", 2), (f"{REPO}@nowhere", 5), ("name", 2), (f"{REPO}@", 2), (f"{REPO}@-x", 2), ("a/b@c@d", 2)],
)
def test_names_are_refused_with_their_codes(
    capsys: Capture, registry: Registry, repo: Repo, delta: Path, option: str, name: str, exit_code: int
) -> None:
    """401 and not 404 to somebody without a token: the Hub does not say who has which repository."""
    assert refused(capsys, registry, delta, option, name)[0] == exit_code


@pytest.mark.parametrize(
    ("how", "exit_code", "words"),
    [
        ({"status": 401}, 2, "token"),
        ({"status": 403}, 2, "token"),
        ({"status": 429}, 1, "status 429"),
        ({"status": 429, "headers": {"Retry-After": "86400"}}, 1, "86400 s"),
        ({"status": 503}, 1, "status 503"),
        ({"action": "cut"}, 1, "broke off"),
        ({"action": "lose answer"}, 1, "broke off"),
    ],
)
def test_a_hub_that_fails_registers_nothing(
    capsys: Capture,
    registry: Registry,
    hub: StandIn,
    repo: Repo,
    delta: Path,
    no_waiting: list[float],
    how: dict[str, Any],
    exit_code: int,
    words: str,
) -> None:
    hub.fault("GET /api/models", times=99, **how)
    code, err = refused(capsys, registry, delta, "--base-hub" if words == "status 503" else "--hub", REPO)
    assert (code, words in err) == (exit_code, True)
    assert sum(no_waiting) < 60


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_waited_for(
    capsys: Capture, registry: Registry, hub: StandIn, repo: Repo, delta: Path, no_waiting: list[float], status: int
) -> None:
    hub.fault("GET /api/models", status=status, times=2, headers={"Retry-After": "3"})
    assert hfq(capsys, "register", delta, "--hub", REPO)[0] == 0
    assert no_waiting == [3.0, 3.0]


@pytest.mark.parametrize("option", ["--hub", "--base-hub"])
def test_without_a_connection_nothing_is_registered_and_without_the_options_nobody_is_asked(
    capsys: Capture,
    registry: Registry,
    hub: StandIn,
    repo: Repo,
    delta: Path,
    no_waiting: list[float],
    option: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        code, err = refused(capsys, registry, delta, option, REPO)
    assert (code, "HF_HUB_OFFLINE" in err) == (1, True)
    assert hub.requests == []
    nobody = StandIn()
    nobody.close()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody.url)
    code, err = refused(capsys, registry, delta, option, REPO)
    assert (code, "no connection" in err) == (1, True)
    assert hfq(capsys, "register", delta)[0] == 0
    assert registry.get(id_of(delta)).hub == ()


@pytest.mark.parametrize(
    "entry",
    [
        {"rfilename": "../ptq_state.json", "size": 2, "blobId": "0" * 40},
        {"rfilename": "a\x1b[31m", "size": 2, "blobId": "0" * 40},
        {"rfilename": "a//b", "size": 2, "blobId": "0" * 40},
        {"rfilename": "ptq_state.json", "size": 2, "blobId": "0" * 40},
        {"rfilename": "x", "size": -1, "blobId": "0" * 40},
        {"rfilename": "x", "size": 2},
        {"rfilename": "x", "size": 2, "lfs": {"sha256": "0" * 63, "size": 2, "pointerSize": 1}},
    ],
)
def test_a_hostile_list_is_refused(
    capsys: Capture, registry: Registry, repo: Repo, delta: Path, entry: dict[str, Any]
) -> None:
    repo.siblings.append(entry)
    code, err = refused(capsys, registry, delta, "--hub", REPO)
    assert (code, "hub-listing" in err) == (1, True)
    assert err.strip().isprintable()


def test_look_alikes_are_refused_and_a_repository_without_a_delta_is_unknown(
    capsys: Capture, registry: Registry, repo: Repo, base: Repo, delta: Path
) -> None:
    assert refused(capsys, registry, delta, "--hub", BASE)[0] == 5
    repo.siblings.append({"rfilename": "PTQ_STATE.JSON", "size": 2, "blobId": "0" * 40})
    assert refused(capsys, registry, delta, "--hub", REPO)[0] == 1


def test_a_damaged_folder_is_refused_before_anybody_is_asked(
    capsys: Capture, registry: Registry, hub: StandIn, repo: Repo, delta: Path
) -> None:
    (delta / "ptq_state.safetensors").write_bytes(b"short")
    assert refused(capsys, registry, delta, "--hub", REPO, "--base-hub", BASE)[0] == 1
    assert hub.requests == []


def test_a_base_in_part_is_refused_and_the_first_missing_file_is_named(
    capsys: Capture, registry: Registry, hub: StandIn, repo: Repo, base: Repo, delta: Path
) -> None:
    base.put({"low_noise_model/m.safetensors": b"another release"})
    code, err = refused(capsys, registry, delta, "--hub", REPO, "--base-hub", BASE)
    assert code == 3
    assert "1 of them; missing low_noise: low_noise_model/m.safetensors" in err
    assert "hub-tie" in err
    assert hub.count("/resolve/") == 0


def test_many_missing_files_are_counted(capsys: Capture, registry: Registry, base: Repo, delta: Path) -> None:
    provenance = json.loads((delta / "provenance.json").read_text())
    for role, expert in provenance["base"]["experts"].items():
        expert["files"] += [{**expert["files"][0], "name": f"{role}-{n}", "sha256": f"{n}" * 64} for n in range(4)]
    write_json(delta / "provenance.json", provenance)
    _, err = refused(capsys, registry, delta, "--base-hub", BASE)
    assert (
        "2 of them; missing high_noise: high_noise-0, high_noise: high_noise-1, high_noise: high_noise-2 and 5" in err
    )


def test_hashes_taken_on_trust_tie_nothing(
    capsys: Capture, registry: Registry, hub: StandIn, base: Repo, delta: Path
) -> None:
    provenance = json.loads((delta / "provenance.json").read_text())
    provenance["base"]["experts"]["low_noise"]["files"][0]["trusted"] = True
    write_json(delta / "provenance.json", provenance)
    code, err = refused(capsys, registry, delta, "--base-hub", BASE)
    assert (code, "taken on trust" in err, "low_noise_model/m.safetensors" in err) == (3, True, True)
    assert hub.requests == []


def test_a_base_is_tied_to_several_commits_and_each_once(
    capsys: Capture, registry: Registry, hub: StandIn, base: Repo, delta: Path
) -> None:
    first = base.head().oid
    mirror = hub.add("someone/mirror")
    mirror.put({f"split/{role}.safetensors": f"{role} file wan22".encode() for role in ROLES})
    later = base.put({"README.md": b"new"})
    for _ in range(2):
        places = ["--base-hub", f"{BASE}@{first}", "--base-hub", "someone/mirror", "--base-hub", BASE]
        assert hfq(capsys, "register", delta, *places)[0] == 0
    record = registry.get(id_of(delta))
    assert {(tied.repo, tied.commit) for tied in record.base.hub} == {
        (BASE, first), (BASE, later), ("someone/mirror", mirror.head().oid),
    }  # fmt: skip
    assert rows(registry, "SELECT count(*) FROM hub_file") == [(6,)]
    assert [event.kind for event in record.events].count("base-tied") == 3


def test_a_tie_is_of_the_base_and_other_deltas_of_it_show_it(
    capsys: Capture, registry: Registry, base: Repo, delta: Path, tmp_path: Path
) -> None:
    make_delta(tmp_path / "sibling", seed="b")
    make_delta(tmp_path / "stranger", seed="c", base="wan21")
    for folder in (tmp_path / "sibling", tmp_path / "stranger"):
        registry.register(folder)
    assert hfq(capsys, "register", delta, "--base-hub", BASE)[0] == 0
    assert [tied.repo for tied in registry.get(id_of(tmp_path / "sibling")).base.hub] == [BASE]
    assert registry.get(id_of(tmp_path / "stranger")).base.hub == ()
