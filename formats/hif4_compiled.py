"""HiFloat4 by compiled kernels, for tensors on a CPU: the twin of `hif4_eager`, with the same arguments and bits.

Where something must be refused a function returns False and has promised nothing: the eager twin then says what it is.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np
from torch import Tensor

from ._compiled import kernels, run_ranges
from ._layout import KEEP, MULTIPLY, action_of, flat, is_wide, mask_runs, pieces, runs
from ._operand import Operand
from .hif4_spec import E6M2_NAN, GROUP, Rules

__all__ = ["decode", "encode", "encode_under", "measure", "qdq"]

RUNS: Final = GROUP // 4  # runs of four codes, two bytes each, in a group


def encode(operand: Operand, rules: Rules, codes: Tensor, words: Tensor, scale_search: bool) -> bool:
    """See `hif4_eager.encode`. Returns False for a number that must be refused."""
    return _encode(operand, rules, codes, words, "search" if scale_search else "rule")


def encode_under(operand: Operand, rules: Rules, codes: Tensor, words: Tensor) -> bool:
    """See `hif4_eager.encode_under`. Returns False for a number or a scale word that must be refused."""
    words = words.contiguous()
    if bool(((words & E6M2_NAN) == E6M2_NAN).any()):
        return False
    return _encode(operand, rules, codes, words, "given")


def _encode(operand: Operand, rules: Rules, codes: Tensor, words: Tensor, scale: str) -> bool:
    """Under the scale of the rule, of a search, or given by `words`."""
    module, searched = kernels("hif4_kernels"), scale == "search"
    function = kernels("hif4_error_kernels").encode_searching if searched else module.encode
    groups = words.shape[1]
    code_runs, word_list = flat(codes, np.uint16), flat(words, np.uint32)
    options = _options(operand, rules, groups) if searched else (*_options(operand, rules, groups), scale == "given")
    found = False
    for rows, (x,), _ in pieces([operand.matrix], None, GROUP):
        own = slice(rows.start * groups, rows.stop * groups)
        arguments: tuple[Any, ...] = (runs(x), is_wide(x), operand.through_bf16, *options, *_numerics(rules))
        arguments += (word_list[own], code_runs[own.start * RUNS : own.stop * RUNS])

        def work(first: int, last: int, arguments: Any = arguments) -> Any:
            scratch = module.new_scratch()
            if searched:
                scratch += (kernels("hif4_error_kernels").new_doubles(),)
            return function(*arguments, first, last, *scratch)

        found |= any(run_ranges(work, own.stop - own.start, x.numel()))
    return not (found and rules.nonfinite == "refuse")


def qdq(operand: Operand, rules: Rules, out: Tensor) -> bool:
    """See `hif4_eager.qdq`. Returns False for a number that must be refused."""
    module = kernels("hif4_kernels")
    options = _options(operand, rules, -(-out.shape[1] // GROUP))
    found = False
    for _, (x,), values in pieces([operand.matrix], out, GROUP):
        assert values is not None
        arguments: tuple[Any, ...] = (runs(x), is_wide(x), *options, *_numerics(rules), runs(values), is_wide(values))

        def work(first: int, last: int, arguments: Any = arguments) -> Any:
            return module.qdq(*arguments, first, last, *_own_scratch())

        found |= any(run_ranges(work, x.numel() // GROUP, x.numel()))
    return not (found and rules.nonfinite == "refuse")


_OWN: Final = threading.local()


def _own_scratch() -> Any:
    """This thread's scratch: making one takes as long as a small activation. Every kernel fills what it reads."""
    if not hasattr(_OWN, "scratch"):
        _OWN.scratch = kernels("hif4_kernels").new_scratch()
    return _OWN.scratch


def _options(operand: Operand, rules: Rules, groups: int) -> tuple[Any, ...]:
    """Mask, what to do with it, headroom, and whether infinity counts as NaN."""
    mask = mask_runs(operand.mask, groups)
    return mask, action_of(operand), np.float32(rules.headroom), rules.nonfinite != "propagate"


def _numerics(rules: Rules) -> tuple[bool, bool, bool]:
    profile = rules.profile
    return profile.tests_in_bf16, profile.element_in_bf16, profile.ties_to_even


def decode(codes: Tensor, words: Tensor, mask: Tensor | None, out: Tensor) -> None:
    """The values of codes uint8 [rows, 32 groups] under scale words uint32 [rows, groups], into `out` [rows, K].

    Args:
        mask: fp32 [K]; values are multiplied by it in fp32.
    """
    module, groups = kernels("hif4_kernels"), words.shape[1]
    code_runs, word_list = flat(codes.contiguous(), np.uint16), flat(words.contiguous(), np.uint32)
    options = (mask_runs(mask, groups), KEEP if mask is None else MULTIPLY)
    for rows, _, values in pieces([], out, GROUP):
        assert values is not None
        own = slice(rows.start * groups, rows.stop * groups)
        arguments: tuple[Any, ...] = (word_list[own], code_runs[own.start * RUNS : own.stop * RUNS], *options)
        arguments += (runs(values), is_wide(values))

        def work(first: int, last: int, arguments: Any = arguments) -> None:
            module.decode(*arguments, first, last, module.new_scratch()[0])

        run_ranges(work, own.stop - own.start, values.numel())


def measure(codes: Tensor, words: Tensor, mask: Tensor | None, original: Tensor) -> Any:
    """Sums of squares per row, float64 numpy [2, rows]: of value minus original, of the original [rows, K]."""
    module, errors = kernels("hif4_kernels"), kernels("hif4_error_kernels")
    groups = words.shape[1]
    code_runs, word_list = flat(codes.contiguous(), np.uint16), flat(words.contiguous(), np.uint32)
    options = (mask_runs(mask, groups), KEEP if mask is None else MULTIPLY)
    sums = np.zeros((2, original.shape[0]))
    for rows, (x,), _ in pieces([original], None, GROUP):
        own = slice(rows.start * groups, rows.stop * groups)
        found = np.zeros((2, x.shape[0]))
        arguments: tuple[Any, ...] = (word_list[own], code_runs[own.start * RUNS : own.stop * RUNS], *options)
        arguments += (runs(x), is_wide(x), groups, found)

        def work(first: int, last: int, arguments: Any = arguments) -> None:
            scratch = module.new_scratch()[0]
            errors.measure(*arguments, first, last, scratch, np.zeros_like(scratch), errors.new_sums())

        run_ranges(work, x.shape[0], x.numel())
        sums[:, rows] = found
    return sums
