"""Kept model calls that no run can have made: each is refused before any number of it is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forging import Tensors, edit_document, rewrite_tensors
from tiny_pipelines import TINY_PROMPTS
from torch import Tensor

from hfq.convert.calibrate import CalibrationOptions, calibrate_model
from hfq.convert.calibration import load_calibration
from hfq.convert.kept_calls import CallKey, flatten
from hfq.convert.pipelines import LoadedModel
from hfq.convert.prompts import Prompt
from hfq.convert.schedule import Call
from hfq.schema.errors import (
    HfqError,
    MalformedFileError,
    MissingTensorError,
    SchemaViolationError,
    ShapeMismatchError,
    UnexpectedTensorError,
)

PROMPTS = (*TINY_PROMPTS, "a green cross moving left over a black background")
"""One of three calls is kept."""


@pytest.fixture(scope="module")
def small(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calls that go with kept rows and the statistics of one input: it takes no time to write."""
    made = tmp_path_factory.mktemp("small") / "cal"
    settings, prompts = (
        tiny_model.defaults.changed(steps=4, height=8, width=8, frames=3),
        [Prompt(text) for text in PROMPTS],
    )
    calibrate_model(tiny_model, prompts, made, settings, CalibrationOptions(keep_inputs=1, keep_calls=1))[0].close()
    for name in ("calls.json", "calls.safetensors"):
        (made / name).unlink()
    rewrite(made, lambda t: [t.pop(name) for name in list(t) if "/head.head/" not in name and "/calls/" not in name])
    return made


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    shutil.copytree(small, tmp_path / "copy")
    return tmp_path / "copy"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_document(folder / "calibration.json", change)


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    rewrite_tensors(folder / "statistics.safetensors", folder / "calibration.json", "statistics", change)


def use(folder: Path) -> None:
    with load_calibration(folder) as found:
        found.verify_bytes()
        for role in found.roles:
            found.calls(role)
            found.sampled_calls(role)


def test_the_untouched_copy_is_fine(copy: Path) -> None:
    rewrite(copy, lambda tensors: None)
    use(copy)


def low(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["calls"]["low_noise"]
    return found


def another(document: dict[str, Any], prompt: str) -> dict[str, Any]:
    """A call of another prompt, whose digest is right."""
    entry = low(document)[0]
    key = CallKey.of(document["settings"]["seed"], prompt, Call(entry["step"], 0.0, entry["branch"], 0))
    return key.to_json()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d["settings"].update(keep_calls=0), SchemaViolationError),
        (lambda d: d["settings"].update(keep_calls=1001), SchemaViolationError),
        (lambda d: low(d)[0].update(bin=0), SchemaViolationError),
        (lambda d: low(d)[0].pop("digest"), SchemaViolationError),
        (lambda d: low(d)[0].update(prompt="../x"), SchemaViolationError),
        (lambda d: d["calls"].update(other=[]), SchemaViolationError),
        (lambda d: low(d).clear(), SchemaViolationError),
        (lambda d: d.pop("calls"), MalformedFileError),
        (lambda d: d["settings"].pop("keep_calls"), MalformedFileError),
        (lambda d: d["calls"].pop("low_noise"), MalformedFileError),
        (lambda d: d["settings"].update(keep_calls=2), MalformedFileError),
        (lambda d: d["settings"].update(keep_calls=3), MalformedFileError),
        (lambda d: d["settings"].update(seed=7), MalformedFileError),
        (lambda d: low(d)[0].update(digest="0" * 64), MalformedFileError),
        (lambda d: low(d)[0].update(step=99), MalformedFileError),
        (lambda d: low(d)[0].update(another(d, "0" * 64)), MalformedFileError),
        (lambda d: low(d).reverse(), MalformedFileError),
        (lambda d: low(d).insert(1, low(d)[0]), MalformedFileError),
        (lambda d: low(d).pop(), MalformedFileError),
    ],
)
def test_edited_documents(change: Callable[[dict[str, Any]], object], error: type[HfqError], copy: Path) -> None:
    edit(copy, change)
    with pytest.raises(error) as caught:
        use(copy)
    assert caught.type is error


def put(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"low_noise/calls/1/{name}"] = value(tensors[f"low_noise/calls/1/{name}"])

    return change


def add(name: str, *shape: int) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def with_first(number: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x.clone().index_put_((torch.tensor(0),) * x.ndim, torch.tensor(number, dtype=x.dtype))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.pop("low_noise/calls/1/hidden_states"), MissingTensorError),
        (lambda t: t.pop("low_noise/calls/1/timestep"), MissingTensorError),
        (lambda t: t.pop("low_noise/calls/1/encoder_hidden_states"), MissingTensorError),
        (add("low_noise/calls/1/parts/1", 2), MissingTensorError),
        (add("low_noise/calls/1/timestep/0", 1), MissingTensorError),
        (add("low_noise/calls/1/more", 2), ShapeMismatchError),
        (add("low_noise/calls/1/encoder_hidden_states_image", 2), ShapeMismatchError),
        (add("low_noise/calls/1/more", 1, 1, 1, 1, 1, 1, 1), ShapeMismatchError),
        (add("low_noise/calls/1/../../x", 2), MalformedFileError),
        (add("low_noise/calls/1/a b", 2), MalformedFileError),
        (add("low_noise/calls/1/", 2), MalformedFileError),
        (add("low_noise/calls/1/parts/00", 2), MalformedFileError),
        (add("low_noise/calls/99/hidden_states", 2), UnexpectedTensorError),
        (add("low_noise/calls/01/hidden_states", 2), UnexpectedTensorError),
        (add("low_noise/calls", 2), UnexpectedTensorError),
        (add("single/calls/0/hidden_states", 2), MalformedFileError),
        (put("hidden_states", lambda x: x[0]), ShapeMismatchError),
        (put("hidden_states", lambda x: x[:, :0]), ShapeMismatchError),
        (put("hidden_states", lambda x: x > 0), ShapeMismatchError),
        (put("hidden_states", lambda x: x.float()), ShapeMismatchError),
        (put("hidden_states", lambda x: torch.cat([x, x])), ShapeMismatchError),
        (put("hidden_states", with_first(float("nan"))), MalformedFileError),
        (put("encoder_hidden_states", with_first(float("inf"))), MalformedFileError),
        (put("timestep", lambda x: x + 1), MalformedFileError),
    ],
)
def test_tensors_that_no_run_can_have_made(
    change: Callable[[Tensors], None], error: type[HfqError], copy: Path
) -> None:
    """The document has the digest of these bytes: names, shapes and numbers themselves are refused."""
    rewrite(copy, change)
    with pytest.raises(error) as caught:
        use(copy)
    assert caught.type is error


def test_lengths_may_differ(copy: Path) -> None:
    """Text of another length is an honest call."""
    rewrite(copy, put("encoder_hidden_states", lambda x: x[:, :2]))
    with load_calibration(copy) as found:
        lengths = {flatten(call.inputs)["encoder_hidden_states"].shape[1] for call in found.sampled_calls("low_noise")}
    assert lengths == {2, 4}
