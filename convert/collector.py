"""Collecting activation statistics from a running pipeline with forward hooks.

Linears that read the same tensor share one set of statistics; they are grouped by name, never by memory address,
because an allocator reuses addresses. Every input is cast to BF16 first, exactly as the quantizer will do at run time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from hfq.schema.errors import NonFiniteActivationError, UsageError

from .accumulator import Accumulator
from .group_statistics import GroupStatistics, RunStatistics
from .kept_calls import CallKeeper, flatten
from .kept_rows import KeptRows, RowChooser
from .schedule import BRANCHES, Call, ExpertSchedule, histogram_key

__all__ = ["Collector", "GroupInput"]

_MOST_WAITING_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class GroupInput:
    """One input group of one expert: where to listen.

    Attributes:
        role, group: names in the calibration.
        module: the linear whose input is observed.
    """

    role: str
    group: str
    module: nn.Linear


class Collector:
    """Hooks on a pipeline's transformers; one prompt at a time.

    Args:
        transformers: role -> transformer of the pipeline.
        inputs: the input groups, in the order of the forward pass.
        schedules: role -> calls of one run.
        timesteps: t of every step of the run, in order.
        rows: rows per call that enter the histogram, or None for all.
        by: extra histogram keys: "bins", "branch".
        keep_inputs: rows kept per input group and timestep bin.
        keep_calls: a third of the whole forwards kept per expert and guidance branch, spread over its steps.
        sampled_calls: whole forwards kept per expert, timestep bin and branch.
        seed: of the selection of kept rows and calls.
        on_call: called after every forward of a transformer.
    """

    def __init__(
        self,
        transformers: Mapping[str, nn.Module],
        inputs: Sequence[GroupInput],
        schedules: Mapping[str, ExpertSchedule],
        timesteps: Sequence[float],
        *,
        rows: int | None,
        by: Collection[str],
        keep_inputs: int,
        keep_calls: int,
        seed: int,
        sampled_calls: int = 0,
        on_call: Callable[[], None],
    ) -> None:
        self._transformers, self._inputs, self._schedules = dict(transformers), list(inputs), dict(schedules)
        self._timesteps, self._rows, self._by = list(timesteps), rows, frozenset(by)
        self._on_call = on_call
        self._index_of = {
            role: {(call.step, call.branch): index for index, call in enumerate(schedule.calls)}
            for role, schedule in schedules.items()
        }
        self._chooser = RowChooser(keep_inputs, seed) if keep_inputs else None
        kept = keep_calls or sampled_calls
        self._keeper = CallKeeper(keep_calls, sampled_calls, seed, schedules) if kept else None
        self._groups: dict[tuple[str, str], Accumulator] = {}
        self._kept: dict[tuple[str, str, int], KeptRows] = {}
        self._branch: str | None = None
        self._step = -1
        self._index = 0
        self._call: Call | None = None
        self._waiting_bytes = 0
        self.seconds = 0.0
        """Time spent on statistics since the collector was made."""

    @contextlib.contextmanager
    def attached(self) -> Iterator[Collector]:
        """Install the hooks; they are gone when the block ends, however it ends."""
        with contextlib.ExitStack() as stack:
            for role, transformer in self._transformers.items():
                before = transformer.register_forward_pre_hook(self._before_model(role), with_kwargs=True, prepend=True)
                stack.callback(before.remove)
                stack.callback(transformer.register_forward_hook(self._after_model(role)).remove)
                stack.enter_context(self._listening_to_branch(transformer))
            for entry in self._inputs:
                stack.callback(entry.module.register_forward_pre_hook(self._before_linear(entry)).remove)
            yield self

    def begin(self, prompt_sha256: str) -> None:
        """Forget everything and start the run of one prompt."""
        self._groups, self._kept, self._waiting_bytes = {}, {}, 0
        self._step, self._call = -1, None
        if self._chooser is not None:
            self._chooser.begin_prompt(prompt_sha256)
        if self._keeper is not None:
            self._keeper.begin_prompt(prompt_sha256)

    def settle(self) -> None:
        """Work on everything that waits, so that `seconds` is of all that was seen."""
        with self._timed(next(self._inputs[0].module.parameters()).device):
            self._flush()

    def finish(self) -> RunStatistics:
        """Statistics and kept calls of the run.

        Raises:
            UsageError: the pipeline did not run its whole schedule, or went round a linear.
            NonFiniteActivationError
        """
        if self._step != len(self._timesteps) - 1:
            raise UsageError(
                "the pipeline did not run its whole schedule",
                expected=f"{len(self._timesteps)} steps",
                found=self._step + 1,
            )
        started = time.perf_counter()
        try:
            self._flush()
            for role in self._transformers:
                self._check_finite(role, range(len(self._schedules[role].calls)))
            result = {}
            for entry in self._inputs:
                group = self._groups.get((entry.role, entry.group))
                if group is None or not bool(group.statistics.count.all()):
                    raise UsageError(
                        "a linear that did not run in every call",
                        where=f"{entry.role} {entry.group}",
                        todo="calibrate the model as it was released: no fused projections, no step caching",
                    )
                result[entry.role, entry.group] = self._on_cpu(entry, group.statistics)
            if self._keeper is None:
                return RunStatistics(result)
            return RunStatistics(result, self._keeper.sampled(), self._keeper.spread())
        finally:
            self.seconds += time.perf_counter() - started

    def _on_cpu(self, entry: GroupInput, found: GroupStatistics) -> GroupStatistics:
        found.max, found.sum_squares = found.max.cpu(), found.sum_squares.cpu()
        for histogram in found.histograms.values():
            histogram.counts, histogram.top = histogram.counts.cpu(), histogram.top.cpu()
        for timestep_bin in range(3):
            # Taken away: putting the rows in order copies them, and all of them twice would be gigabytes.
            kept = self._kept.pop((entry.role, entry.group, timestep_bin), None)
            if kept is not None:
                found.inputs[timestep_bin], found.digests[timestep_bin] = kept.result()
        return found

    def _check_finite(self, role: str, calls: Sequence[int]) -> None:
        """Name the first input, in the order of the run, that is not finite or whose squares overflow."""
        bad: list[tuple[int, int]] = []
        for order, entry in enumerate(self._inputs):
            group = self._groups.get((entry.role, entry.group))
            if entry.role != role or group is None:
                continue
            found = group.statistics
            wrong = ~(torch.isfinite(found.max).all(dim=1) & torch.isfinite(found.sum_squares).all(dim=1)).cpu()
            bad += [(call, order) for call in calls if bool(wrong[call])]
        if bad:
            index, order = min(bad)
            self._refuse(role, self._inputs[order].group, self._schedules[role].calls[index])

    def _refuse(self, role: str, what: str, call: Call) -> None:
        raise NonFiniteActivationError(
            "the model produced NaN, infinity or numbers above 1e19",
            where=f"{role} {what}, step {call.step} ({call.branch})",
            todo="check the checkpoint, or run it in float32 (--dtype float32)",
        )

    @contextlib.contextmanager
    def _listening_to_branch(self, transformer: nn.Module) -> Iterator[None]:
        """Pipelines name the guidance branch of a forward to `transformer.cache_context`, and nowhere else."""
        original: Any = transformer.cache_context
        own = transformer.__dict__.get("cache_context")

        @contextlib.contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
            self._branch = name
            try:
                with original(name, *args, **kwargs) as value:
                    yield value
            finally:
                self._branch = None

        transformer.__dict__["cache_context"] = cache_context
        try:
            yield
        finally:
            transformer.__dict__.pop("cache_context", None)
            if own is not None:
                transformer.__dict__["cache_context"] = own

    def _before_model(self, role: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # One number per clip, or one per token where a first frame is given: that frame's tokens have t = 0.
            t = float((kwargs["timestep"] if "timestep" in kwargs else args[1]).max())
            if self._branch not in BRANCHES:
                raise UsageError("the pipeline does not say which guidance branch it runs", found=self._branch)
            if self._branch == BRANCHES[0]:
                self._step += 1
            index = self._index_of[role].get((self._step, self._branch))
            if index is None or abs(t - self._timesteps[self._step]) > 1e-3:
                raise UsageError("the pipeline left its schedule", where=f"{role}, step {self._step}", found=f"t = {t}")
            self._index, self._call = index, self._schedules[role].calls[index]
            if self._chooser is not None:
                self._chooser.begin_call(self._step, self._branch)
            if self._keeper is not None and self._keeper.wants(role, self._call):
                self._keep_call(self._keeper, role, self._call, module, args, kwargs)

        return before

    def _keep_call(
        self,
        keeper: CallKeeper,
        role: str,
        call: Call,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        with self._timed(hidden_states.device):
            inputs = flatten(keeper.take(role, call, module, args, kwargs))
        for name, value in inputs.items():
            if not bool(torch.isfinite(value).all()):
                self._refuse(role, f"input {name}", call)

    def _after_model(self, role: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call, self._call = self._call, None
            sample = output[0] if isinstance(output, tuple) else output.sample
            if call is not None and not bool(torch.isfinite(sample).all()):
                self._flush()
                self._check_finite(role, [self._index])
                self._refuse(role, "output", call)
            self._on_call()

        return after

    def _before_linear(self, entry: GroupInput) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._call is not None:
                with self._timed(args[0].device):
                    self._observe(entry, args[0], self._call)

        return before

    @torch.no_grad()
    def _observe(self, entry: GroupInput, observed: Tensor, call: Call) -> None:
        x = observed.detach().reshape(-1, observed.shape[-1]).to(torch.bfloat16)
        group = self._groups.get((entry.role, entry.group))
        if group is None:
            group = Accumulator(len(self._schedules[entry.role].calls), x.shape[1], self._rows, x.device)
            self._groups[entry.role, entry.group] = group
        self._waiting_bytes += group.add(x, self._index, histogram_key(call, self._by))
        if self._waiting_bytes > _MOST_WAITING_BYTES:
            self._flush()
        if self._chooser is not None:
            kept = self._kept.setdefault((entry.role, entry.group, call.bin), KeptRows())
            kept.take(x, self._chooser.choose(kept.last, x.shape[0]))

    def _flush(self) -> None:
        for group in self._groups.values():
            group.flush()
        self._waiting_bytes = 0

    @contextlib.contextmanager
    def _timed(self, device: torch.device) -> Iterator[None]:
        """Count the block as time for statistics; on a GPU, work that was queued before it must not count."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds += time.perf_counter() - started
