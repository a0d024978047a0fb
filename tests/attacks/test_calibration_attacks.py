"""Hostile calibration folders: each is refused with an error of its own, before any number of it is used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from forging import Tensors, rewrite_tensors
from torch import Tensor

import hfq
from hfq.cli import run
from hfq.convert.calibration import load_calibration
from hfq.schema.canonical import canonical_json, content_id
from hfq.schema.errors import (
    DigestMismatchError,
    DuplicateKeyError,
    HfqError,
    MalformedFileError,
    MissingPathError,
    MissingTensorError,
    SchemaViolationError,
    ShapeMismatchError,
    TruncatedFileError,
    UnexpectedTensorError,
    UnknownSchemaVersionError,
    UnreadableFileError,
    WrongIdError,
)

GROUP = "low_noise/blocks.0.ffn.2"


@pytest.fixture
def whole(tiny_calibration: Path, tmp_path: Path) -> Path:
    """A calibration to be damaged."""
    made = tmp_path / "whole"
    shutil.copytree(tiny_calibration, made, ignore=shutil.ignore_patterns("parts", "calls.*"))
    return made


@pytest.fixture(scope="module")
def two_inputs(tiny_calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two inputs and the kept calls alone, which take no time to write."""
    made = tmp_path_factory.mktemp("small") / "cal"
    shutil.copytree(tiny_calibration, made, ignore=shutil.ignore_patterns("parts", "calls.*"))
    rewrite(made, lambda t: [t.pop(name) for name in list(t) if "/blocks.0.ffn." not in name and "/calls/" not in name])
    return made


@pytest.fixture
def copy(two_inputs: Path, tmp_path: Path) -> Path:
    """A small calibration to be damaged."""
    shutil.copytree(two_inputs, tmp_path / "cal")
    return tmp_path / "cal"


def document_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "calibration.json").read_bytes())
    return found


def write_document(folder: Path, document: dict[str, Any], *, sign: bool = True) -> None:
    """With the id that its content has: an attacker can hash too."""
    if sign:
        document["id"] = content_id(document)
    (folder / "calibration.json").write_bytes(canonical_json(document))


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> None:
    rewrite_tensors(folder / "statistics.safetensors", folder / "calibration.json", "statistics", change)


def use(folder: Path) -> None:
    """What a conversion does with a calibration."""
    with load_calibration(folder) as found:
        found.verify_bytes()
        for role in found.roles:
            for group in found.groups(role):
                found.read(role, group).channel_percentile(99.9, 1e-3, group)


def test_the_untouched_copy_is_fine(whole: Path, copy: Path) -> None:
    use(whole)
    use(copy)
    rewrite(copy, lambda tensors: None)
    use(copy)


# --- the document ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.update(schema="hfq.calibration/2"), UnknownSchemaVersionError),
        (lambda d: d.update(schema="hfq.recipe/1"), SchemaViolationError),
        (lambda d: d.update(note="x"), SchemaViolationError),
        (lambda d: d.pop("schedule"), SchemaViolationError),
        (lambda d: d["settings"].update(rows=-1), SchemaViolationError),
        (lambda d: d["settings"].update(by=["days"]), SchemaViolationError),
        (lambda d: d["histogram"].update(octaves=9), SchemaViolationError),
        (lambda d: d["schedule"]["low_noise"]["calls"][0].update(bin=7), SchemaViolationError),
        (
            lambda d: d["base"]["experts"].update({"../../etc": {"bf16_root": "0" * 64, "tensors": {}}}),
            SchemaViolationError,
        ),
        (lambda d: d["base"]["experts"]["low_noise"]["tensors"].update({"a/b": "0" * 64}), SchemaViolationError),
        (lambda d: d["parts"].clear(), SchemaViolationError),
        (lambda d: d["base"]["experts"].pop("low_noise"), MalformedFileError),
        (lambda d: d["schedule"].pop("low_noise"), MalformedFileError),
        (lambda d: d["schedule"]["low_noise"]["calls"].pop(), ShapeMismatchError),
        (lambda d: d["settings"].update(by=["bins"]), MissingTensorError),
        (lambda d: d["settings"].update(keep_inputs=0), UnexpectedTensorError),
        (lambda d: d["settings"].update(keep_inputs=2), ShapeMismatchError),
        (lambda d: d["statistics"].update(size_bytes=1), DigestMismatchError),
        (lambda d: d["statistics"].update(sha256="0" * 64), DigestMismatchError),
    ],
)
def test_edited_documents(change: Callable[[dict[str, Any]], None], error: type[HfqError], copy: Path) -> None:
    document = document_of(copy)
    change(document)
    write_document(copy, document)
    with pytest.raises(error):
        use(copy)


def test_an_edit_without_a_new_id(copy: Path) -> None:
    document = document_of(copy)
    document["settings"]["seed"] = 7
    write_document(copy, document, sign=False)
    with pytest.raises(WrongIdError):
        load_calibration(copy)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", TruncatedFileError),
        (b'{"schema": "hfq.calibration/1"', TruncatedFileError),
        (b"[]", SchemaViolationError),
        (b'{"id": 1, "id": 2}', DuplicateKeyError),
        (b"\xff\xfe", MalformedFileError),
        (b"[" * 100_000, MalformedFileError),
    ],
)
def test_documents_that_are_none(data: bytes, error: type[HfqError], copy: Path) -> None:
    (copy / "calibration.json").write_bytes(data)
    with pytest.raises(error):
        load_calibration(copy)


# --- the folder ------------------------------------------------------------------------------------------------------


def test_missing_and_odd_files(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingPathError):
        load_calibration(tmp_path / "none")
    with pytest.raises(MissingPathError):
        load_calibration(copy / "calibration.json")
    (copy / "statistics.safetensors").unlink()
    with pytest.raises(MissingPathError):
        load_calibration(copy)
    os.mkfifo(copy / "statistics.safetensors")
    with pytest.raises(UnreadableFileError):
        load_calibration(copy)


def test_truncated_statistics(copy: Path) -> None:
    path = copy / "statistics.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TruncatedFileError):
        load_calibration(copy)


def test_changed_bytes(copy: Path) -> None:
    path = copy / "statistics.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 128
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError):
        use(copy)


# --- the statistics --------------------------------------------------------------------------------------------------


def put(name: str, value: Any) -> Callable[[Tensors], None]:
    """Replace one tensor by a value computed from it."""

    def change(tensors: Tensors) -> None:
        tensors[f"{GROUP}/{name}"] = value(tensors[f"{GROUP}/{name}"])

    return change


def with_first(number: float) -> Callable[[Tensor], Tensor]:
    """A tensor's first number replaced."""

    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed.view(-1)[0] = number
        return changed

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.update({"low_noise/../../x/max": torch.zeros(1)}), MalformedFileError),
        (lambda t: t.update({"low_noise/a b/max": torch.zeros(1)}), MalformedFileError),
        (lambda t: t.update({"single/blocks.0.ffn.2/max": torch.zeros(1)}), MalformedFileError),
        (lambda t: t.update({"max": torch.zeros(1)}), MalformedFileError),
        (lambda t: t.update({f"{GROUP}/extra": torch.zeros(1)}), UnexpectedTensorError),
        (lambda t: t.update({f"{GROUP}/histogram/bin9": torch.zeros(1)}), UnexpectedTensorError),
        (lambda t: t.update({f"{GROUP}/inputs/bin9": torch.zeros(1)}), UnexpectedTensorError),
        (lambda t: t.pop(f"{GROUP}/max"), MissingTensorError),
        (lambda t: t.pop(f"{GROUP}/top/all"), MissingTensorError),
        (lambda t: t.pop(f"{GROUP}/digests/bin0"), MissingTensorError),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith(GROUP)], MissingTensorError),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("low_noise")], MissingTensorError),
        (put("max", lambda x: x[:, :-1]), ShapeMismatchError),
        (put("max", lambda x: x.double()), ShapeMismatchError),
        (put("max", lambda x: x[None]), ShapeMismatchError),
        (put("max", lambda x: x[:, :0]), ShapeMismatchError),
        (put("count", lambda x: x.int()), ShapeMismatchError),
        (put("histogram/all", lambda x: x[:, 1:]), ShapeMismatchError),
        (put("digests/bin0", lambda x: x[:-1]), ShapeMismatchError),
        (put("max", with_first(float("nan"))), MalformedFileError),
        (put("max", with_first(float("inf"))), MalformedFileError),
        (put("max", with_first(-1.0)), MalformedFileError),
        (put("max", with_first(1e9)), MalformedFileError),
        (put("sum_squares", with_first(float("nan"))), MalformedFileError),
        (put("sum_squares", with_first(-1.0)), MalformedFileError),
        (put("sum_squares", with_first(1e18)), MalformedFileError),
        (put("count", with_first(0)), MalformedFileError),
        (put("count", with_first(-5)), MalformedFileError),
        (put("histogram/all", with_first(-1)), MalformedFileError),
        (put("histogram/all", with_first(2**31 - 1)), MalformedFileError),
        (put("histogram/all", lambda x: x * 50), MalformedFileError),
        (put("histogram/all", torch.zeros_like), MalformedFileError),
        (put("top/all", with_first(2**31 - 1)), MalformedFileError),
        (put("top/all", with_first(-(2**31))), MalformedFileError),
        (put("top/all", lambda x: x + 6), MalformedFileError),
        (put("inputs/bin0", with_first(float("nan"))), MalformedFileError),
        (put("digests/bin0", lambda x: x.flip(0)), MalformedFileError),
    ],
)
def test_statistics_that_no_run_can_have_made(
    change: Callable[[Tensors], None], error: type[HfqError], copy: Path
) -> None:
    """The document has the digest of these bytes: the numbers themselves are refused."""
    rewrite(copy, change)
    with pytest.raises(error) as caught:
        use(copy)
    assert caught.type in (error, *error.__subclasses__())


def test_the_commands_refuse_them(
    whole: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`convert` and `--merge` end with the error's own code and leave nothing behind."""
    rewrite(whole, put("max", with_first(float("nan"))))
    commands: Mapping[str, list[str]] = {
        "convert": ["convert", str(tiny_weights), "--recipe", "tail-aware-hif4", "--calibration", str(whole)],
        "merge": ["calibrate", "--merge", str(whole)],
    }
    for name, arguments in commands.items():
        assert run([*arguments, "-o", str(tmp_path / name), "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "malformed"
        assert not (tmp_path / name).exists()
    assert not (tmp_path / "merge.partial").exists()


def test_a_base_that_was_not_calibrated(whole: Path, tiny_weights: Path, tmp_path: Path) -> None:
    """Roots and tensor digests copied from elsewhere do not make it another model's calibration."""
    document = document_of(whole)
    tensors = document["base"]["experts"]["low_noise"]["tensors"]
    tensors[sorted(tensors)[0]] = "0" * 64
    write_document(whole, document)
    with hfq.open_checkpoint(tiny_weights) as checkpoint, pytest.raises(HfqError) as caught:
        hfq.quantize(checkpoint, "tail-aware-hif4", whole, out=tmp_path / "delta")
    assert caught.value.code == "calibration-base"
