"""One pass over an expert: every byte of its files read once, hashed and rounded on the way.

Two ways to go through it. Iterating gives one tensor after another, in file order, in memory of its own. `run` and
`each` use all threads, for digests alone or for work that does not care about the order; the results do not depend on
the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

import numpy as np

from . import scan_parts
from .finite import NonFinite, non_finite_error, non_finite_line
from .hub_cache import blob_digest, check_blob
from .identity import FileWitness, Identity, TensorDigest
from .progress import Progress
from .safetensors_file import SafetensorsFile, TensorEntry
from .scan_parts import FilePass, TensorPass
from .scan_pass import Pass
from .scan_reader import ScannedTensor, TensorReader
from .threads import single_thread, thread_count
from .witness_store import FileRecord, remember

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RowWork", "Scan", "ScanPart", "ScannedTensor"]

_Result = TypeVar("_Result")
_Made = TypeVar("_Made", covariant=True)


@dataclass(frozen=True)
class ScanPart:
    """One file of the pass.

    Attributes:
        file: open.
        witness_name: for the witness.
        names: stored name -> canonical name of the tensors that belong to the expert.
        record: what this machine found in this very file before, and is trusted now; None: its bytes are hashed.
    """

    file: SafetensorsFile
    witness_name: str
    names: Mapping[str, str]
    record: FileRecord | None = None


class RowWork(Protocol[_Made]):
    """Work on one tensor that needs a few rows at a time. An error of `feed` ends the pass; `end` may raise, too."""

    def feed(self, rows: Tensor) -> None:
        """The next rows in BF16 [n, ...]; valid until it returns. On any thread, one call after another."""

    def end(self, tensor: ScannedTensor) -> _Made:
        """All rows are done. `tensor.bf16` is empty."""


class Scan(Iterator[ScannedTensor]):
    """The iterator that `Expert.scan` returns. After its last tensor, `identity`, `witnesses` and `non_finite` are
    there.

    A read that comes back short, an I/O error or a file that changes under the pass ends it with an error, and so does
    a value that is not a finite number, unless it is allowed: then it is noted, and said at the end. A file in the
    Hub's cache is hashed whenever its bytes are read, and compared with its name. A pass that ended early has no
    identity.
    """

    def __init__(
        self,
        parts: Sequence[ScanPart],
        role: str,
        progress: Progress,
        hash_files: bool,
        remember: Callable[[Identity], None],
        *,
        allow_non_finite: bool = False,
    ) -> None:
        self._parts = parts
        self._role = role
        self._label = f"reading {role}"
        self._progress = progress
        self._hash_files = hash_files
        self._remember = remember
        self._allow_non_finite = allow_non_finite
        self._non_finite: dict[str, NonFinite] = {}
        self._identity: Identity | None = None
        self._witnesses: list[FileWitness] = []
        self._steps = self._iterate()
        self._is_begun = False

    def __next__(self) -> ScannedTensor:
        self._is_begun = True
        return next(self._steps)

    @property
    def finished(self) -> bool:
        """Whether every tensor has been read."""
        return self._identity is not None

    @property
    def identity(self) -> Identity:
        """The expert's identity.

        Raises:
            RuntimeError: before the last tensor.
        """
        if self._identity is None:
            raise RuntimeError("the identity is known when every tensor has been read")
        return self._identity

    @property
    def witnesses(self) -> tuple[FileWitness, ...]:
        """Size and SHA-256 of each file, in the order of their names; empty with `hash_files=False`.

        Raises:
            RuntimeError: before the last tensor.
        """
        if self._identity is None:
            raise RuntimeError("the file hashes are known when every tensor has been read")
        return tuple(self._witnesses)

    @property
    def non_finite(self) -> Mapping[str, NonFinite]:
        """Canonical name -> what the tensor holds that is no finite number, of tensors that do, sorted by name.

        Raises:
            RuntimeError: before the last tensor.
        """
        if self._identity is None:
            raise RuntimeError("what is not finite is known when every tensor has been read")
        return self._non_finite

    def run(self) -> Identity:
        """Read what is left, keep nothing of it but the digests, and return the identity."""
        if self._is_begun:
            for _ in self:
                pass
        else:
            self._go(None)
        return self.identity

    def each(
        self,
        work: Callable[[ScannedTensor], _Result],
        *,
        begin: Callable[[str, tuple[int, ...]], RowWork[_Result] | None] | None = None,
        cost: Callable[[str], int] | None = None,
        memory_bytes: int = 0,
    ) -> list[_Result]:
        """Do something with every tensor, on `thread_count()` threads, and return the results in file order.

        Args:
            work: called once per tensor, on any thread and in any order; `bf16` is valid until it returns. torch
                computes on one thread in it.
            begin: called for every tensor, by canonical name and shape, before anything is read; returns work on rows
                in place of `work`, or None. Rows of more than 4 MB are not divided: their tensors go to `work`.
            cost: canonical name -> bytes that `work` takes beside the tensor.
            memory_bytes: what the costs of calls that run at one time may add up to; one alone may be larger.

        Raises:
            RuntimeError: the pass has begun already.
            The error of the first tensor in file order that has one: from `work`, or from reading.
        """
        if self._is_begun:
            raise RuntimeError("this pass has begun already")
        # Imported where a tensor is made: `run` does without torch, whose import takes longer than a gigabyte's hash.
        import torch

        row_works: dict[str, RowWork[_Result]] = {}

        def divide(item: TensorPass) -> None:
            if begin is None or not 0 < item.row_bytes <= scan_parts.FED_BYTES:
                return
            made = begin(item.name, item.entry.shape)
            if made is not None:
                row_works[item.name] = made
                shape = (-1, *item.entry.shape[1:])
                item.feed = lambda bits: made.feed(torch.from_numpy(bits).view(torch.bfloat16).reshape(shape))
                item.users = 1  # the work

        def call(item: TensorPass) -> _Result:
            assert item.digest is not None
            digest, made = item.digest, row_works.pop(item.name, None)
            bits = np.empty(0, np.uint16) if item.values is None else item.values
            values = torch.from_numpy(bits).view(torch.bfloat16).reshape(-1 if made is not None else item.entry.shape)
            tensor = ScannedTensor(item.name, digest.dtype, digest.shape, digest.exact, digest.bf16, values)
            return work(tensor) if made is None else made.end(tensor)

        threads = thread_count()
        with single_thread():
            costs = None if cost is None else lambda item: 0 if item.feed is not None else cost(item.name)
            tensors = self._go(call, threads, costs, memory_bytes, divide)
        return [tensor.result for tensor in tensors]

    def close(self) -> None:
        """Give the pass up; nothing more comes."""
        self._is_begun = True
        self._steps.close()

    def _go(
        self,
        work: Callable[[TensorPass], object] | None,
        threads: int | None = None,
        cost: Callable[[TensorPass], int] | None = None,
        memory_bytes: int = 0,
        divide: Callable[[TensorPass], None] | None = None,
    ) -> list[TensorPass]:
        """Go through everything on all threads; returns the tensors in file order."""
        self.close()
        self._check_records()
        files = [self._file_pass(index, part) for index, part in enumerate(self._parts)]
        if divide is not None:
            for tensor in (tensor for part in files for tensor in part.tensors):
                divide(tensor)
        made = Pass(files, threads or thread_count(), work, cost, memory_bytes)
        self._progress.start(self._label, made.total_bytes, "B")
        try:
            made.run(self._progress)
        finally:
            self._progress.finish()
        tensors = [tensor for part in files for tensor in part.tensors]
        digests = {tensor.name: tensor.digest for tensor in tensors if tensor.digest is not None}
        self._non_finite = {tensor.name: tensor.non_finite for tensor in tensors if tensor.non_finite is not None}
        self._end(digests, [part.sha256 for part in files])
        return tensors

    def _file_pass(self, index: int, part: ScanPart) -> FilePass:
        tensors = []
        for entry in part.file.tensors.values():
            name = part.names.get(entry.name)
            if name is not None:
                known = None if part.record is None else part.record.tensors[entry.name]
                made = TensorPass(name, entry, (index, entry.begin), known, refuse=self._refusal(part, name))
                made.non_finite = None if part.record is None else part.record.non_finite.get(entry.name)
                tensors.append(made)
        return FilePass(part.file, tensors, self._is_hashed(part))

    def _is_hashed(self, part: ScanPart) -> bool:
        return part.record is None and (self._hash_files or blob_digest(part.file.path) is not None)

    def _refusal(self, part: ScanPart, name: str) -> Callable[[NonFinite], None] | None:
        """What is done when a tensor's first NaN or infinity has been found; None: nothing."""
        return None if self._allow_non_finite else lambda found: _refuse(part.file, name, found)

    def _check_records(self) -> None:
        """Hold what is trusted to the same rules as what is read."""
        for part in self._parts:
            if part.record is None:
                continue
            check_blob(part.file.path, part.record.sha256)
            for stored, found in part.record.non_finite.items():
                if stored in part.names and not self._allow_non_finite:
                    _refuse(part.file, part.names[stored], found)

    def _end(self, digests: Mapping[str, TensorDigest], hashes: Sequence[str | None]) -> None:
        """Set what is known at the end, and remember the hashes that this machine has computed."""
        for part, sha256 in zip(self._parts, hashes, strict=True):
            if sha256 is not None:
                check_blob(part.file.path, sha256)
                tensors = {stored: digests[name] for stored, name in part.names.items()}
                found = {
                    stored: self._non_finite[name] for stored, name in part.names.items() if name in self._non_finite
                }
                remember(part.file, FileRecord(sha256, tensors, found))
            if self._hash_files:
                whole = sha256 if part.record is None else part.record.sha256
                assert whole is not None
                trusted = part.record is not None
                self._witnesses.append(FileWitness(part.witness_name, part.file.size_bytes, whole, trusted))
        self._non_finite = dict(sorted(self._non_finite.items()))
        if self._non_finite:
            self._progress.note(f"warning: {non_finite_line(self._role, self._non_finite)}")
        self._identity = Identity.of(digests)
        self._remember(self._identity)

    def _iterate(self) -> Generator[ScannedTensor, None, None]:
        digests: dict[str, TensorDigest] = {}
        hashes: list[str | None] = []
        self._check_records()
        total = sum(part.file.size_bytes for part in self._parts)
        self._progress.start(self._label, total, "B")
        try:
            with ThreadPoolExecutor(2, thread_name_prefix="hfq-hash") as pool:
                reader = TensorReader(pool)
                for part in self._parts:
                    reader.begin_file(part.file, part.record, hashed=self._is_hashed(part))
                    self._progress.advance(part.file.header_bytes)
                    for entry in part.file.tensors.values():
                        name = part.names.get(entry.name)
                        if name is None:
                            reader.pass_over(entry)
                        else:
                            scanned = self._read(reader, part, entry, name)
                            digests[name] = TensorDigest(
                                entry.dtype, entry.shape, scanned.exact_sha256, scanned.bf16_sha256
                            )
                            yield scanned
                            del scanned  # the consumer decides how long a tensor lives
                        self._progress.advance(entry.size_bytes)
                    part.file.check_unchanged()
                    hashes.append(reader.file_sha256())
        finally:
            self._progress.finish()
        self._end(digests, hashes)

    def _read(self, reader: TensorReader, part: ScanPart, entry: TensorEntry, name: str) -> ScannedTensor:
        scanned, found = reader.read(entry, name)
        if part.record is not None:
            found = part.record.non_finite.get(entry.name)
        if found is not None:
            if not self._allow_non_finite:
                _refuse(part.file, name, found)
            self._non_finite[name] = found
        return scanned


def _refuse(file: SafetensorsFile, name: str, found: NonFinite) -> NoReturn:
    """Refuse a tensor.

    Raises:
        BlobDigestError: the whole file is not what the Hub's cache says: that is why.
        NonFiniteWeightError
    """
    if blob_digest(file.path) is not None:
        check_blob(file.path, file.sha256())
    raise non_finite_error(f"{file.path}: {name}", found)
