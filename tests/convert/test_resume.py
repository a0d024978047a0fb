"""Killed, interrupted, out of space: what is left is resumed to the same bytes, and other inputs are refused."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kills import run_until
from made import bytes_of, write_base
from synthetic import tiny, write_checkpoint

import hfq
from hfq.cli import run
from hfq.convert.convert import Conversion
from hfq.convert.journal import Journal
from hfq.schema.errors import (
    DigestMismatchError,
    MalformedFileError,
    MissingPathError,
    OutputExistsError,
    ResumeMismatchError,
)

# Converts, and is killed as soon as the journal holds some lines.
_KILLED = """
import os, signal, sys
import hfq
from hfq.convert.journal import Journal
add = Journal.add
def then_killed(self, entry, state):
    add(self, entry, state)
    with open(journal, "rb") as file:
        if file.read().count(b"\\n") >= int(lines):
            os.kill(os.getpid(), signal.SIGKILL)
Journal.add = then_killed
base, calibration, out, journal, lines = sys.argv[1:6]
with hfq.open_checkpoint(base) as checkpoint:
    hfq.quantize(checkpoint, "tail-aware-hif4", calibration, out=out, resume="--resume" in sys.argv).close()
"""


def run_resumed(base: Path, calibration: Path | None, out: Path, made: Any = "tail-aware-hif4") -> None:
    with hfq.open_checkpoint(base) as checkpoint:
        hfq.quantize(checkpoint, made, calibration, out=out, resume=True).close()


def stop_after(sites: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next conversion fail after some sites."""
    add, done = Journal.add, [0]

    def failing(self: Journal, entry: Any, state: Any) -> None:
        if done[0] == sites:
            raise error
        done[0] += 1
        add(self, entry, state)

    monkeypatch.setattr(Journal, "add", failing)


@pytest.fixture
def unfinished(small_base: Path, small_calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a conversion that was interrupted after eleven sites; its partial folder is beside it."""
    with monkeypatch.context() as patch:
        stop_after(11, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt), hfq.open_checkpoint(small_base) as checkpoint:
            hfq.quantize(checkpoint, "tail-aware-hif4", small_calibration, out=tmp_path / "delta")
    assert [path.name for path in tmp_path.iterdir()] == ["delta.partial"]
    return tmp_path / "delta"


def test_killed_twice_and_resumed_to_the_same_bytes(
    small_base: Path, small_calibration: Path, small_delta: Path, tmp_path: Path
) -> None:
    out, journal = tmp_path / "delta", tmp_path / "delta.partial" / "journal.jsonl"
    command = [sys.executable, "-c", _KILLED, str(small_base), str(small_calibration), str(out), str(journal)]
    for lines, more in (("3", []), ("9", ["--resume"])):
        assert subprocess.run([*command, lines, *more], cwd=tmp_path).returncode == -signal.SIGKILL
        assert not out.exists()
    before = journal.read_bytes().count(b"\n")
    assert 9 <= before < 40
    run_resumed(small_base, small_calibration, out)
    assert bytes_of(out) == bytes_of(small_delta)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in small_delta.iterdir())
    assert json.loads((out / "provenance.json").read_bytes())["resumed"] is True
    assert not (tmp_path / "delta.partial").exists()


def test_finished_sites_are_not_done_again(
    unfinished: Path, small_base: Path, small_calibration: Path, small_delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = Conversion._convert
    monkeypatch.setattr(
        Conversion,
        "_convert",
        lambda self, role, site, tensor: (done.append(site.name), real(self, role, site, tensor)),
    )
    run_resumed(small_base, small_calibration, unfinished)
    assert len(done) == 40 - 11
    assert bytes_of(unfinished) == bytes_of(small_delta)


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_torn_last_line_is_done_again(
    cut: int, unfinished: Path, small_base: Path, small_calibration: Path, small_delta: Path
) -> None:
    journal = unfinished.with_name("delta.partial") / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    run_resumed(small_base, small_calibration, unfinished)
    assert bytes_of(unfinished) == bytes_of(small_delta)


def test_what_a_killed_writer_left_does_not_get_into_the_delta(
    unfinished: Path, small_base: Path, small_calibration: Path, small_delta: Path
) -> None:
    partial = unfinished.with_name("delta.partial")
    (partial / ".ptq_state.safetensors.12345.tmp").write_bytes(b"half")
    (partial / "state" / ".x.safetensors.12345.tmp").write_bytes(b"half")
    (partial / "ptq_state.json").write_bytes(b"{")
    run_resumed(small_base, small_calibration, unfinished)
    assert bytes_of(unfinished) == bytes_of(small_delta)
    assert len(list(unfinished.iterdir())) == 4


@pytest.mark.parametrize("left", ["nothing", "no start", "documents only", "journal without state"])
def test_killed_while_it_began_or_cleaned_up(
    left: str, unfinished: Path, small_base: Path, small_calibration: Path, small_delta: Path
) -> None:
    partial = unfinished.with_name("delta.partial")
    (partial / "started.json").unlink()
    if left != "no start":
        shutil.rmtree(partial / "state")
    if left in ("nothing", "documents only"):
        (partial / "journal.jsonl").unlink()
    if left == "documents only":
        shutil.copyfile(small_delta / "ptq_state.json", partial / "ptq_state.json")
    run_resumed(small_base, small_calibration, unfinished)
    assert bytes_of(unfinished) == bytes_of(small_delta)


def test_a_changed_state_tensor_is_refused(unfinished: Path, small_base: Path, small_calibration: Path) -> None:
    state = next((unfinished.with_name("delta.partial") / "state").iterdir())
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    with pytest.raises(DigestMismatchError, match="unfinished"):
        run_resumed(small_base, small_calibration, unfinished)
    assert not unfinished.exists()


@pytest.mark.parametrize("line", [b"[]\n", b"{}\n", b"{\n", b'{"role": "high_noise", "site": "x"}\n'])
def test_a_journal_that_is_none_is_refused(
    line: bytes, unfinished: Path, small_base: Path, small_calibration: Path
) -> None:
    journal = unfinished.with_name("delta.partial") / "journal.jsonl"
    journal.write_bytes(line + journal.read_bytes())
    with pytest.raises(MalformedFileError):
        run_resumed(small_base, small_calibration, unfinished)


def test_a_changed_line_is_not_believed(unfinished: Path, small_base: Path, small_calibration: Path) -> None:
    partial = unfinished.with_name("delta.partial")
    lines = (partial / "journal.jsonl").read_bytes()
    digest = json.loads(lines.splitlines()[3])["entry"]["digest"].encode()
    (partial / "journal.jsonl").write_bytes(lines.replace(digest, digest[::-1]))
    with pytest.raises(DigestMismatchError, match=r"line of the unfinished conversion"):
        run_resumed(small_base, small_calibration, unfinished)
    (partial / "journal.jsonl").write_bytes(lines)
    run_resumed(small_base, small_calibration, unfinished)


_PUBLISH = ("rename", "unlink", "rmdir", "mkdir")


def test_killed_at_any_instant_of_publishing_nothing_is_computed_again(
    unfinished: Path, small_base: Path, small_calibration: Path, small_delta: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """From the last site on: before, in and after the rename, and in the clean-up."""
    run_resumed(small_base, small_calibration, unfinished)
    shutil.rmtree(unfinished)
    partial, kept = unfinished.with_name("delta.partial"), tmp_path / "kept"

    def changes(call: str) -> bool:  # those of the folder itself, not of the files that are put together in it
        return call.split()[0] in _PUBLISH and str(partial) in call and ".tmp" not in call and "/state/" not in call

    def all_done() -> None:
        run_resumed(small_base, small_calibration, unfinished)

    assert run_until(0, all_done, only=lambda call: call.startswith("rename") and call.endswith(str(unfinished)))
    partial.rename(kept)  # every site is done, and the result is complete
    done: list[str] = []
    real = Conversion._convert
    monkeypatch.setattr(
        Conversion,
        "_convert",
        lambda self, role, site, tensor: (done.append(site.name), real(self, role, site, tensor)),
    )
    instant = 0
    while True:
        shutil.copytree(kept, partial)
        if not run_until(instant, all_done, only=changes):
            break
        assert not unfinished.exists() or bytes_of(unfinished) == bytes_of(small_delta)
        all_done()
        assert done == []
        assert bytes_of(unfinished) == bytes_of(small_delta)
        assert len(list(unfinished.iterdir())) == 4
        assert not partial.exists()
        shutil.rmtree(unfinished)
        instant += 1
    assert instant > 5


def test_resuming_what_is_complete_returns_it_if_it_is_what_would_be_made(
    small_base: Path, small_calibration: Path, small_delta: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(small_delta, tmp_path / "delta"))
    run_resumed(small_base, small_calibration, out)
    with pytest.raises(OutputExistsError, match=r"calibration.*is not what would be made"):
        run_resumed(small_base, small_calibration, out, "rtn-hif4")
    other = write_base(tmp_path / "other", seed=1)
    with hfq.open_checkpoint(other) as checkpoint:
        hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / "rounded").close()
    with pytest.raises(OutputExistsError, match=r"rounded: high_noise.*expected .{64}, found .{64}"):
        run_resumed(small_base, small_calibration, tmp_path / "rounded", "rtn-hif4")
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputExistsError):
        run_resumed(small_base, small_calibration, tmp_path / "mine")
    assert bytes_of(out) == bytes_of(small_delta)


def test_the_command_takes_a_complete_output_as_well(
    small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill between the last rename and the end: the same command with --resume ends with exit 0."""
    out = tmp_path / "delta"
    arguments = ["convert", str(small_base), "-o", str(out), "--recipe"]
    assert run([*arguments, "rtn-hif4"]) == 0
    before = bytes_of(out)
    assert run([*arguments, "rtn-hif4"]) == 2
    capsys.readouterr()
    assert run([*arguments, "rtn-hif4", "--resume"]) == 0
    assert "was complete; nothing was left to do" in capsys.readouterr().err
    assert run([*arguments, "rtn-hif8", "--resume"]) == 2
    assert "is not what would be made" in capsys.readouterr().err
    assert bytes_of(out) == before
    for name in ("report.json", "provenance.json"):
        kept = (out / name).read_bytes()
        for broken in (b"{", b"{}", b"[]"):
            (out / name).write_bytes(broken)
            assert run([*arguments, "rtn-hif4", "--resume"]) == 2
            said = capsys.readouterr().err
            assert "is not what would be made" in said
            assert name in said
            assert "was complete" not in said
        (out / name).write_bytes(kept)


def test_a_partial_folder_is_no_delta_yet(unfinished: Path) -> None:
    with pytest.raises(MissingPathError, match=r"not finished.*--resume"):
        hfq.load_delta(unfinished.with_name("delta.partial"))


def test_other_inputs_are_refused_field_by_field(
    unfinished: Path, small_base: Path, small_calibration: Path, tmp_path: Path
) -> None:
    with pytest.raises(ResumeMismatchError, match=r"calibration.*found None"):
        run_resumed(small_base, small_calibration, unfinished, "rtn-hif4")
    stage = {"kind": "smooth", "statistic": "percentile", "percentile": 99.5}
    changed = {**hfq.load_recipe("tail-aware-hif4").document, "stage": [stage]}
    with pytest.raises(ResumeMismatchError, match=r"recipe.stage\[0\].percentile.*expected 99.9.*found 99.5"):
        run_resumed(small_base, small_calibration, unfinished, changed)
    deeper = write_checkpoint(tmp_path / "deeper", tiny(num_layers=3), "original-2.2", seed=None)
    with pytest.raises(ResumeMismatchError, match=r"base.high_noise.blocks.2"):
        run_resumed(Path(deeper), None, unfinished, "rtn-hif4")
    assert unfinished.with_name("delta.partial").exists()


def test_another_base_of_the_same_shape_is_refused_by_its_first_site(tmp_path: Path) -> None:
    first, second = write_base(tmp_path / "a"), write_base(tmp_path / "b", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt), hfq.open_checkpoint(first) as checkpoint:
            hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / "delta")
    with pytest.raises(ResumeMismatchError, match="another base"), hfq.open_checkpoint(second) as checkpoint:
        hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / "delta", resume=True)
    assert (tmp_path / "delta.partial").exists()  # the first base can still go on
    bf16 = write_base(tmp_path / "c", layout="diffusers-pair", dtype="BF16")
    with hfq.open_checkpoint(bf16) as checkpoint:
        hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / "delta", resume=True).close()


def test_two_runs_in_one_folder_are_refused(
    unfinished: Path, small_base: Path, small_calibration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = unfinished.with_name("delta.partial")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys\nf = open(sys.argv[1], 'ab')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
         "print('held', flush=True)\nsys.stdin.read()", str(partial / "journal.jsonl")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(OutputExistsError, match="at work"):
            run_resumed(small_base, small_calibration, unfinished)
        for more in ([], ["--resume"], ["--dry-run"]):
            # Nobody is told to remove what another process writes.
            assert run(["convert", str(small_base), "--recipe", "rtn-hif4", "-o", str(unfinished), *more]) == 2
            said = capsys.readouterr().err
            assert "another conversion is at work in this folder" in said
            assert "remove" not in said
    finally:
        holder.kill()
        holder.wait()
    run_resumed(small_base, small_calibration, unfinished)


def test_a_folder_of_somebody_else_is_not_resumed_into(
    small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "delta.partial").mkdir()
    (tmp_path / "delta.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="thesis"), hfq.open_checkpoint(small_base) as checkpoint:
        hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / "delta", resume=True)
    for more in ([], ["--resume"]):
        arguments = ["convert", str(small_base), "--recipe", "rtn-hif4", "-o", str(tmp_path / "delta"), *more]
        assert run(arguments) == 2
        assert "not an unfinished conversion" in capsys.readouterr().err
    assert (tmp_path / "delta.partial" / "thesis.txt").read_text() == "mine"


def test_a_full_disk_leaves_nothing_under_the_final_name_and_can_be_resumed(
    small_base: Path,
    small_calibration: Path,
    small_delta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "delta"
    arguments = ["--recipe", "tail-aware-hif4", "--calibration", str(small_calibration), "-o", str(out)]
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # No file may grow beyond this: first to meet it is the journal, in the middle of a line.
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
        code = run(["convert", str(small_base), *arguments])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    text, err = capsys.readouterr()
    assert (code, text) == (1, "")
    assert "File too large" in err
    assert "--resume" in err
    assert not out.exists()
    assert (tmp_path / "delta.partial/journal.jsonl").stat().st_size == 12_000
    run_resumed(small_base, small_calibration, out)
    assert bytes_of(out) == bytes_of(small_delta)
