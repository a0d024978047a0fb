"""Number formats and their bytes: HiFloat4, HiFloat8, and two formats to compare them with.

Tensors in, tensors out. This room knows no file, no model and no registry.
"""

from . import hif4, hif8, mxfp4, nvfp4
from ._compiled import expect
from .errors import (
    FormatError,
    InvalidHeadroomError,
    MalformedTensorError,
    NonFiniteError,
    UnknownOptionError,
    UnknownProfileError,
    UnsupportedDtypeError,
    UnsupportedShapeError,
)
from .hif4_bytes import Hif4Tensor
from .hif8_bytes import Hif8Tensor

__all__ = [
    "FormatError",
    "Hif4Tensor",
    "Hif8Tensor",
    "InvalidHeadroomError",
    "MalformedTensorError",
    "NonFiniteError",
    "UnknownOptionError",
    "UnknownProfileError",
    "UnsupportedDtypeError",
    "UnsupportedShapeError",
    "expect",
    "hif4",
    "hif8",
    "mxfp4",
    "nvfp4",
]
