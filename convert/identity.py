"""What a checkpoint is, whatever its files look like: two digests per tensor, two roots per expert.

The bf16 root is the same for an F32 release and its BF16 copy, in any layout and sharding; a delta is bound to it. The
exact root is of the bytes as stored, and is a witness only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["SAME_WEIGHTS", "FileWitness", "Identity", "TensorDigest", "bf16_root_of", "exact_root_of", "same_weights",
           "shape_text"]  # fmt: skip


@dataclass(frozen=True)
class TensorDigest:
    """One tensor: its safetensors dtype and shape as stored, and two hex SHA-256.

    `exact` is of the bytes as stored, `bf16` of the little-endian bytes of the values rounded to BF16; for a BF16
    tensor they are equal.
    """

    dtype: str
    shape: tuple[int, ...]
    exact: str
    bf16: str


@dataclass(frozen=True)
class FileWitness:
    """One file: `name` is relative to the model's folder, with forward slashes. `trusted` says that the hash was looked
    up and not computed from the bytes in this run."""

    name: str
    size_bytes: int
    sha256: str
    trusted: bool = False


@dataclass(frozen=True)
class Identity:
    """The identity of one expert. `tensors` maps canonical names to digests, sorted by name."""

    bf16_root: str
    exact_root: str
    tensors: Mapping[str, TensorDigest]

    @classmethod
    def of(cls, tensors: Mapping[str, TensorDigest]) -> Identity:
        """The identity of these tensors, named canonically."""
        ordered = {name: tensors[name] for name in sorted(tensors, key=str.encode)}
        bf16 = bf16_root_of((name, entry.shape, entry.bf16) for name, entry in ordered.items())
        exact = exact_root_of((name, entry.dtype, entry.shape, entry.exact) for name, entry in ordered.items())
        return cls(bf16, exact, ordered)


SAME_WEIGHTS: Final = "both experts hold the same weights: one of them was probably downloaded twice"


def shape_text(shape: tuple[int, ...]) -> str:
    """`5120,5120`; the empty string for a scalar."""
    return ",".join(str(extent) for extent in shape)


def bf16_root_of(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """SHA-256 over the sorted lines `name<TAB>shape<TAB>digest`, joined by LF without a final one."""
    return _root(f"{name}\t{shape_text(shape)}\t{digest}" for name, shape, digest in tensors)


def exact_root_of(tensors: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """SHA-256 over the sorted lines `name<TAB>dtype<TAB>shape<TAB>digest`, joined by LF without a final one."""
    return _root(f"{name}\t{dtype}\t{shape_text(shape)}\t{digest}" for name, dtype, shape, digest in tensors)


def _root(lines: Iterable[str]) -> str:
    return hashlib.sha256(b"\n".join(sorted(line.encode() for line in lines))).hexdigest()


def same_weights(roots: Iterable[str | None]) -> list[str]:
    """A warning, in a list, when two experts hold the same weights. `roots` are their bf16 roots, None where nobody has
    read the expert."""
    found = list(roots)
    return [SAME_WEIGHTS] if len(found) == 2 and found[0] is not None and found[0] == found[1] else []
