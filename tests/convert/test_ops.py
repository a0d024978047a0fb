"""Every op leaves the linear's output what it was before quantization, alone and in every meaningful chain."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hfq.convert.ops import Op
from hfq.convert.restore import effective_weight, transform_weight
from hfq.convert.site_ops import read_ops
from hfq.convert.site_output import SiteOutput
from hfq.schema.errors import (
    HfqError,
    InconsistentDeltaError,
    MaskValueError,
    MissingTensorError,
    ShapeMismatchError,
    UnexpectedTensorError,
)

N, K, RANK = 96, 256, 8
MASK = {"op": "mask", "tensor": "mask"}
ROTATE = {"op": "rotate", "block": 64, "seed": 3}
COLUMNS = {"op": "columns", "tensor": "columns"}
LOWRANK = {"op": "lowrank", "down": "lowrank_down", "up": "lowrank_up"}
QDQ = {"op": "qdq", "format": "bf16"}

CHAINS: list[list[dict[str, Any]]] = [
    [MASK], [ROTATE], [COLUMNS], [LOWRANK], [MASK, ROTATE], [MASK, COLUMNS], [COLUMNS, MASK], [COLUMNS, ROTATE],
    [MASK, LOWRANK], [ROTATE, LOWRANK], [LOWRANK, ROTATE], [COLUMNS, LOWRANK], [MASK, COLUMNS, ROTATE, LOWRANK],
    [COLUMNS, MASK, LOWRANK, ROTATE],
]  # fmt: skip


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chain(kinds: list[dict[str, Any]], weight: Tensor) -> list[Op]:
    """The ops of a chain, with tensors that fit, bound to the weight."""
    width, built = K, []
    for op in kinds:
        state: dict[str, Tensor] = {}
        if op is MASK:
            state = {"mask": draw((width,), 1).abs() + 0.1}
        elif op is COLUMNS:
            state = {"columns": torch.randperm(width, generator=torch.Generator().manual_seed(2))[:64].sort()[0].int()}
        elif op is LOWRANK:
            state = {
                "lowrank_down": (draw((RANK, width), 4) * 0.1).bfloat16(),
                "lowrank_up": (draw((N, RANK), 5) * 0.1).bfloat16(),
            }
        built += read_ops([op, QDQ], state, (N, width), "here").ops
        width -= 64 if op is COLUMNS else 0
    return built


@pytest.mark.parametrize("kinds", CHAINS, ids=lambda kinds: "-".join(op["op"] for op in kinds))
def test_the_output_is_what_it_was(kinds: list[dict[str, Any]]) -> None:
    weight, x = (draw((N, K), 6) * 0.05).bfloat16(), draw((40, K), 7).bfloat16()
    ops = chain(kinds, weight)
    operand = transform_weight(weight, ops).float()
    expected = x.double().numpy() @ weight.double().numpy().T
    # Not quantized: `bf16` rounds the input of the product, which is all the error that there is.
    found = SiteOutput(ops, operand, {"format": "bf16"}, x).at().double().numpy()
    assert np.abs(found - expected).max() / np.abs(expected).max() < 2**-7
    through = torch.zeros(40, N, dtype=torch.float64)
    now = x.float()
    for op in ops:
        branch = op.branch(now, torch.float32)
        through += 0 if branch is None else branch.double()
        now = op.on_activation(now)
    exact = (through + now.double() @ operand.double().T).numpy()
    # Without that rounding only fp32 steps are left, and BF16 where columns are kept after a mask.
    bound = 2**-7 if MASK in kinds[: kinds.index(COLUMNS) if COLUMNS in kinds else 0] else 1e-5
    assert np.abs(exact - expected).max() / np.abs(expected).max() < bound


@pytest.mark.parametrize("kinds", CHAINS, ids=lambda kinds: "-".join(op["op"] for op in kinds))
def test_the_effective_weight_is_the_weight(kinds: list[dict[str, Any]]) -> None:
    weight = (draw((N, K), 6) * 0.05).bfloat16()
    ops = chain(kinds, weight)
    operand = transform_weight(weight, ops).float()
    whole = effective_weight(operand, ops)
    bound = 2**-8 if MASK in kinds[: kinds.index(COLUMNS) if COLUMNS in kinds else 0] else 1e-5
    assert float((whole - weight.float()).abs().max() / weight.float().abs().max()) < bound
    # Row by row it is the same, bit for bit: the report measures it in pieces.
    rows = slice(32, 64)
    assert torch.equal(effective_weight(operand[rows], ops, rows), whole[rows])


def test_columns_kept_without_a_mask_are_the_bases_bits() -> None:
    weight = (draw((N, K), 6) * 0.05).bfloat16()
    (op,) = chain([COLUMNS], weight)
    x = draw((5, K), 8).bfloat16()
    chosen = op.columns.long()  # type: ignore[union-attr]
    expected = x[:, chosen].double() @ weight[:, chosen].double().T
    assert torch.equal(effective_weight(transform_weight(weight, [op]).float(), [op]), weight.float())
    branch = op.branch(x, torch.float32)
    assert branch is not None
    assert torch.allclose(branch.double(), expected, rtol=1e-5, atol=1e-6)
    assert op.kept_bits() == 16 * 64 * N


def test_ops_keep_their_bits_under_casts_and_copies() -> None:
    weight, x = (draw((N, K), 6) * 0.05).bfloat16(), draw((5, K), 8).bfloat16()
    ops = torch.nn.ModuleList(chain([MASK, COLUMNS, ROTATE, LOWRANK], weight))
    before = SiteOutput(list(ops), transform_weight(weight, list(ops)).float(), {"format": "bf16"}, x).at()  # type: ignore[arg-type]
    assert not ops.state_dict()
    casts = (torch.float16, torch.float32, torch.float64, torch.bfloat16)
    for change in (*(lambda m, dtype=dtype: m.to(dtype) for dtype in casts), copy.deepcopy):
        ops = change(ops)
        after = SiteOutput(list(ops), transform_weight(weight, list(ops)).float(), {"format": "bf16"}, x).at()  # type: ignore[arg-type]
        assert torch.equal(before, after)


def state() -> dict[str, Tensor]:
    return {
        "mask": torch.ones(K),
        "lowrank_down": torch.zeros(RANK, K, dtype=torch.bfloat16),
        "lowrank_up": torch.zeros(N, RANK, dtype=torch.bfloat16),
        "columns": torch.arange(64, dtype=torch.int32),
        "codes": torch.zeros(8, dtype=torch.uint8),
    }


CODES = {"op": "codes", "coding": "difference-zlib", "codes": "codes", "scale": None}
CLIP = {"op": "clip", "edges": [900, 500], "headroom": [1, 1, 1]}


def nan(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("ops", "changes", "error"),
    [
        ([LOWRANK, QDQ], {"lowrank_up": torch.zeros(N, RANK + 1, dtype=torch.bfloat16)}, ShapeMismatchError),
        ([LOWRANK, QDQ], {"lowrank_down": torch.zeros(RANK, K)}, ShapeMismatchError),
        ([LOWRANK, QDQ], {"lowrank_down": nan(torch.zeros(RANK, K, dtype=torch.bfloat16))}, MaskValueError),
        ([LOWRANK, QDQ], {"lowrank_up": None}, MissingTensorError),
        ([LOWRANK, {**LOWRANK, "up": "lowrank_down"}, QDQ], {}, InconsistentDeltaError),
        ([COLUMNS, QDQ], {"columns": torch.tensor([3, 3], dtype=torch.int32)}, InconsistentDeltaError),
        ([COLUMNS, QDQ], {"columns": torch.tensor([5, K], dtype=torch.int32)}, InconsistentDeltaError),
        ([COLUMNS, QDQ], {"columns": torch.tensor([-1, 4], dtype=torch.int32)}, InconsistentDeltaError),
        ([COLUMNS, QDQ], {"columns": torch.zeros(0, dtype=torch.int32)}, InconsistentDeltaError),
        ([COLUMNS, QDQ], {"columns": torch.arange(K, dtype=torch.int32)}, InconsistentDeltaError),
        ([COLUMNS, QDQ], {"columns": torch.arange(4)}, ShapeMismatchError),
        ([COLUMNS, MASK, QDQ], {}, ShapeMismatchError),  # the mask has the width before the columns are taken out
        ([{**ROTATE, "block": 256}, COLUMNS, {**ROTATE, "block": 256}, QDQ], {}, InconsistentDeltaError),
        ([CODES, MASK, QDQ], {}, InconsistentDeltaError),
        ([CLIP, MASK, QDQ], {}, InconsistentDeltaError),
        ([CLIP, CLIP, QDQ], {}, InconsistentDeltaError),
        ([CODES, CODES, QDQ], {}, InconsistentDeltaError),
        ([CLIP, CODES, QDQ], {}, InconsistentDeltaError),
        ([CODES, QDQ, CLIP], {}, InconsistentDeltaError),
        ([CODES, QDQ], {"codes": torch.zeros(2, 4, dtype=torch.uint8)}, ShapeMismatchError),
        ([{**CLIP, "edges": [500, 900]}, QDQ], {}, InconsistentDeltaError),
        ([MASK, QDQ], {"left": torch.zeros(1)}, UnexpectedTensorError),
    ],
)
def test_hostile_ops_are_refused(ops: Any, changes: dict[str, Tensor | None], error: type[HfqError]) -> None:
    needed = {name for op in ops for key in ("tensor", "down", "up", "codes") if (name := op.get(key))}
    given = {name: value for name, value in {**state(), **changes}.items() if value is not None}
    given = {name: value for name, value in given.items() if name in needed or name in changes}
    with pytest.raises(error):
        read_ops(ops, given, (N, K), "here")
