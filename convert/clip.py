"""Clip: a headroom on the group maximum of activations, per site and timestep bin.

HiFloat4 takes a group's scale from its maximum; a headroom h multiplies that maximum first (step 2 of the format).
Which h serves best changes along the denoising run, so that a table has one per timestep bin of the expert. A bin is
found from the timestep that the transformer's own forward is called with, by the stored edges: another schedule still
maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfq.schema.errors import InconsistentDeltaError, UsageError

from .schedule import bin_of

__all__ = ["BINS", "Clip", "TimestepClock", "unused_clip_lines", "unused_clips"]

BINS = 3


@dataclass(frozen=True)
class Clip:
    """A site's clip table.

    Attributes:
        edges: descending timesteps between the bins.
        headroom: factor of the group maximum, per bin.
    """

    edges: tuple[float, float]
    headroom: tuple[float, float, float]

    @classmethod
    def from_op(cls, op: Mapping[str, Any], where: str) -> Clip:
        """Read the op of a delta that its schema accepts.

        Raises:
            InconsistentDeltaError: edges that do not fall.
        """
        early, late = (float(edge) for edge in op["edges"])
        if early < late:
            raise InconsistentDeltaError("the edges of the timestep bins do not fall", where=where, found=op["edges"])
        first, second, third = (float(value) for value in op["headroom"])
        return cls((early, late), (first, second, third))


_RUNNING: ContextVar[tuple[tuple[TimestepClock, int | None], ...]] = ContextVar("hfq_running_forwards", default=())
"""The forwards that run in this thread or task, outermost first: clock and timestep bin. Never of another thread."""


class TimestepClock:
    """Tells the quantized linears of one transformer which timestep bin the forward that calls them is in.

    Install it on the transformer; from then on every call of the transformer sets it, and nobody else has to. Any
    number of forwards may run at once, in threads or tasks or one inside another: each has its own bin.

    Args:
        role: expert, for messages.
        edges: descending timesteps between the bins.

    Attributes:
        consulted: (site, bin) that any forward has asked for since `reset`.
    """

    def __init__(self, role: str, edges: Sequence[float]) -> None:
        self.role, self.edges = role, tuple(edges)
        self.consulted: set[tuple[str, int]] = set()

    def install(self, transformer: nn.Module) -> None:
        """Hook the transformer's forward; works for diffusers' and for the original Wan module."""
        transformer.register_forward_pre_hook(_Start(self), with_kwargs=True, prepend=True)
        transformer.register_forward_hook(_Stop(self), always_call=True)

    def start(self, timestep: Tensor | float | None) -> None:
        """Begin a forward at a timestep: a number, one per clip [B], or one per token [B, tokens].

        A forward that is refused has begun all the same: torch ends it like one that fails.

        Raises:
            UsageError: there is no timestep, or the clips of a batch are in different bins.
        """
        around = _RUNNING.get()
        _RUNNING.set((*around, (self, None)))
        if timestep is None:
            raise UsageError("the transformer was called without a timestep", where=self.role)
        _RUNNING.set((*around, (self, self._bin_of(timestep))))

    def _bin_of(self, timestep: Tensor | float) -> int:
        values = torch.as_tensor(timestep).detach().double().cpu()
        # Tokens of a given first frame have t = 0; the clip's own timestep is the largest.
        clips = values.reshape(-1, values.shape[-1]).amax(dim=1) if values.ndim > 1 else values.reshape(-1)
        bins = {bin_of(float(t), self.edges) for t in clips}
        if len(bins) != 1:
            raise UsageError(
                "the clips of one batch are in different timestep bins",
                where=self.role,
                found=", ".join(f"t = {float(t):g}" for t in clips[:8]),
                todo="run clips of different timesteps one by one",
            )
        return bins.pop()

    def stop(self) -> None:
        """End the innermost forward of this transformer."""
        running = _RUNNING.get()
        for index in reversed(range(len(running))):
            if running[index][0] is self:
                _RUNNING.set(running[:index] + running[index + 1 :])
                return

    def consult(self, site: str) -> int:
        """The bin of the innermost forward, for one site.

        Raises:
            UsageError: no forward of the transformer is running in this thread.
        """
        found = next((index for clock, index in reversed(_RUNNING.get()) if clock is self), None)
        if found is None:
            raise UsageError(
                "the clip of this linear depends on the timestep",
                where=f"{self.role} {site}",
                todo="call the transformer, not the linear by itself, and the linear in the transformer's own thread",
            )
        self.consulted.add((site, found))
        return found

    def reset(self) -> None:
        """Forget what was consulted."""
        self.consulted.clear()


class _Start:
    """The hook before a forward; a class, so that a copied transformer drives its own copy of the clock."""

    def __init__(self, clock: TimestepClock) -> None:
        self.clock = clock

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # diffusers: forward(hidden_states, timestep, ...); original Wan: forward(x, t, context, seq_len).
        given = [kwargs[name] for name in ("timestep", "t") if name in kwargs]
        self.clock.start(given[0] if given else args[1] if len(args) > 1 else None)


class _Stop:
    """The hook after a forward, whether or not it failed."""

    def __init__(self, clock: TimestepClock) -> None:
        self.clock = clock

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.clock.stop()


def clocks_of(target: Any) -> list[tuple[TimestepClock, list[str]]]:
    """The clocks of a pipeline or transformer, each with the sites that have a clip.

    Raises:
        UsageError: no delta was applied to it.
    """
    whole = [target, *(getattr(target, name, None) for name in ("transformer", "transformer_2"))]
    modules = [module for part in whole if isinstance(part, nn.Module) for module in part.modules()]
    # A quantized linear has a clock, or None for a clock when it has no clip.
    quantized = [module for module in modules if hasattr(module, "clock")]
    if not quantized:
        what, todo = "no delta was applied to this", "put one on it first: hfq.apply(target, delta)"
        raise UsageError(what, found=type(target).__name__, todo=todo)
    found: dict[int, tuple[TimestepClock, list[str]]] = {}
    for module in quantized:
        if isinstance(module.clock, TimestepClock):
            found.setdefault(id(module.clock), (module.clock, []))[1].append(str(module.site))
    return list(found.values())


def unused_clips(target: Any, *, reset: bool = False) -> list[tuple[str, str, int]]:
    """Clip entries that no forward has consulted since the delta was applied or since the last reset.

    Args:
        target: a pipeline or transformer that a delta was applied to.
        reset: begin counting anew, for the next run.

    Returns:
        (role, site, bin), in the order of the model; empty when every entry was used, or the delta has none.

    Raises:
        UsageError: no delta was applied to the target.
    """
    unused = []
    for clock, sites in clocks_of(target):
        unused += [
            (clock.role, site, index) for site in sites for index in range(BINS) if (site, index) not in clock.consulted
        ]
        if reset:
            clock.reset()
    return unused


def unused_clip_lines(unused: Sequence[tuple[str, str, int]]) -> list[str]:
    """The result of `unused_clips` in words, one line per expert and bin."""
    counts: dict[tuple[str, int], int] = {}
    for role, _, index in unused:
        counts[role, index] = counts.get((role, index), 0) + 1
    return [
        f"{count} clip entries of {role} for timestep bin {index} were never consulted: no step of this run was in it"
        for (role, index), count in counts.items()
    ]
