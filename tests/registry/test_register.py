"""Registering a delta: what is checked before a row is written, and what a second time changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from factory import digest, make_delta, write_json

from hfq.registry import Registry
from hfq.schema.canonical import content_id
from hfq.schema.errors import (
    DigestMismatchError,
    HfqError,
    MalformedFileError,
    MissingPathError,
    TrailingBytesError,
    TruncatedFileError,
    UnreadableFileError,
    UsageError,
    WrongIdError,
)


def test_registered_delta_is_remembered_with_all_it_was_made_from(registry: Registry, tmp_path: Path) -> None:
    delta_id = make_delta(tmp_path / "delta", kept=3, quantized=2, percentile=99.5)
    assert registry.register(tmp_path / "delta", aliases=["wan22@prod"]) == delta_id
    record = registry.get(delta_id)
    assert record.aliases == ("wan22@prod",)
    assert record.quantized == 4
    assert [(kept.expert, kept.site) for kept in record.kept] == [
        (role, f"blocks.{index}.self_attn.q") for role in ("high_noise", "low_noise") for index in range(3)
    ]
    assert record.kept[0].reason == "rule 0: boundary"
    assert record.recipe.name == "tail-aware-hif4"
    assert [(stage.kind, stage.statistic, stage.percentile, stage.alpha) for stage in record.recipe.stages] == [
        ("smooth", "percentile", 99.5, 0.5)
    ]
    assert record.recipe.id == content_id(record.recipe.document)
    assert record.calibration is not None
    assert record.calibration.prompts == tuple(digest(f"prompt {number}") for number in range(3))
    high, low = record.base.experts
    assert (high.role, low.role) == ("high_noise", "low_noise")
    assert high.bf16_root == digest("wan22 high_noise bf16")
    assert [(file.name, file.size_bytes, file.layout, file.trusted) for file in low.witnesses] == [
        ("low_noise_model/m.safetensors", 57_000_000_000, "wan22", False)
    ]
    assert record.state_size_bytes == (tmp_path / "delta" / "ptq_state.safetensors").stat().st_size
    assert [event.kind for event in record.events] == ["registered", "aliased"]


def test_registering_twice_is_one_row(registry: Registry, tmp_path: Path) -> None:
    delta_id = make_delta(tmp_path / "delta")
    first = registry.admit(tmp_path / "delta")
    second = registry.admit(tmp_path / "delta")
    assert (first.id, first.is_new, first.is_new_folder) == (delta_id, True, True)
    assert (second.id, second.is_new, second.is_new_folder) == (delta_id, False, False)
    assert registry.status().counts == {
        "deltas": 1, "bases": 1, "recipes": 1, "calibrations": 1, "aliases": 0, "clips": 0, "scores": 0, "events": 1,
    }  # fmt: skip


def test_a_second_copy_is_the_same_delta_in_another_folder(registry: Registry, tmp_path: Path) -> None:
    make_delta(tmp_path / "one")
    delta_id = make_delta(tmp_path / "two", layout="diffusers")
    registry.register(tmp_path / "one")
    second = registry.admit(tmp_path / "two")
    assert (second.id, second.is_new, second.is_new_folder) == (delta_id, False, True)
    record = registry.get(delta_id)
    assert [place.folder for place in record.locations] == [str(tmp_path / "two"), str(tmp_path / "one")]
    assert [file.layout for file in record.base.experts[0].witnesses] == ["diffusers", "wan22"]
    assert [event.kind for event in record.events] == ["registered", "located"]


def test_deltas_of_one_base_and_recipe_share_their_rows(registry: Registry, tmp_path: Path) -> None:
    for seed in ("a", "b", "c"):
        make_delta(tmp_path / seed, seed=seed)
        registry.register(tmp_path / seed)
    make_delta(tmp_path / "other", base="wan21", percentile=None, prompts=None)
    registry.register(tmp_path / "other")
    counts = registry.status().counts
    assert (counts["deltas"], counts["bases"], counts["recipes"], counts["calibrations"]) == (4, 2, 2, 1)


def test_a_folder_that_holds_another_delta_now_belongs_to_that_one(registry: Registry, tmp_path: Path) -> None:
    before = make_delta(tmp_path / "delta", seed="before")
    registry.register(tmp_path / "delta")
    (tmp_path / "delta").rename(tmp_path / "moved")
    after = make_delta(tmp_path / "delta", seed="after")
    registry.register(tmp_path / "delta")
    assert registry.folder(after) == tmp_path / "delta"
    assert registry.get(before).locations == ()
    assert registry.get(before).events[-1].kind == "folder-reused"


def test_a_hash_that_was_computed_once_is_no_longer_on_trust(registry: Registry, tmp_path: Path) -> None:
    delta_id = make_delta(tmp_path / "delta")
    path = tmp_path / "delta" / "provenance.json"
    provenance = json.loads(path.read_text())
    for trusted, remembered in ((True, True), (False, False), (True, False)):
        provenance["base"]["experts"]["low_noise"]["files"][0]["trusted"] = trusted
        write_json(path, provenance)
        registry.register(tmp_path / "delta")
        assert registry.get(delta_id).base.experts[1].witnesses[0].trusted is remembered


def _flip_state(folder: Path) -> None:
    data = bytearray((folder / "ptq_state.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "ptq_state.safetensors").write_bytes(data)


def _change_document(folder: Path) -> None:
    text = (folder / "ptq_state.json").read_text()
    (folder / "ptq_state.json").write_text(text.replace("made for a test", "made for a jest"))


def _change_provenance(folder: Path, where: str, value: object) -> None:
    provenance = json.loads((folder / "provenance.json").read_text())
    target = provenance
    *path, last = where.split("/")
    for step in path:
        target = target[int(step)] if isinstance(target, list) else target[step]
    target[last] = value
    write_json(folder / "provenance.json", provenance)


def _rename_expert(folder: Path) -> None:
    text = (folder / "provenance.json").read_text()
    (folder / "provenance.json").write_text(text.replace('"low_noise": {', '"single": {'))


FILE = "base/experts/low_noise/files/0"
BROKEN = {
    "truncated": (lambda d: os.truncate(d / "ptq_state.safetensors", 20), TruncatedFileError, 1),
    "too long": (lambda d: os.truncate(d / "ptq_state.safetensors", 2000), TrailingBytesError, 1),
    "one bit": (_flip_state, DigestMismatchError, 3),
    "no state": (lambda d: (d / "ptq_state.safetensors").unlink(), MissingPathError, 2),
    "no document": (lambda d: (d / "ptq_state.json").unlink(), MissingPathError, 2),
    "no provenance": (lambda d: (d / "provenance.json").unlink(), MissingPathError, 2),
    "edited document": (_change_document, WrongIdError, 3),
    "other delta": (lambda d: _change_provenance(d, "delta", digest("x")), DigestMismatchError, 3),
    "other base": (
        lambda d: _change_provenance(d, "base/experts/low_noise/bf16_root", digest("x")), DigestMismatchError, 3,
    ),
    "other experts": (_rename_expert, DigestMismatchError, 3),
    "half a character": (lambda d: _change_provenance(d, f"{FILE}/name", "\ud800"), MalformedFileError, 1),
    "a size of no file": (lambda d: _change_provenance(d, f"{FILE}/size_bytes", 1 << 70), MalformedFileError, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_leaves_no_trace(registry: Registry, tmp_path: Path, case: str) -> None:
    breaks, failure, exit_code = BROKEN[case]
    make_delta(tmp_path / "delta")
    breaks(tmp_path / "delta")
    with pytest.raises(HfqError) as caught:
        registry.register(tmp_path / "delta")
    assert type(caught.value) is failure
    assert caught.value.exit_code == exit_code
    assert not registry.path.exists()


def test_a_pipe_in_place_of_the_state_does_not_hang(registry: Registry, tmp_path: Path) -> None:
    make_delta(tmp_path / "delta")
    state = tmp_path / "delta" / "ptq_state.safetensors"
    state.unlink()
    os.mkfifo(state)
    with pytest.raises(UnreadableFileError):
        registry.register(tmp_path / "delta")


def test_one_calibration_cannot_have_two_lists_of_prompts(registry: Registry, tmp_path: Path) -> None:
    make_delta(tmp_path / "one", seed="one")
    make_delta(tmp_path / "two", seed="two")
    registry.register(tmp_path / "one")
    path = tmp_path / "two" / "ptq_state.json"
    document = json.loads(path.read_text())
    document["calibration"]["prompts"].pop()
    document["id"] = content_id(document)
    write_json(path, document)
    _change_provenance(tmp_path / "two", "delta", document["id"])
    with pytest.raises(DigestMismatchError, match="same calibration with other prompts"):
        registry.register(tmp_path / "two")
    assert registry.status().counts["deltas"] == 1


def test_a_refused_alias_registers_nothing(registry: Registry, tmp_path: Path) -> None:
    make_delta(tmp_path / "delta")
    with pytest.raises(UsageError):
        registry.register(tmp_path / "delta", aliases=["good", "../bad"])
    assert not registry.path.exists()
