"""Which input rows a calibration keeps: those with the smallest SHA-256 of (seed, prompt, step, branch, row).

The choice does not depend on what else was run, so the rows kept of a merged calibration are exactly those that one run
over all prompts keeps.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Choice", "KeptRows", "RowChooser", "order_of_digests"]

Digests = npt.NDArray[np.uint8]


def order_of_digests(digests: Digests) -> npt.NDArray[np.int64]:
    """Indices that sort uint8 [rows, 32] as big-endian numbers; equal digests stay in their order."""
    words = np.ascontiguousarray(digests).view(">u8")
    return np.lexsort([words[:, column] for column in (3, 2, 1, 0)])


@dataclass(frozen=True)
class Choice:
    """What one call changes in the kept rows of a timestep bin.

    Attributes:
        taken: rows of the call that are kept, int64, rising.
        places: where they go among the rows kept so far, int64: behind them, or where a row is given up.
        order: the place of every row kept now, int64 [kept], by rising digest.
        digests: of the rows kept now, uint8 [kept, 32], rising.
        number: of this choice, unlike that of every other.
    """

    taken: Tensor
    places: Tensor
    order: Tensor
    digests: Digests
    number: int


class KeptRows:
    """The kept rows of one input group and timestep bin while a prompt runs."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self.last: Choice | None = None

    def take(self, x: Tensor, choice: Choice) -> None:
        """Apply a choice to the rows of a call, BF16 [rows, channels]."""
        kept = len(choice.order)
        if self._rows is None or len(self._rows) < kept:
            before, self._rows = self._rows, torch.empty(kept, x.shape[1], dtype=torch.bfloat16)
            if before is not None:
                self._rows[: len(before)] = before
        if len(choice.taken):
            new = x.index_select(0, choice.taken.to(x.device)).cpu()
            self._rows.index_copy_(0, choice.places, new)
        self.last = choice

    def result(self) -> tuple[Tensor, Tensor]:
        """Kept rows BF16 [rows, channels] and their digests uint8 [rows, 32], by rising digest."""
        assert self._rows is not None
        assert self.last is not None
        return self._rows[self.last.order], torch.from_numpy(self.last.digests.copy())


class RowChooser:
    """Chooses rows for all input groups: those with the same row counts so far share every choice.

    Args:
        keep: rows kept per input group and timestep bin.
        seed: of the choice.
    """

    def __init__(self, keep: int, seed: int) -> None:
        self._keep, self._seed = keep, seed
        self._prompt = self._call = ""
        self._digests: Digests = np.empty((0, 32), dtype=np.uint8)
        self._choices: dict[tuple[int, int], Choice] = {}
        self._made = 0

    def begin_prompt(self, prompt_sha256: str) -> None:
        """The next calls belong to this prompt."""
        self._prompt = prompt_sha256

    def begin_call(self, step: int, branch: str) -> None:
        """The next choices are for this call."""
        self._call = f"{self._seed}|{self._prompt}|{step}|{branch}|"
        self._digests = np.empty((0, 32), dtype=np.uint8)
        self._choices = {}

    def choose(self, last: Choice | None, rows: int) -> Choice:
        """The choice among `rows` rows of the current call, after the choice `last`."""
        key = (-1 if last is None else last.number, rows)
        if key not in self._choices:
            self._choices[key] = self._make(last, self._digests_of(rows))
        return self._choices[key]

    def _make(self, last: Choice | None, digests: Digests) -> Choice:
        kept = np.empty((0, 32), dtype=np.uint8) if last is None else last.digests
        places = np.empty(0, dtype=np.int64) if last is None else last.order.numpy()
        candidates = np.arange(len(digests))
        if len(kept) == self._keep:
            # The first eight bytes decide for nearly every row; the sort below decides for the rest.
            limit = int(kept[-1, :8].copy().view(">u8")[0])
            candidates = np.flatnonzero(np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0] <= limit)
        together = np.concatenate([kept, digests[candidates]])
        order = order_of_digests(together)[: self._keep]
        stays = np.zeros(len(together), dtype=np.bool_)
        stays[order] = True
        new = np.flatnonzero(stays[len(kept) :])
        # A row that is kept stays where it is: moving all of them at every call costs more than the statistics.
        free = np.concatenate([places[~stays[: len(kept)]], np.arange(len(kept), len(order))])
        place_of = np.empty(len(together), dtype=np.int64)
        place_of[: len(kept)] = places
        place_of[len(kept) + new] = free
        self._made += 1
        taken, now = torch.from_numpy(candidates[new]), torch.from_numpy(place_of[order])
        return Choice(taken, torch.from_numpy(free), now, together[order], self._made)

    def _digests_of(self, rows: int) -> Digests:
        """Digests of the first rows of the current call; made once, whatever the number of inputs."""
        known = len(self._digests)
        if rows > known:
            prefix = hashlib.sha256(self._call.encode())
            new = bytearray()
            for row in range(known, rows):
                digest = prefix.copy()
                digest.update(b"%d" % row)
                new += digest.digest()
            self._digests = np.concatenate([self._digests, np.frombuffer(new, dtype=np.uint8).reshape(-1, 32)])
        return self._digests[:rows]
