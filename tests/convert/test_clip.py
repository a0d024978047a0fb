"""Clip: the clock that tells the timestep bin, and the choice of headrooms."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hfq.convert.clip import Clip, TimestepClock, unused_clip_lines, unused_clips
from hfq.convert.clip_choice import choose_headrooms, error_at
from hfq.schema.errors import InconsistentDeltaError, UsageError

EDGES = (900.0, 500.0)


class Listener(nn.Module):
    """Stands for a quantized linear with a clip."""

    def __init__(self, clock: TimestepClock, site: str) -> None:
        super().__init__()
        self.clock, self.site = clock, site
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.clock.consult(self.site))
        return x


class DiffusersLike(nn.Module):
    def __init__(self, *listeners: Listener) -> None:
        super().__init__()
        self.layers = nn.ModuleList(listeners)

    def forward(self, hidden_states: Tensor, timestep: Tensor, fail: bool = False) -> Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        if fail:
            raise RuntimeError("inside the model")
        return hidden_states


class OriginalLike(DiffusersLike):
    def forward(self, x: Tensor, t: Tensor, context: Any = None, seq_len: int = 0) -> Tensor:  # type: ignore[override]
        return super().forward(x, t)


def made(kind: type[DiffusersLike] = DiffusersLike) -> tuple[DiffusersLike, TimestepClock]:
    clock = TimestepClock("high_noise", EDGES)
    model = kind(Listener(clock, "blocks.0.ffn.0"), Listener(clock, "blocks.0.ffn.2"))
    clock.install(model)
    return model, clock


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("timestep", "index"),
    [
        (torch.tensor([999.0, 950.0]), 0),
        (torch.tensor([900.0]), 0),
        (torch.tensor([899.9]), 1),
        (torch.tensor(500), 1),
        (torch.tensor([499]), 2),
        # Tokens of a first frame that was given have t = 0.
        (torch.tensor([[0.0, 0.0, 999.0, 999.0]]), 0),
        (torch.tensor([[0.0, 700.0], [0.0, 650.0]]), 1),
    ],
)
def test_the_bin_follows_the_models_own_timestep(timestep: Tensor, index: int) -> None:
    model, _ = made()
    model(X, timestep=timestep)
    model(X, timestep)
    original, _ = made(OriginalLike)
    original(X, timestep)
    original(X, t=timestep)
    for found in (model, original):
        assert [layer.seen for layer in found.layers] == [[index, index]] * 2


def test_clips_of_one_batch_in_different_bins_are_refused() -> None:
    model, _ = made()
    with pytest.raises(UsageError, match=r"different timestep bins.*999"):
        model(X, timestep=torch.tensor([999.0, 100.0]))


def test_a_linear_by_itself_does_not_guess() -> None:
    model, _ = made()
    with pytest.raises(UsageError, match="call the transformer"):
        model.layers[0](X)
    with pytest.raises(RuntimeError, match="inside the model"):
        model(X, timestep=torch.tensor(700.0), fail=True)
    # A forward that failed is over, too.
    with pytest.raises(UsageError, match="call the transformer"):
        model.layers[0](X)


def test_a_copy_has_a_clock_of_its_own() -> None:
    model, clock = made()
    copied = copy.deepcopy(model)
    copied(X, timestep=torch.tensor(100.0))
    assert [layer.seen for layer in copied.layers] == [[2], [2]]
    assert clock.consulted == set()


def test_entries_that_were_never_consulted_are_named() -> None:
    model, _ = made()
    model(X, timestep=torch.tensor(950.0))
    model(X, timestep=torch.tensor(600.0))
    sites = ("blocks.0.ffn.0", "blocks.0.ffn.2")
    assert unused_clips(model, reset=True) == [("high_noise", site, 2) for site in sites]
    lines = unused_clip_lines([("high_noise", site, 2) for site in sites])
    assert len(lines) == 1
    assert lines[0].startswith("2 clip entries of high_noise for timestep bin 2")
    model(X, timestep=torch.tensor(100.0))
    assert unused_clips(model) == [("high_noise", site, index) for site in sites for index in (0, 1)]
    for nothing in (nn.Linear(2, 2), 3):
        with pytest.raises(UsageError, match="no delta was applied"):
            unused_clips(nothing)


def test_a_bin_without_steps_has_equal_edges() -> None:
    op = {"op": "clip", "edges": [500, 500], "headroom": [1.1, 1.0, 0.95]}
    assert Clip.from_op(op, "here").edges == (500.0, 500.0)


def test_edges_fall() -> None:
    op = {"op": "clip", "edges": [900, 500], "headroom": [1.1, 1.0, 0.95]}
    assert Clip.from_op(op, "here") == Clip((900.0, 500.0), (1.1, 1.0, 0.95))
    with pytest.raises(InconsistentDeltaError, match="do not fall"):
        Clip.from_op({**op, "edges": [500, 900]}, "here")


CANDIDATES = [1.1, 1.0, 0.9]


def search(errors: list[list[float]], powers: list[float]) -> dict[str, Any]:
    return {"candidates": CANDIDATES, "errors": errors, "powers": powers}


def test_scopes_choose_what_brute_force_chooses() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        found = {
            role: search(rng.random((3, 3)).tolist(), (rng.random(3) + 0.1).tolist())
            for role in ("high_noise", "low_noise")
        }
        by_bin = choose_headrooms(found, "bin")
        by_expert = choose_headrooms(found, "expert")
        both = choose_headrooms(found, "global")
        total = np.zeros(3)
        for role, entry in found.items():
            errors = np.asarray(entry["errors"])
            assert by_bin[role] == [CANDIDATES[i] for i in errors.argmin(axis=1)]
            assert by_expert[role] == [CANDIDATES[int(errors.sum(axis=0).argmin())]] * 3
            total += errors.sum(axis=0) / sum(entry["powers"])
            # A finer choice is never worse on what it was chosen from.
            at = [error_at(entry, headroom[role])[0] for headroom in (by_bin, by_expert, both)]
            assert at[0] <= at[1] + 1e-12
            assert at[1] <= at[2] + 1e-12
        assert set(both["high_noise"] + both["low_noise"]) == {CANDIDATES[int(total.argmin())]}


def test_a_bin_without_rows_gets_the_experts_choice_and_ties_stay_near_one() -> None:
    found = choose_headrooms({"single": search([[1, 2, 3], [0, 0, 0], [3, 2, 1.5]], [1.0, 0.0, 1.0])}, "bin")
    assert found["single"] == [1.1, 1.0, 0.9]
    tie = choose_headrooms({"single": search([[1, 1, 1]] * 3, [1.0] * 3)}, "bin")
    assert tie["single"] == [1.0] * 3
