"""One transformer of a checkpoint, under canonical names, whatever its files call things."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hfq.schema.errors import (
    DuplicateKeyError,
    IndexMismatchError,
    UnsupportedDtypeError,
)

from .architecture import Architecture, Site
from .bf16 import to_bf16, to_finite_bf16
from .derive import derive_architecture
from .foreign import refuse_unsupported
from .identity import Identity
from .layouts import Source, read_index
from .progress import Progress, Silent
from .safetensors_file import SafetensorsFile, TensorEntry
from .scan import Scan, ScanPart
from .side_files import read_object
from .stored_names import canonical_names, is_other_part, refuse_adapted, strip_prefix
from .witness_store import recall

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BASE_DTYPES", "Expert", "StoredTensor", "open_expert"]

_CONFIG_BYTES: Final = 1 << 20

BASE_DTYPES: Final = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is: its safetensors dtype and shape, its file, and its name there."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    file: Path
    stored_name: str


class Expert:
    """One transformer: `high_noise`, `low_noise` or `single`.

    Attributes:
        role: see above.
        role_source: how the role is known, for people: "folder high_noise_model", "--role", ...
        architecture: sizes, from the tensors.
        naming: "original" or "diffusers", the names in the files.
        prefix: what stands before each name in the files, mostly empty.
        names: canonical tensor names, sorted.
        sites: every nn.Linear, in the order of the forward pass.
        files: the safetensors files, sorted by name.
        other_tensors: how many tensors of the files are not the transformer's (all-in-one files).
        allow_non_finite: whether NaN and infinity are read; else `scan` and `read_bf16` refuse them.
    """

    def __init__(self, source: Source, role: str, role_source: str, opened: _Opened) -> None:
        self.role = role
        self.role_source = role_source
        self.layout = source.layout(opened.naming, role, opened.architecture.model_type)
        self.architecture: Architecture = opened.architecture
        self.naming = opened.naming
        self.prefix = opened.prefix
        self.names: tuple[str, ...] = tuple(sorted(opened.places, key=str.encode))
        self.sites: tuple[Site, ...] = opened.architecture.sites()
        self.files: tuple[Path, ...] = tuple(file.path for file in opened.files)
        self.other_tensors = sum(len(file.tensors) for file in opened.files) - len(opened.places)
        self.allow_non_finite = False
        self._source = source
        self._opened = opened
        self._identity: Identity | None = None

    def info(self, name: str) -> StoredTensor:
        """Dtype, shape and place of a tensor, by canonical name.

        Raises:
            KeyError: no such tensor.
        """
        file, entry = self._opened.places[name]
        return StoredTensor(entry.dtype, entry.shape, entry.size_bytes, file.path, entry.name)

    def read(self, name: str) -> Tensor:
        """A tensor as stored (float32, bfloat16 or float16), by canonical name, in memory of its own.

        Raises:
            KeyError: no such tensor.
            TruncatedFileError, UnreadableFileError: the file cannot be read any more.
        """
        file, entry = self._opened.places[name]
        return file.read(entry.name)

    def read_bf16(self, name: str) -> Tensor:
        """A tensor rounded to BF16 (nearest, ties to even; see `hfq.convert.bf16.to_bf16` for NaN), by canonical name.

        Raises:
            NonFiniteWeightError: it holds NaN or infinity then, unless `allow_non_finite`.
            as `read`
        """
        stored = self.read(name)
        return to_bf16(stored) if self.allow_non_finite else to_finite_bf16(stored, f"{self.info(name).file}: {name}")

    def scan(self, progress: Progress | None = None, *, hash_files: bool = True, trust_witness: bool = False) -> Scan:
        """Every tensor once; see `Scan`. With `hash_files` the files' SHA-256 come from the same bytes. With
        `trust_witness` a file that this machine has hashed before, and that has not changed since, is not hashed."""
        return self._scan(progress, hash_files, trust_witness, self.allow_non_finite)

    def _scan(self, progress: Progress | None, hash_files: bool, trust_witness: bool, allow_non_finite: bool) -> Scan:
        parts = []
        for file in self._opened.files:
            names = {entry.name: name for name, (owner, entry) in self._opened.places.items() if owner is file}
            record = recall(file, names) if trust_witness else None
            parts.append(ScanPart(file, self._source.witness_name(file.path), names, record))
        return Scan(
            parts, self.role, progress or Silent(), hash_files, self._remember, allow_non_finite=allow_non_finite
        )

    @property
    def known_root(self) -> str | None:
        """The bf16 root if a scan has finished already, else None: nothing is read."""
        return None if self._identity is None else self._identity.bf16_root

    def identity(self, progress: Progress | None = None) -> Identity:
        """The digests and roots; those of the last finished scan, else every tensor is read now. They say what the
        weights are, and not that they are of any use: NaN has an identity, too."""
        if self._identity is None:
            self._scan(progress, hash_files=False, trust_witness=False, allow_non_finite=True).run()
        assert self._identity is not None
        return self._identity

    def _remember(self, identity: Identity) -> None:
        self._identity = identity

    def file_sizes(self) -> list[tuple[str, int]]:
        """(name relative to the model's folder, bytes) of each file, from the headers' reading."""
        return [(self._source.witness_name(file.path), file.size_bytes) for file in self._opened.files]

    def close(self) -> None:
        """Close the files; reading afterwards is an error."""
        for file in self._opened.files:
            file.close()


@dataclass(frozen=True)
class _Opened:
    files: tuple[SafetensorsFile, ...]
    places: dict[str, tuple[SafetensorsFile, TensorEntry]]
    naming: str
    prefix: str
    architecture: Architecture


def open_expert(source: Source) -> _Opened:
    """Open the files of one transformer and find out what they hold. No tensor is read.

    Raises:
        the errors of `SafetensorsFile`, of `derive_architecture` and of `refuse_unsupported`
        DuplicateKeyError: a tensor in two files.
        IndexMismatchError: the index places a tensor where it is not.
        UnknownLayoutError: not a Wan transformer.
        WrappedNameError: a wrapper's name is inside the tensor names.
        UnexpectedTensorError: a tensor that no Wan transformer has, or names under more than one prefix.
        UnsupportedDtypeError: a dtype that a base cannot have.
    """
    with ExitStack() as stack:
        files = tuple(stack.enter_context(SafetensorsFile(path)) for path in source.files)
        stored = _gather(files)
        if source.index is not None:
            _check_index(source.index, files)
        refuse_adapted(stored, source.where)
        dtypes = {name: entry.dtype for name, (_, entry) in stored.items() if not is_other_part(name)}
        refuse_unsupported(dtypes, source.where)
        prefix, inner = strip_prefix(stored, source.where)
        naming, names = canonical_names(inner, source.where)
        places = {canonical: stored[inner[name]] for canonical, name in names.items()}
        for name, (file, entry) in places.items():
            if entry.dtype not in BASE_DTYPES:
                raise UnsupportedDtypeError(
                    "a dtype that a base cannot have",
                    where=f"{file.path}: {name}",
                    expected=" or ".join(BASE_DTYPES),
                    found=entry.dtype,
                )
        config = None if source.config is None else read_object(source.config, _CONFIG_BYTES)
        shapes = {name: entry.shape for name, (_, entry) in places.items()}
        architecture = derive_architecture(shapes, config, source.where)
        stack.pop_all()
    return _Opened(files, places, naming, prefix, architecture)


_Stored = dict[str, tuple[SafetensorsFile, TensorEntry]]


def _gather(files: Sequence[SafetensorsFile]) -> _Stored:
    stored: _Stored = {}
    for file in files:
        for name, entry in file.tensors.items():
            if name in stored:
                raise DuplicateKeyError(
                    "a tensor in two files", where=f"{file.path}: {name}", found=f"also in {stored[name][0].path.name}"
                )
            stored[name] = (file, entry)
    return stored


def _check_index(index: Path, files: Sequence[SafetensorsFile]) -> None:
    told = read_index(index)
    found = {name: file.path.name for file in files for name in file.tensors}
    for name in sorted(told.keys() | found.keys()):
        if told.get(name) != found.get(name):
            raise IndexMismatchError(
                "the index and the files disagree",
                where=f"{index}: {name}",
                expected=f"{told.get(name, 'nowhere')} (index)",
                found=f"{found.get(name, 'nowhere')} (files)",
                todo="download the checkpoint again",
            )
