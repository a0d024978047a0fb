"""`python -m hfq.compile_kernels`: compile now what would be compiled at first use, once per machine.

For installations and images: the machine code is kept beside the package or in the user's cache folder, and no later
process waits for it.
"""

from __future__ import annotations

import importlib
from typing import Final

from hfq.formats._compiled import kernels

__all__ = ["compile_kernels"]

_FORMATS: Final = ("rounding_kernels", "hif4_kernels", "hif4_error_kernels", "hif8_kernels")
_OTHERS: Final = ("hfq.convert.statistics_kernels",)


def compile_kernels() -> None:
    """Load every module of kernels, which compiles what is not on disk yet; some seconds on one core, then none."""
    for name in _FORMATS:
        kernels(name)
    for name in _OTHERS:
        importlib.import_module(name)


if __name__ == "__main__":
    compile_kernels()
