"""A pull that was interrupted: what stays, what the next one asks for, and what it does not touch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from factory import make_delta
from patience import HANG_S, wait_until
from pushing import REPO, make_large_delta, push_to
from stand_in import Repo, StandIn

from hfq.registry.hub import Pulled, pull, session
from hfq.registry.hub.unfinished import Unfinished
from hfq.schema.errors import (
    DigestMismatchError,
    HfqError,
    HubBusyError,
    HubNotFoundError,
    HubUnavailableError,
    OutputExistsError,
)

STATE = "ptq_state.safetensors"


@pytest.fixture
def repo(hub: StandIn, delta: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """A repository that `push` made; downloads are written in small blocks."""
    push_to(hub, delta)
    hub.requests.clear()
    monkeypatch.setitem(session._SWITCHES, "DOWNLOAD_CHUNK_SIZE", 16)  # type: ignore[index]
    return hub.repos[REPO]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home / "pulled"


def pull_from(hub: StandIn, out: Path, **how: Any) -> Pulled:
    return pull(REPO, out, **{"endpoint": hub.url, **how})


def partial_of(out: Path) -> Path:
    return out.with_name("pulled.partial")


def interrupt(hub: StandIn, out: Path, failure: type[HfqError] = HubUnavailableError) -> int:
    """Break a pull off in the middle of the state file; returns how many bytes of it arrived."""
    hub.fault(f"GET .*/{STATE}", "cut")
    hub.fault(f"GET .*/{STATE}", "lose answer", times=99)
    with pytest.raises(failure):
        pull_from(hub, out)
    hub.faults.clear()
    hub.requests.clear()
    assert not out.exists()
    (incomplete,) = partial_of(out).glob(f"{STATE}.*")
    return incomplete.stat().st_size


def ranges(hub: StandIn) -> list[str | None]:
    """The part of the state file that each request asked for."""
    return [headers.get("range") for _, path, headers in hub.requests if path.endswith(STATE)]


def same_files(out: Path, delta: Path) -> None:
    names = {path.name for path in delta.iterdir()}
    assert {path.name for path in out.iterdir()} == names | {"README.md"}
    for name in names:
        assert (out / name).read_bytes() == (delta / name).read_bytes()
    assert list(out.parent.iterdir()) == [out]


def test_the_second_pull_asks_only_for_what_is_missing(
    hub: StandIn, repo: Repo, delta: Path, out: Path, no_waiting: list[float]
) -> None:
    arrived = interrupt(hub, out)
    assert 0 < arrived < (delta / STATE).stat().st_size
    pull_from(hub, out)
    assert ranges(hub) == [f"bytes={arrived}-"]
    assert hub.count("/resolve/") == 1  # the documents are there
    same_files(out, delta)


def test_the_failure_says_that_it_can_be_continued(
    hub: StandIn, repo: Repo, out: Path, no_waiting: list[float]
) -> None:
    hub.fault(f"GET .*/{STATE}", "lose answer", times=99)
    with pytest.raises(HubUnavailableError, match=r"pull again into pulled: it goes on from the \d+ bytes"):
        pull_from(hub, out)


def test_a_broken_answer_to_one_question_is_continued_too(
    hub: StandIn, repo: Repo, delta: Path, out: Path, no_waiting: list[float]
) -> None:
    """The client ends its own attempts with a 503; ours must not begin the file anew."""
    hub.fault(f"GET .*/{STATE}", "cut")
    hub.fault(f"GET .*/{STATE}", status=503)
    pull_from(hub, out)
    first, refused, second = ranges(hub)
    assert first is None
    assert refused == second
    assert refused is not None
    same_files(out, delta)


def test_a_killed_pull_is_continued(hub: StandIn, out: Path, tmp_path: Path) -> None:
    make_large_delta(tmp_path / "large")
    push_to(hub, tmp_path / "large")
    hub.requests.clear()
    hub.fault(f"GET .*/{STATE}", "stall")
    process = subprocess.Popen(
        [sys.executable, "-m", "hfq", "pull", REPO, "-o", out],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HFQ_REGISTRY": str(tmp_path / "registry.sqlite"),
        },
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    try:
        assert hub.stalled.wait(HANG_S)
        (incomplete,) = partial_of(out).glob(f"{STATE}.*")
        wait_until(lambda: incomplete.stat().st_size >= 1 << 20)  # what the server has sent is written
        with pytest.raises(OutputExistsError, match="at work"):
            pull_from(hub, out)
    finally:
        process.kill()
        process.communicate()
        hub.released.set()
    arrived = incomplete.stat().st_size
    assert not out.exists()
    hub.requests.clear()
    pull_from(hub, out)
    assert ranges(hub) == [f"bytes={arrived}-"]
    same_files(out, tmp_path / "large")


def test_ctrl_c_keeps_what_arrived(
    hub: StandIn, repo: Repo, delta: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            pull_from(hub, out)
    assert not out.exists()
    assert list(partial_of(out).glob("ptq_state.json.*.incomplete"))
    pull_from(hub, out)
    assert hub.count("/resolve/.*ptq_state.json") == 1
    same_files(out, delta)


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["incomplete", "ptq_state.json", "provenance.json"])
def test_leftovers_that_were_damaged_are_fetched_again(
    hub: StandIn, repo: Repo, delta: Path, out: Path, no_waiting: list[float], name: str
) -> None:
    interrupt(hub, out)
    (path,) = partial_of(out).glob(f"{STATE}.*") if name == "incomplete" else [partial_of(out) / name]
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    pull_from(hub, out)
    assert ranges(hub) == ([f"bytes={len(data)}-", None] if name == "incomplete" else [f"bytes={arrived_of(hub)}-"])
    same_files(out, delta)


def arrived_of(hub: StandIn) -> int:
    text = ranges(hub)[0]
    assert text is not None
    return int(text.removeprefix("bytes=").rstrip("-"))


def test_a_server_without_ranges_sends_all_of_it(
    hub: StandIn, repo: Repo, delta: Path, out: Path, no_waiting: list[float]
) -> None:
    interrupt(hub, out)
    hub.knows_ranges = False
    pull_from(hub, out)
    same_files(out, delta)


def test_nothing_of_an_older_commit_gets_into_the_folder(
    hub: StandIn, repo: Repo, out: Path, tmp_path: Path, no_waiting: list[float]
) -> None:
    interrupt(hub, out)
    assert (partial_of(out) / "report.json").exists()
    make_delta(tmp_path / "other", seed="b")
    push_to(hub, tmp_path / "other")
    hub.requests.clear()
    pull_from(hub, out)
    assert ranges(hub) == [None]
    same_files(out, tmp_path / "other")


def test_a_file_swapped_between_two_pulls_is_refused_and_nothing_stays(
    hub: StandIn, repo: Repo, out: Path, no_waiting: list[float]
) -> None:
    interrupt(hub, out)
    data = bytearray(repo.head().files[STATE].data)
    data[-3] ^= 1
    repo.swapped[STATE] = bytes(data)
    with pytest.raises(DigestMismatchError, match=STATE):
        pull_from(hub, out)
    assert list(out.parent.iterdir()) == []


def test_leftovers_outlive_a_wrong_name_and_a_busy_hub(
    hub: StandIn, repo: Repo, delta: Path, out: Path, no_waiting: list[float]
) -> None:
    arrived = interrupt(hub, out)
    with pytest.raises(HubNotFoundError):
        pull_from(hub, out, revision="nowhere")
    hub.fault("GET /api/models", status=429, times=99, headers={"Retry-After": "86400"})
    with pytest.raises(HubBusyError):
        pull_from(hub, out)
    hub.faults.clear()
    pull_from(hub, out)
    assert ranges(hub) == [f"bytes={arrived}-"]


@pytest.mark.parametrize("what", ["no mark", "another file", "a folder", "a link", "a link instead of the folder"])
def test_somebody_elses_unfinished_work_is_not_touched(
    hub: StandIn, repo: Repo, out: Path, tmp_path: Path, no_waiting: list[float], what: str
) -> None:
    interrupt(hub, out)
    partial = partial_of(out)
    match what:
        case "no mark":
            (partial / ".hfq-pull").unlink()
        case "another file":
            (partial / "journal.jsonl").write_text("{}")
        case "a folder":
            (partial / "README.md").unlink()
            (partial / "README.md").mkdir()
        case "a link":
            (tmp_path / "precious").write_text("mine")
            (partial / "README.md").unlink()
            (partial / "README.md").symlink_to(tmp_path / "precious")
        case _:
            partial.rename(tmp_path / "elsewhere")
            partial.symlink_to(tmp_path / "elsewhere")
    before = sorted(path.name for path in partial.iterdir())
    with pytest.raises(OutputExistsError, match="something else"):
        pull_from(hub, out)
    assert hub.requests == []
    assert sorted(path.name for path in partial.iterdir()) == before


def test_two_pulls_do_not_share_a_folder(hub: StandIn, repo: Repo, delta: Path, out: Path) -> None:
    first = Unfinished.begin(out)
    with pytest.raises(OutputExistsError, match="another pull is at work"):
        pull_from(hub, out)
    assert hub.requests == []
    assert first.leave() == 0
    assert list(out.parent.iterdir()) == []
    pull_from(hub, out)
    same_files(out, delta)


def test_the_second_of_two_pulls_is_told_who_is_at_work(hub: StandIn, repo: Repo, out: Path) -> None:
    first = Unfinished.begin(out)
    with pytest.raises(OutputExistsError, match=rf"another pull is at work.*process {os.getpid()} of "):
        pull_from(hub, out)
    first.discard()


def test_a_mark_that_a_killed_pull_left_in_its_output_goes_away(
    hub: StandIn, repo: Repo, delta: Path, out: Path
) -> None:
    """It was killed after its folder had its name: the folder is whole, and stays."""
    pull_from(hub, out)
    (out / ".hfq-pull").touch()
    with pytest.raises(OutputExistsError, match="already there"):
        pull_from(hub, out)
    same_files(out, delta)
