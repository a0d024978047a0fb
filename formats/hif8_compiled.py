"""HiFloat8 by compiled kernels, for tensors on a CPU: the twin of `hif8_eager`, with the same arguments and bits.

Where something must be refused a function returns False and has promised nothing: the eager twin then says what it is.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._compiled import kernels, run_ranges
from ._layout import KEEP, MULTIPLY, action_of, flat, halves_and_words, is_wide, patterns, pieces
from ._operand import Operand
from ._tiles import power_of_two

__all__ = ["decode", "encode", "largest_magnitudes", "measure", "qdq"]


def largest_magnitudes(operand: Operand) -> Tensor:
    """The fp32 patterns of the largest finite magnitude of each row, int32 [rows, 1]."""
    module, matrix = kernels("hif8_kernels"), operand.matrix
    amax = np.zeros(matrix.shape[0], np.uint32)
    for rows, (x,), _ in pieces([matrix], None, 1):
        arguments: tuple[Any, ...] = (
            *halves_and_words(x),
            is_wide(x),
            operand.through_bf16,
            *_mask(operand),
            x.shape[1],
            amax[rows],
        )

        def work(first: int, last: int, arguments: Any = arguments) -> None:
            module.largest(*arguments, first, last, module.new_scratch())

        run_ranges(work, x.shape[0], x.numel())
    return torch.from_numpy(amax.view(np.int32)).unsqueeze(1)


def encode(
    operand: Operand, exponents: Tensor | None, codes: Tensor, saturate: bool, refuse: bool, table: Tensor
) -> bool:
    """See `hif8_eager.encode`; `table` holds the code of every upper half. Returns False for what must be refused."""
    module, table_array, found = kernels("hif8_kernels"), table.numpy(), False
    code_list, columns = flat(codes, np.uint8), codes.shape[1]
    for rows, (x,), _ in pieces([operand.matrix], None, 1):
        own = code_list[rows.start * columns : rows.stop * columns]
        if exponents is None and operand.mask is None and not is_wide(x):
            halves = patterns(x)
            results = run_ranges(
                functools.partial(module.encode_halves, halves, table_array, own), x.numel(), x.numel()
            )
        else:
            inverse, step = _scales(exponents, rows, -1)
            arguments: tuple[Any, ...] = (
                *halves_and_words(x),
                is_wide(x),
                operand.through_bf16,
                *_mask(operand),
                columns,
            )
            arguments += (inverse, step, table_array, own)

            def work(first: int, last: int, arguments: Any = arguments) -> Any:
                return module.encode(*arguments, first, last, module.new_scratch(), module.new_halves())

            results = run_ranges(work, x.shape[0], x.numel())
        found |= any(results)
    return not (found and refuse)


def qdq(operand: Operand, exponents: Tensor | None, out: Tensor, saturate: bool, table: Tensor) -> None:
    """See `hif8_eager.qdq`; `table` holds the value of every upper half, bf16."""
    module, table_array = kernels("hif8_kernels"), patterns(table)
    for rows, (x,), values in pieces([operand.matrix], out, 1):
        assert values is not None
        if exponents is None and operand.mask is None and not is_wide(x) and not is_wide(values):
            part = functools.partial(module.qdq_halves, patterns(x), table_array, patterns(values))
            run_ranges(part, x.numel(), x.numel())
            continue
        inverse, step = _scales(exponents, rows, -1)
        arguments: tuple[Any, ...] = (*halves_and_words(x), is_wide(x), *_mask(operand), x.shape[1], inverse)
        arguments += (_scales(exponents, rows, 1)[0], step, saturate, *halves_and_words(values), is_wide(values))

        def work(first: int, last: int, arguments: Any = arguments) -> None:
            module.qdq(*arguments, first, last, module.new_scratch())

        run_ranges(work, x.shape[0], x.numel())


def decode(codes: Tensor, scale: Tensor, mask: Tensor | None, out: Tensor, table: Tensor) -> None:
    """The values of codes uint8 [rows, K] times scale fp32 [1] or [rows] and mask fp32 [K], into `out` [rows, K].

    Args:
        table: the value of every code, fp32.
    """
    module = kernels("hif8_kernels")
    code_list, columns, scales, step = flat(codes.contiguous(), np.uint8), codes.shape[1], _array(scale), _step(scale)
    for rows, _, values in pieces([], out, 1):
        assert values is not None
        arguments: tuple[Any, ...] = (code_list[rows.start * columns : rows.stop * columns], table.numpy())
        arguments += (scales[rows] if step else scales, step, *_factor(mask), columns)
        arguments += (*halves_and_words(values), is_wide(values))

        def work(first: int, last: int, arguments: Any = arguments) -> None:
            module.decode(*arguments, first, last, module.new_scratch())

        run_ranges(work, values.shape[0], values.numel())


def measure(codes: Tensor, scale: Tensor, mask: Tensor | None, original: Tensor, table: Tensor) -> Any:
    """Sums of squares per row, float64 numpy [2, rows]: of value minus original, of the original [rows, K].

    Args:
        as `decode`.
    """
    module = kernels("hif8_kernels")
    code_list, columns, scales, step = flat(codes.contiguous(), np.uint8), codes.shape[1], _array(scale), _step(scale)
    sums = np.zeros((2, original.shape[0]))
    for rows, (x,), _ in pieces([original], None, 1):
        found = np.zeros((2, x.shape[0]))
        arguments: tuple[Any, ...] = (code_list[rows.start * columns : rows.stop * columns], table.numpy())
        arguments += (scales[rows] if step else scales, step, *_factor(mask), columns)
        arguments += (*halves_and_words(x), is_wide(x), found)

        def work(first: int, last: int, arguments: Any = arguments) -> None:
            module.measure(*arguments, first, last, module.new_scratch(), module.new_scratch(), module.new_doubles())

        run_ranges(work, x.shape[0], x.numel())
        sums[:, rows] = found
    return sums


def _mask(operand: Operand) -> tuple[Any, int]:
    """The mask as an array, and what to do with it."""
    return _factor(operand.mask)[0], action_of(operand)


def _factor(mask: Tensor | None) -> tuple[Any, int]:
    return (np.ones(1, np.float32), KEEP) if mask is None else (mask.contiguous().numpy(), MULTIPLY)


def _scales(exponents: Tensor | None, rows: slice, sign: int) -> tuple[Any, int]:
    """2^(sign * exponent) of these rows, and the step from row to row: 0 where they share one."""
    if exponents is None:
        return np.ones(1, np.float32), 0
    own = exponents[rows] if exponents.shape[0] > 1 else exponents
    return power_of_two(sign * own).reshape(-1).numpy(), _step(exponents)


def _array(scale: Tensor) -> Any:
    return scale.contiguous().reshape(-1).numpy()


def _step(scale: Tensor) -> int:
    return int(scale.shape[0] > 1)
