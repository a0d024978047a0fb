"""Kept rows are those with the smallest digests, whatever came before them and whoever shares the choice."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from hfq.convert.kept_rows import KeptRows, RowChooser

STEPS = 6


def input_of(group: int, step: int, rows: int) -> Tensor:
    """Other numbers in every row."""
    generator = torch.Generator().manual_seed(100 * group + step)
    return torch.randn(rows, 5, generator=generator).bfloat16()


def kept_of(counts: list[list[int]], keep: int) -> list[tuple[Tensor, Tensor]]:
    """Kept rows of groups with `counts[group][step]` rows per call, whose calls take turns."""
    chooser, groups = RowChooser(keep, 3), [KeptRows() for _ in counts]
    chooser.begin_prompt("p")
    for step in range(STEPS):
        chooser.begin_call(step, "cond")
        for group, rows in enumerate(groups):
            x = input_of(group, step, counts[group][step])
            rows.take(x, chooser.choose(rows.last, len(x)))
    return [rows.result() for rows in groups]


@pytest.mark.parametrize("keep", [1, 7, 40, 1000])
def test_the_smallest_digests(keep: int) -> None:
    """Against a sort of all rows: groups that share every choice, one that has few rows, one whose rows vary."""
    counts = [[30] * STEPS, [30] * STEPS, [1] * STEPS, [2, 50, 1, 9, 30, 4]]
    for group, (rows, digests) in enumerate(kept_of(counts, keep)):
        every = sorted(
            (hashlib.sha256(f"3|p|{step}|cond|{row}".encode()).digest(), x)
            for step in range(STEPS)
            for row, x in enumerate(input_of(group, step, counts[group][step]).tolist())
        )[:keep]
        assert rows.tolist() == [x for _, x in every]
        assert [bytes(digest) for digest in digests.tolist()] == [digest for digest, _ in every]


def test_a_call_that_changes_nothing() -> None:
    """None of its rows is taken: the rows kept before stay as they are."""
    chooser, rows = RowChooser(1, 0), KeptRows()
    chooser.begin_prompt("p")
    kept = []
    for step in range(STEPS):
        chooser.begin_call(step, "cond")
        choice = chooser.choose(rows.last, 1)
        rows.take(torch.full((1, 2), step).bfloat16(), choice)
        kept.append((len(choice.taken), int(rows.result()[0][0, 0])))
    digests = [hashlib.sha256(f"0|p|{step}|cond|0".encode()).digest() for step in range(STEPS)]
    best = [min(range(step + 1), key=lambda index: digests[index]) for step in range(STEPS)]
    assert [value for _, value in kept] == best
    assert [taken for taken, _ in kept] == [int(best[step] == step) for step in range(STEPS)]
    assert 0 in [taken for taken, _ in kept]
