"""Joining parts: the same as one run, in any order, and never two things that do not belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kills import run_until
from tiny_pipelines import TINY_PROMPTS

import hfq
from hfq.cli import run
from hfq.convert.calibration import load_calibration
from hfq.convert.calibration_merge import HEADER, check_mergeable, merge_calibrations
from hfq.convert.prompts import Prompt
from hfq.schema.canonical import canonical_json, content_id
from hfq.schema.errors import CalibrationMergeError, DigestMismatchError, OutputExistsError, UsageError


@pytest.fixture(scope="module")
def parts(tiny_calibration: Path) -> list[Path]:
    found = sorted((tiny_calibration / "parts").iterdir())
    assert len(found) == 2
    return found


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("calibration.json", "statistics.safetensors")}


def test_merging_the_parts_is_the_run(tiny_calibration: Path, parts: list[Path], tmp_path: Path) -> None:
    """Byte for byte, in either order, and also when the folder stands for its parts."""
    for number, sources in enumerate((parts, parts[::-1], [tiny_calibration])):
        merged = merge_calibrations(sources, tmp_path / f"{number}")
        merged.close()
        assert bytes_of(merged.path) == bytes_of(tiny_calibration)


def test_a_part_is_the_run_of_its_prompt(tiny_weights: Path, parts: list[Path], tmp_path: Path) -> None:
    """A subset of the prompts is a merge of their parts: nothing depends on what else was run."""
    prompt = TINY_PROMPTS[1]
    alone = hfq.calibrate(tiny_weights, [prompt], tmp_path / "alone", steps=6, keep_inputs=32)
    alone.close()
    with_it = [part for part in parts if prompts_of(part) == [Prompt(prompt).sha256]]
    merged = merge_calibrations(with_it, tmp_path / "merged")
    merged.close()
    assert bytes_of(alone.path) == bytes_of(merged.path) == bytes_of(with_it[0])


def prompts_of(folder: Path) -> list[str]:
    with load_calibration(folder) as found:
        return found.prompt_hashes


def test_merged_numbers(tiny_calibration: Path, parts: list[Path]) -> None:
    """Maxima are maxima, counts and histograms are sums, kept rows are those with the smallest digests."""
    group = "blocks.0.ffn.2"
    with load_calibration(tiny_calibration) as whole, load_calibration(parts[0]) as a, load_calibration(parts[1]) as b:
        for role in whole.roles:
            merged, left, right = whole.read(role, group), a.read(role, group), b.read(role, group)
            assert torch.equal(merged.max, torch.maximum(left.max, right.max))
            assert torch.equal(merged.count, left.count + right.count)
            assert torch.equal(merged.sum_squares, right.sum_squares + left.sum_squares)
            assert torch.equal(merged.histograms["all"].samples, left.histograms["all"].samples * 2)
            for index in merged.inputs:
                rows = {
                    bytes(d.tolist()): x
                    for s in (left, right)
                    for d, x in zip(s.digests[index], s.inputs[index], strict=True)
                }
                smallest = sorted(rows)[:32]
                assert [bytes(digest.tolist()) for digest in merged.digests[index]] == smallest
                assert all(torch.equal(rows[key], x) for key, x in zip(smallest, merged.inputs[index], strict=True))


def test_merging_merged_ones_has_the_same_histograms(parts: list[Path], tiny_calibration: Path, tmp_path: Path) -> None:
    singles = [merge_calibrations([part], tmp_path / part.name) for part in parts]
    merged = merge_calibrations([single.path for single in singles], tmp_path / "merged")
    with load_calibration(tiny_calibration) as whole:
        for role in whole.roles:
            for group in whole.groups(role):
                left, right = whole.read(role, group).histograms["all"], merged.read(role, group).histograms["all"]
                assert torch.equal(left.counts, right.counts)
                assert torch.equal(left.top, right.top)
    for calibration in (merged, *singles):
        calibration.close()


def edited(folder: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy with another document that has its own right id."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("calls.*"))
    document = json.loads((out / "calibration.json").read_bytes())
    change(document)
    document["id"] = content_id(document)
    (out / "calibration.json").write_bytes(canonical_json(document))
    return out


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("settings.shift", lambda d: d["settings"].update(shift=9.0)),
        ("settings.height", lambda d: d["settings"].update(height=16)),
        ("settings.components", lambda d: d["settings"]["components"].update(vae="0" * 64)),
        ("settings.rows", lambda d: d["settings"].update(rows="all")),
        ("base.experts", lambda d: d["base"]["experts"]["low_noise"].update(bf16_root="0" * 64)),
        ("schedule.low_noise", lambda d: d["schedule"]["low_noise"].update(edges=[2, 1])),
    ],
)
def test_other_settings_are_refused_by_name(
    field: str, change: Callable[[dict[str, Any]], None], parts: list[Path], tmp_path: Path
) -> None:
    other = edited(parts[1], tmp_path / "other", change)
    with pytest.raises(CalibrationMergeError, match=field):
        merge_calibrations([parts[0], other], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_a_prompt_counts_once(tiny_calibration: Path, parts: list[Path], tmp_path: Path) -> None:
    for sources in ([parts[0], parts[0]], [tiny_calibration, parts[0]]):
        with pytest.raises(CalibrationMergeError, match="twice"):
            merge_calibrations(sources, tmp_path / "out")


def test_a_folder_with_a_part_missing_does_not_stand_for_its_parts(tiny_calibration: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_calibration, tmp_path / "cal")
    shutil.rmtree(sorted((tmp_path / "cal" / "parts").iterdir())[0])
    with pytest.raises(CalibrationMergeError, match="expected 2 parts, found 1"):
        merge_calibrations([tmp_path / "cal"], tmp_path / "out")


def test_every_byte_is_checked(parts: list[Path], tmp_path: Path) -> None:
    shutil.copytree(parts[0], tmp_path / "part")
    path = tmp_path / "part" / "statistics.safetensors"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError):
        merge_calibrations([tmp_path / "part", parts[1]], tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_existing_output_and_nothing_to_merge(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError):
        merge_calibrations(parts, tmp_path)
    with pytest.raises(UsageError):
        merge_calibrations([], tmp_path / "out")


def test_the_command(
    parts: list[Path], tiny_calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both spellings: one --merge and many folders, or one --merge for each."""
    first, second = map(str, parts)
    assert run(["calibrate", "--merge", first, second, "-o", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == id_of(tiny_calibration)
    assert run(["calibrate", "--merge", first, "--merge", second, "-o", str(tmp_path / "b")]) == 0
    assert id_of(tiny_calibration)[:12] in capsys.readouterr().out
    for arguments in (["--merge", "-o", "x"], ["--merge", first, "--steps", "3", "-o", "x"], ["--merge", first],
                      ["--merge", first, "--prompts", "p", "-o", "x"]):  # fmt: skip
        assert run(["calibrate", *arguments]) == 2
    assert "--prompts" in capsys.readouterr().err


def id_of(folder: Path) -> str:
    with load_calibration(folder) as found:
        return found.id


def test_a_killed_merge_is_made_again_at_once(parts: list[Path], tmp_path: Path) -> None:
    """Wherever it was killed: what it left is taken over by the next one, which needs no --resume."""
    merge_calibrations(parts, tmp_path / "whole").close()
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    instant = 0
    while run_until(instant, lambda: merge_calibrations(parts, out), only=lambda call: "out.partial" in call):
        if not out.exists():
            merge_calibrations(parts, out).close()
            assert not partial.exists()
        assert bytes_of(out) == bytes_of(tmp_path / "whole")
        shutil.rmtree(out)
        instant += 1
    assert instant > 5


def test_a_merge_leaves_unfinished_work_alone(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out.partial" / "parts").mkdir(parents=True)
    (tmp_path / "out.partial" / "started.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="not an unfinished merge"):
        merge_calibrations(parts, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out.partial").iterdir()) == ["parts", "started.json"]


def test_prompts_with_other_last_frames_are_others() -> None:
    """First-last-frame models: one text and first frame with two last frames are two prompts, once each."""

    def part(last: str) -> Any:
        prompt = {"sha256": "1" * 64, "image": "2" * 64, "last_image": last}
        document = {**{member: {} for member in HEADER}, "parts": [{"prompts": [prompt]}]}
        return SimpleNamespace(document=document, spread=None, roles=["single"], groups=lambda _: {}, path=Path(last))

    check_mergeable([part("3" * 64), part("4" * 64)])
    with pytest.raises(CalibrationMergeError, match="twice"):
        check_mergeable([part("3" * 64), part("3" * 64)])
