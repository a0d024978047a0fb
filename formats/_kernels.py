"""What compiled kernels are written with: how they are compiled, and fp32 numbers as bit patterns.

Imported by kernel modules alone, so that nothing pays for numba before a kernel runs. Kernels compute with numba's IEEE
arithmetic: no `fastmath`, so no product is contracted into a fused multiply-add and no sum is reordered. Loops run over
whole chunks and over flat arrays, which is what LLVM turns into vector instructions.

A kernel's machine code is kept on disk under the name, size and time of its own file, and under a digest of all that
kernels are made of: numba does not see a change of a part that lies in another file.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import numba
import numpy as np
from numba import types

__all__ = ["bits_of", "float_of", "inlined", "kernel", "round_bits_to_bf16"]

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: Final = {"nogil": True, "error_model": "numpy", "boundscheck": False}


def kernel(signature: Any) -> Callable[[Function], Function]:
    """Compile for this signature, or load what an earlier process compiled; the GIL is released inside.

    The code is kept in `__pycache__` beside the source, else in the user's cache folder (or in NUMBA_CACHE_DIR). Where
    nothing can be written, or what lies there is damaged, it is compiled in every process.
    """

    def build(function: Function) -> Function:
        function.__qualname__ += f"_{_sources()}"  # part of the name that the code is kept under
        try:
            compiled: Function = numba.njit([signature], cache=True, **_OPTIONS)(function)
        except (
            Exception
        ):  # no folder that numba may write to, or a damaged file in it; a kernel's own error comes again
            compiled = numba.njit([signature], **_OPTIONS)(function)
        return compiled

    return build


@functools.cache
def _sources() -> str:
    """A digest of the files that kernels and their parts are in."""
    digest, here = hashlib.sha256(), Path(__file__).parent
    for pattern in ("*_kernels.py", "*_runs.py", "*_spec.py", "_layout.py"):
        for path in sorted(here.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def inlined(function: Function) -> Function:
    """A part of kernels: compiled when one of them is, and kept with it."""
    part: Function = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)
    return part


VOID: Final = types.void
BOOLEAN: Final = types.boolean
FLOAT: Final = types.float32
INTEGER: Final = types.int64
BYTES: Final = types.uint8[::1]
HALVES: Final = types.uint16[::1]
WORDS: Final = types.uint32[::1]
RUNS: Final = types.uint64[::1]
FLOATS: Final = types.float32[::1]
WORD_ROWS: Final = types.uint32[:, ::1]
FLOAT_ROWS: Final = types.float32[:, ::1]
DOUBLES: Final = types.float64[::1]
DOUBLE_ROWS: Final = types.float64[:, ::1]

# Arithmetic of two uint32 numbers gives uint64 in numba: results are cut back by `U32(...)`, constants are typed.
U32: Final = np.uint32
U64: Final = np.uint64
F32: Final = np.float32
F64: Final = np.float64
ONE: Final = np.uint32(1)
HALF: Final = np.uint32(16)  # bits of a bf16 pattern
UPPER_HALF: Final = np.uint32(0xFFFF_0000)
MAGNITUDE: Final = np.uint32(0x7FFF_FFFF)
SIGN: Final = np.uint32(0x8000_0000)
INFINITY: Final = np.uint32(0x7F80_0000)
NAN: Final = np.uint32(0x7FC0_0000)
WORD: Final = np.uint64(32)  # bits of an fp32 pattern


@inlined
def float_of(bits: Any) -> Any:
    """The fp32 value of a pattern."""
    return np.uint32(bits).view(np.float32)


@inlined
def bits_of(value: Any) -> Any:
    """The pattern of an fp32 value."""
    return np.float32(value).view(np.uint32)


@inlined
def round_bits_to_bf16(bits: Any) -> Any:
    """An fp32 pattern rounded to bf16, nearest even, as an fp32 pattern; for numbers, infinities and NaN 7FC00000."""
    return U32(bits + U32(0x7FFF) + ((bits >> HALF) & ONE)) & UPPER_HALF
