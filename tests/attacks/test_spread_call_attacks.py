"""Calls kept for an analysis that no run can have kept: each is refused before any number of it is used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forging import Tensors, edit_document, rewrite_tensors
from tiny_pipelines import TINY_PROMPTS

from hfq.convert.calibrate import CalibrationOptions, calibrate_model
from hfq.convert.calibration import load_calibration
from hfq.convert.kept_calls import CallKey
from hfq.convert.pipelines import LoadedModel
from hfq.convert.prompts import Prompt
from hfq.convert.schedule import Call
from hfq.schema.errors import (
    CalibrationBaseError,
    DigestMismatchError,
    HfqError,
    MalformedFileError,
    MissingPathError,
    MissingTensorError,
    SchemaViolationError,
    ShapeMismatchError,
    UnexpectedTensorError,
    UnknownSchemaVersionError,
    UnreadableFileError,
    WrongIdError,
)


@pytest.fixture(scope="module")
def small(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts, two steps per expert, three calls of each branch kept."""
    made = tmp_path_factory.mktemp("small") / "cal"
    settings = tiny_model.defaults.changed(steps=4, height=8, width=8, frames=3)
    prompts = [Prompt(text) for text in TINY_PROMPTS]
    calibrate_model(tiny_model, prompts, made, settings, CalibrationOptions(keep_calls=1))[0].close()
    return made


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    shutil.copytree(small, tmp_path / "copy")
    return tmp_path / "copy"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_document(folder / "calls.json", change)


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    rewrite_tensors(folder / "calls.safetensors", folder / "calls.json", "tensors", change)


def use(folder: Path) -> None:
    with load_calibration(folder) as found:
        found.verify_bytes()
        for role in found.roles:
            found.calls(role)


def test_the_untouched_copy_is_fine(copy: Path) -> None:
    rewrite(copy, lambda tensors: None)
    use(copy)


def low(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["experts"]["low_noise"]
    return found


def other_branch(document: dict[str, Any]) -> None:
    """One branch of two pairs instead of both of one."""
    low(document)[1].update(low(document)[0])


def another(document: dict[str, Any], prompt: str) -> dict[str, Any]:
    entry = low(document)[0]
    return CallKey.of_step(42, prompt, Call(entry["step"], 0.0, entry["branch"], 0)).to_json()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.update(keep=0), SchemaViolationError),
        (lambda d: d.update(schema="hfq.calls/2"), UnknownSchemaVersionError),
        (lambda d: d.update(more=1), SchemaViolationError),
        (lambda d: low(d)[0].update(prompt="../x"), SchemaViolationError),
        (lambda d: low(d).clear(), SchemaViolationError),
        (lambda d: d.update(calibration="0" * 64), CalibrationBaseError),
        (lambda d: d["experts"].pop("low_noise"), MalformedFileError),
        (lambda d: d.update(keep=2), MalformedFileError),
        (lambda d: low(d)[0].update(digest="0" * 64), MalformedFileError),
        (lambda d: low(d)[0].update(step=99), MalformedFileError),
        (lambda d: low(d)[0].update(another(d, "0" * 64)), MalformedFileError),
        (lambda d: low(d).reverse(), MalformedFileError),
        (lambda d: low(d).pop(), MalformedFileError),
        (other_branch, MalformedFileError),
        (lambda d: d["tensors"].update(size_bytes=1), DigestMismatchError),
        (lambda d: d["tensors"].update(sha256="0" * 64), DigestMismatchError),
    ],
)
def test_edited_documents(change: Callable[[dict[str, Any]], object], error: type[HfqError], copy: Path) -> None:
    edit(copy, change)
    with pytest.raises(error) as caught:
        use(copy)
    assert caught.type is error


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.pop("low_noise/calls/1/timestep"), MissingTensorError),
        (lambda t: t.update({"low_noise/calls/1/more": torch.zeros(2)}), ShapeMismatchError),
        (lambda t: t.update({"low_noise/calls/99/timestep": torch.zeros(1)}), UnexpectedTensorError),
        (lambda t: t.update({"low_noise/head.head/max": torch.zeros(1)}), UnexpectedTensorError),
        (lambda t: t["low_noise/calls/1/hidden_states"].fill_(float("nan")), MalformedFileError),
        (lambda t: t["low_noise/calls/1/timestep"].add_(1), MalformedFileError),
    ],
)
def test_tensors_that_no_run_can_have_made(
    change: Callable[[Tensors], object], error: type[HfqError], copy: Path
) -> None:
    """The document has the digest of these bytes: names, shapes and numbers themselves are refused."""
    rewrite(copy, change)
    with pytest.raises(error) as caught:
        use(copy)
    assert caught.type is error


@pytest.mark.parametrize("name", ["calls.json", "calls.safetensors"])
def test_half_of_them(name: str, copy: Path) -> None:
    """One file without the other is named; neither is a calibration without such calls."""
    (copy / name).unlink()
    with pytest.raises(MissingPathError, match=name):
        load_calibration(copy)
    os.mkfifo(copy / name)
    with pytest.raises(UnreadableFileError):
        load_calibration(copy)
    for file in ("calls.json", "calls.safetensors"):
        (copy / file).unlink()
    with load_calibration(copy) as found:
        assert found.calls("low_noise") == []


def test_a_changed_document_has_another_id(copy: Path) -> None:
    text = (copy / "calls.json").read_text()
    (copy / "calls.json").write_text(text.replace('"keep":1', '"keep":2'))
    with pytest.raises(WrongIdError):
        load_calibration(copy)
