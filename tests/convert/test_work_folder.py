"""Unfinished work: killed at every instant it goes on to the same result, one process has it, and nothing of anybody
else's is touched."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kills import run_until

from hfq.convert.work_folder import JOURNAL, WorkFolder, WorkKind, clear_finished, first_difference
from hfq.schema.atomic import write_file
from hfq.schema.errors import (
    DigestMismatchError,
    HfqError,
    MalformedFileError,
    OutputExistsError,
    ResumeMismatchError,
)

KIND = WorkKind("knitting", "rows", re.compile(r"row-\d(\.partial)?"), frozenset({"scarf.txt", "label.txt"}))
INPUTS: dict[str, Any] = {"wool": {"colour": "red", "grams": 100}, "rows": [1, 2, 3]}
DONE: list[int] = []


def knit(out: Path, *, resume: bool = True, keep: bool = False, inputs: dict[str, Any] = INPUTS) -> None:
    """Three pieces, joined into a result: what conversions and calibrations do."""
    if resume and (out / "label.txt").exists():
        clear_finished(out, KIND, inputs)
        return
    work = WorkFolder(out, KIND, inputs, resume=resume)
    try:
        there = {entry["row"] for entry in work.entries}
        for row in (1, 2, 3):
            if row not in there:
                DONE.append(row)
                write_file(work.items / f"row-{row}", f"row {row}\n".encode())
                work.add({"row": row})
        write_file(work.result / "scarf.txt", b"".join((work.items / f"row-{row}").read_bytes() for row in (1, 2, 3)))
        write_file(work.result / "label.txt", b"a scarf\n")
        if keep:
            work.keep_items()
        work.publish()
    finally:
        work.close()


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scarf"


def stop(out: Path, **how: Any) -> Path:
    """Work that was killed when its result was complete, before that had its name; returns the partial folder."""
    assert run_until(
        0, lambda: knit(out, **how), only=lambda call: call.startswith("rename") and call.endswith(str(out))
    )
    assert not out.exists()
    return out.with_name("scarf.partial")


@pytest.mark.parametrize("keep", [False, True])
def test_killed_at_every_instant_it_goes_on_to_the_same_result(out: Path, tmp_path: Path, keep: bool) -> None:
    knit(tmp_path / "whole", keep=keep)
    whole = content(tmp_path / "whole")
    instant = 0
    while run_until(instant, lambda: knit(out, keep=keep)):
        if out.exists():
            assert content(out) == whole  # complete, or not there
        DONE.clear()
        lines = out.with_name("scarf.partial") / JOURNAL
        finished = lines.read_bytes().count(b"\n") if lines.exists() and not out.exists() else 0
        knit(out, keep=keep)
        assert len(DONE) <= 3 - finished
        assert content(out) == whole
        assert [path.name for path in tmp_path.iterdir() if path != tmp_path / "whole"] == ["scarf"]
        for path in sorted(out.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        out.rmdir()
        instant += 1
    assert instant > 30


def test_killed_while_it_resumed_as_well(out: Path, tmp_path: Path) -> None:
    """A second kill, at every instant of going on with a complete result."""
    knit(tmp_path / "whole", keep=True)
    instant = 0
    while True:
        if not out.exists():
            stop(out, keep=True)
        if not run_until(instant, lambda: knit(out, keep=True)):
            break
        DONE.clear()
        knit(out, keep=True)
        assert DONE == []
        assert content(out) == content(tmp_path / "whole")
        for path in sorted(out.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        out.rmdir()
        instant += 1
    assert instant > 10
    assert content(out) == content(tmp_path / "whole")


HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_work_folder import INPUTS, KIND, WorkFolder
work = WorkFolder(Path(sys.argv[1]), KIND, INPUTS, resume=True)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_is_told_who_is_at_work(out: Path, resume: bool) -> None:
    here = str(Path(__file__).parent)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out), here], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = content(out.with_name("scarf.partial"))
        with pytest.raises(OutputExistsError, match="another knitting is at work") as caught:
            knit(out, resume=resume)
        assert f"process {holder.pid} of " in str(caught.value)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
        assert content(out.with_name("scarf.partial")) == before
    finally:
        holder.kill()
        holder.communicate()
    knit(out)  # the lock of a killed process does not stand in the way
    assert (out / "scarf.txt").exists()


def test_the_loser_of_two_leaves_the_winner_alone(out: Path) -> None:
    """The second begins when the first has finished a piece; the first ends with the one result."""
    work = WorkFolder(out, KIND, INPUTS, resume=False)
    write_file(work.items / "row-1", b"row 1\n")
    work.add({"row": 1})
    for resume in (False, True):
        with pytest.raises(OutputExistsError, match="at work"):
            knit(out, resume=resume)
    write_file(work.result / "scarf.txt", b"row 1\n")
    write_file(work.result / "label.txt", b"a scarf\n")
    work.publish()
    with pytest.raises(OutputExistsError, match="already there"):
        knit(out, resume=False)
    assert sorted(content(out)) == ["label.txt", "scarf.txt"]
    assert not out.with_name("scarf.partial").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(out: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    work = WorkFolder(out, KIND, INPUTS, resume=False)
    with pytest.raises(OutputExistsError, match=r"no locks: if that process has ended, remove .*journal\.jsonl\.held"):
        knit(out)
    work.close()
    partial = stop(out)
    with pytest.raises(OutputExistsError, match="at work"):
        knit(out)  # nobody can tell that it was killed
    (partial / "journal.jsonl.held").unlink()
    knit(out)
    assert sorted(content(out)) == ["label.txt", "scarf.txt"]
    assert not partial.exists()


@pytest.mark.parametrize(
    "place",
    ["notes.txt", "rows/notes.txt", "result/notes.txt", "rows/row-1/notes.txt", ".notes", "rows/deep/notes.txt"],
)
def test_a_foreign_file_stops_it_and_stays(out: Path, place: str) -> None:
    partial = stop(out)
    if place.startswith("rows/row-1/"):
        (partial / "rows/row-1").unlink()
    (partial / place).parent.mkdir(exist_ok=True)
    (partial / place).write_text("mine")
    before = content(partial)
    for resume in (False, True):
        with pytest.raises(OutputExistsError, match="not an unfinished knitting"):
            knit(out, resume=resume)
        assert content(partial) == before


@pytest.mark.parametrize("place", ["rows/row-1", "result", "scarf.txt"])
def test_a_link_is_not_followed(out: Path, tmp_path: Path, place: str) -> None:
    partial = stop(out)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "scarf.txt").write_text("mine")
    if place == "result":
        for path in (partial / "result").iterdir():
            path.unlink()
        (partial / "result").rmdir()
    (partial / place).unlink(missing_ok=True)
    (partial / place).symlink_to(elsewhere)
    with pytest.raises(OutputExistsError, match=place):
        knit(out)
    assert (elsewhere / "scarf.txt").read_text() == "mine"


def test_what_comes_into_the_folder_while_it_works_stays(out: Path) -> None:
    work = WorkFolder(out, KIND, INPUTS, resume=False)
    partial = out.with_name("scarf.partial")
    (partial / "notes.txt").write_text("mine")
    work.discard()
    assert content(partial) == {"notes.txt": b"mine"}


def test_an_output_that_appeared_meanwhile_is_not_replaced(out: Path) -> None:
    partial = stop(out)
    work = WorkFolder(out, KIND, INPUTS, resume=True)
    out.mkdir()
    with pytest.raises(OutputExistsError, match="appeared"):
        work.publish()
    work.close()
    assert list(out.iterdir()) == []
    out.rmdir()
    DONE.clear()
    knit(out)
    assert DONE == []
    assert not partial.exists()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"wool": {"colour": "blue", "grams": 50}, "rows": [1, 2, 3]}, "wool.colour: .*expected red, found blue"),
        ({"wool": {"colour": "red", "grams": 50}, "rows": [1, 2, 4]}, "wool.grams"),
        ({"wool": INPUTS["wool"], "rows": [1, 2, 4]}, r"rows\[2\]"),
        ({"wool": INPUTS["wool"], "rows": [1, 2]}, "rows: "),
        ({"wool": INPUTS["wool"], "rows": [1, 2, 3], "needles": 4}, "needles"),
        ({"rows": [1, 2, 3]}, "wool"),
    ],
)
def test_other_inputs_are_named_by_the_first_field(out: Path, changed: dict[str, Any], field: str) -> None:
    partial = stop(out)
    before = content(partial)
    with pytest.raises(ResumeMismatchError, match=field):
        knit(out, inputs=changed)
    assert content(partial) == {name: data for name, data in before.items() if not name.endswith(".held")}
    assert first_difference(INPUTS, {"rows": (1, 2, 3), "wool": {"grams": 100.0, "colour": "red"}}) is None


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"[]\n", MalformedFileError),
        (b"{\n", MalformedFileError),
        (b'{"entry":{"row":3},"sha256":"0"}\n', DigestMismatchError),
    ],
)
def test_a_line_that_was_not_written_is_not_believed(out: Path, line: bytes, error: type[HfqError]) -> None:
    journal = stop(out) / JOURNAL
    journal.write_bytes(line + journal.read_bytes())
    with pytest.raises(error):
        knit(out)
    assert not out.exists()


def test_a_line_cut_off_by_a_full_disk_is_not_written_on(out: Path) -> None:
    """Another thread's piece, finished while the first one fails, must not become a part of the torn line."""
    work = WorkFolder(out, KIND, INPUTS, resume=False)
    work.add({"row": 1})
    with open(out.with_name("scarf.partial") / JOURNAL, "ab") as file:
        file.write(b'{"entry":{"ro')
    work.add({"row": 2})
    work.close()
    lines = (out.with_name("scarf.partial") / JOURNAL).read_bytes().splitlines()
    assert [json.loads(line)["entry"] for line in lines] == [{"row": 1}, {"row": 2}]


def test_a_finished_output_is_tidied_and_other_work_beside_it_is_not(out: Path) -> None:
    assert run_until(0, lambda: knit(out), only=re.compile(r"unlink .*started\.json").fullmatch)
    assert out.exists()
    partial = out.with_name("scarf.partial")
    before = content(partial)
    clear_finished(out, KIND, {"rows": [9]})
    assert content(partial) == {name: data for name, data in before.items() if not name.endswith(".held")}
    clear_finished(out, KIND, INPUTS)
    assert not partial.exists()
