"""Real inputs of a graph: the calls of its bin, of both branches, and for a block what the model gives to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hfq
from hfq.convert.graphs.inputs import real_inputs, verification_inputs
from hfq.convert.graphs.origin import Origin
from hfq.convert.graphs.reference import plain_module, sample_inputs
from hfq.convert.graphs.scope import MODEL, Scope
from hfq.convert.kept_calls import ModelCall
from hfq.convert.transformer import build_transformer

ROLE = "high_noise"


@pytest.fixture(scope="module")
def base(small_base: Path) -> Iterator[Any]:
    with hfq.open_checkpoint(small_base) as opened:
        yield opened


@pytest.fixture(scope="module")
def calls(base: Any) -> list[ModelCall]:
    """Two of each branch in bin 0, one in bin 2; BF16 with whole timesteps, as a pipeline passes them."""
    made = sample_inputs(base.experts[ROLE].architecture, MODEL, count=5)
    found = []
    for step, (inputs, (branch, index)) in enumerate(
        zip(made, [("cond", 0), ("cond", 0), ("uncond", 0), ("uncond", 0), ("cond", 2)], strict=True)
    ):
        given: dict[str, Any] = {name: value.bfloat16() for name, value in inputs.items()}
        given["timestep"] = torch.tensor([900 - step])
        found.append(ModelCall(step, 900.0 - step, branch, index, "0" * 64, given))
    return found


def origin(scope: Scope, index: int | None = None) -> Origin:
    return Origin("", "", ROLE, scope, index, "", "", "", {})


def test_a_model_gets_calls_of_its_bin_and_of_both_branches(base: Any, calls: list[ModelCall]) -> None:
    found = real_inputs(origin(MODEL, 0), base, calls)
    assert [float(given["timestep"]) for given in found] == [900.0, 898.0]
    assert {value.dtype for given in found for value in given.values()} == {torch.float32}
    assert [float(given["timestep"]) for given in real_inputs(origin(MODEL, 2), base, calls)] == [896.0]
    assert list(found[0]) == ["hidden_states", "timestep", "encoder_hidden_states"]


def test_a_block_gets_what_the_model_gives_to_it(base: Any, calls: list[ModelCall]) -> None:
    model, _ = build_transformer(base.experts[ROLE], dtype=torch.float32)
    seen: list[tuple[Tensor, Tensor]] = []
    block: Any = model.blocks[1]  # type: ignore[index]
    block.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    found = real_inputs(origin(Scope("block", "1")), base, calls)
    part = plain_module(base, ROLE, Scope("block", "1"))
    with torch.no_grad():
        for call in (calls[0], calls[2]):
            model(**{name: value.float() for name, value in call.inputs.items()})  # type: ignore[union-attr]
        assert len(found) == len(seen) == 2
        for given, (before, after) in zip(found, seen, strict=True):
            assert torch.equal(given["hidden_states"], before)
            # With the other inputs, too, the block alone gives what it gave inside the model.
            assert torch.equal(part(**given), after)


def test_inputs_are_made_up_where_no_call_fits(base: Any, calls: list[ModelCall]) -> None:
    for where, given in ((origin(MODEL, 1), calls), (origin(MODEL), None), (origin(Scope("site", "head.head")), calls)):
        inputs, source = verification_inputs(where, base, given)
        assert source == "made up"
        assert inputs
    assert verification_inputs(origin(MODEL), base, calls)[1] == "calls of a calibration"
