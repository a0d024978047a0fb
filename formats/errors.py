"""What can be wrong with a tensor handed to this room. Callers translate these into their own errors and exit codes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = [
    "FormatError",
    "InvalidHeadroomError",
    "MalformedTensorError",
    "NonFiniteError",
    "UnknownOptionError",
    "UnknownProfileError",
    "UnsupportedDtypeError",
    "UnsupportedShapeError",
]


class FormatError(ValueError):
    """Base class of every error that `hfq.formats` raises on purpose."""


class UnsupportedDtypeError(FormatError, TypeError):
    """The tensor's dtype is not one that the operation is defined for; nothing is converted silently."""

    def __init__(self, found: torch.dtype, expected: Iterable[torch.dtype]) -> None:
        self.found = found
        self.expected = tuple(expected)
        names = ", ".join(_name(dtype) for dtype in self.expected)
        super().__init__(f"dtype {_name(found)} is not supported here; expected one of {names}")


class UnsupportedShapeError(FormatError):
    """The tensor has no axis to quantize along."""

    def __init__(self) -> None:
        super().__init__("a tensor without axes cannot be quantized; expected at least one axis")


class NonFiniteError(FormatError):
    """A NaN or an infinity in a tensor that must be finite. `position` is its index, `value` the value found."""

    def __init__(self, flat_index: int, shape: Iterable[int], value: float) -> None:
        self.flat_index = flat_index
        self.value = value
        remainder = flat_index
        position: list[int] = []
        for size in reversed(tuple(shape)):
            remainder, index = divmod(remainder, size)
            position.insert(0, index)
        self.position = tuple(position)
        super().__init__(f"value {value} at position {list(self.position)}; expected finite values only")


class MalformedTensorError(FormatError):
    """Stored codes and scales that cannot be what a quantizer of this format wrote."""

    def __init__(self, what: str, *, expected: object, found: object) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        super().__init__(f"{what}: expected {expected}, found {found}")


class UnknownOptionError(FormatError):
    """An argument that takes one of a few words was given another word."""

    def __init__(self, option: str, found: object, known: Iterable[str]) -> None:
        self.option = option
        self.found = found
        self.known = tuple(known)
        super().__init__(f"{option} {found!r} is unknown; expected one of {', '.join(self.known)}")


class UnknownProfileError(UnknownOptionError):
    """No numerics profile has this name."""

    def __init__(self, found: object, known: Iterable[str]) -> None:
        super().__init__("profile", found, known)


class InvalidHeadroomError(FormatError):
    """A headroom that is not a positive finite number in fp32."""

    def __init__(self, found: object) -> None:
        self.found = found
        super().__init__(f"headroom {found!r}: expected a positive number that is finite in fp32")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
