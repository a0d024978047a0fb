"""Which forwards of a transformer a calibration keeps whole.

There are two choices. *Spread* calls are what an analysis measures on: per expert, steps evenly spaced over its own
schedule, at each of them the prompts with the smallest SHA-256 of (seed, prompt, step), and every guidance branch of
such a pair of prompt and step. *Sampled* calls go with kept rows and are part of a calibration's identity: per expert,
timestep bin and guidance branch those with the smallest SHA-256 of (seed, prompt, step, branch). They may lie at any
step of a bin, and the branches at different ones.

As with kept rows, neither choice depends on what else was run, so the calls of a merged calibration are exactly those
that one run over all prompts keeps. A prompt's choice is known before it runs: nothing is copied in vain.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from hfq.schema.canonical import canonical_json, sha256_hex
from hfq.schema.errors import MalformedFileError, UsageError

from .schedule import Call, ExpertSchedule

__all__ = ["DTYPES", "MOST_CALLS", "CallKeeper", "CallKey", "Inputs", "KeptCall", "ModelCall", "check_inputs",
           "choose_calls", "choose_spread", "flatten", "prompt_key", "spread_counts"]  # fmt: skip

Inputs = dict[str, Tensor | list[Tensor]]
"""Arguments of a transformer's forward by name: tensors, and flat lists of tensors."""

DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int32, torch.int64)
"""What is stored as given; a pipeline passes timesteps as integers."""

MOST_CALLS: Final = 1000
"""Six times as many of both experts, with six tensors each, stay within what a file may hold."""

_PER_KEPT: Final = 3
"""Spread calls of each guidance branch for every one that is asked for: as many as an expert has timestep bins."""

_SAME_T: Final = 1e-3


def prompt_key(entry: Mapping[str, Any]) -> str:
    """64 hex digits that name a prompt in a choice: its text and its frames.

    Args:
        entry: of the prompt in a calibration document.
    """
    names = ("sha256", "image", "last_image")
    return sha256_hex(canonical_json({name: entry[name] for name in names if entry.get(name) is not None}))


@dataclass(frozen=True)
class CallKey:
    """One forward of an expert for one prompt.

    Attributes:
        call: of the expert's schedule.
        prompt: 64 hex digits, see `prompt_key`.
        digest: hex SHA-256 of `seed|prompt|step|branch`; of a spread call, of `seed|prompt|step`.
    """

    call: Call
    prompt: str
    digest: str

    @classmethod
    def of(cls, seed: int, prompt: str, call: Call) -> CallKey:
        """The key of a call of a prompt."""
        return cls(call, prompt, hashlib.sha256(f"{seed}|{prompt}|{call.step}|{call.branch}".encode()).hexdigest())

    @classmethod
    def of_step(cls, seed: int, prompt: str, call: Call) -> CallKey:
        """The key of a spread call; the guidance branches of a step share the digest and are chosen together."""
        return cls(call, prompt, hashlib.sha256(f"{seed}|{prompt}|{call.step}".encode()).hexdigest())

    @property
    def cell(self) -> tuple[int, str]:
        """Timestep bin and guidance branch, each of which has calls of its own."""
        return self.call.bin, self.call.branch

    @property
    def order(self) -> tuple[int, str, str]:
        """What kept calls are sorted by."""
        return *self.cell, self.digest

    def to_json(self) -> dict[str, Any]:
        """The key as stored in a calibration; t and bin are the schedule's."""
        return {"step": self.call.step, "branch": self.call.branch, "prompt": self.prompt, "digest": self.digest}


def choose_calls(keys: Iterable[CallKey], keep: int) -> list[CallKey]:
    """The `keep` smallest digests of every timestep bin and branch, by bin, branch and rising digest."""
    taken: Counter[tuple[int, str]] = Counter()
    chosen = []
    for key in sorted(keys, key=lambda key: key.order):
        if taken[key.cell] < keep:
            taken[key.cell] += 1
            chosen.append(key)
    return chosen


def spread_counts(schedule: ExpertSchedule, keep: int) -> dict[int, int]:
    """step -> prompts that are kept there, for three times `keep` calls of each guidance branch.

    The steps are the middles of as many equal stretches of the expert's own steps. Where more calls are asked for than
    there are steps, every step gets as many prompts, and what is left over is spread again.
    """
    steps = sorted({call.step for call in schedule.calls})
    each, rest = divmod(_PER_KEPT * keep, len(steps))
    more = {steps[(2 * index + 1) * len(steps) // (2 * rest)] for index in range(rest)}
    return {step: each + (step in more) for step in steps if each or step in more}


def choose_spread(schedule: ExpertSchedule, keep: int, seed: int, prompts: Iterable[str]) -> list[CallKey]:
    """Three times `keep` calls of each guidance branch, spread over the steps, by step, rising digest and branch.

    Args:
        prompts: 64 hex digits each, see `prompt_key`.
    """
    known, counts = sorted(set(prompts)), spread_counts(schedule, keep)
    branches: dict[int, list[Call]] = {}
    for call in schedule.calls:
        branches.setdefault(call.step, []).append(call)
    chosen = []
    for step, count in counts.items():
        first = branches[step][0]
        for key in sorted((CallKey.of_step(seed, prompt, first) for prompt in known), key=_digest)[:count]:
            chosen += [CallKey(call, key.prompt, key.digest) for call in branches[step]]
    return chosen


def _digest(key: CallKey) -> str:
    return key.digest


@dataclass(frozen=True)
class KeptCall:
    """A kept call with the transformer's inputs, on the CPU."""

    key: CallKey
    inputs: Inputs


@dataclass(frozen=True)
class ModelCall:
    """One forward of an expert as it was made while the model was calibrated.

    Attributes:
        step: of the whole schedule.
        t: timestep.
        branch: guidance branch, "cond" or "uncond".
        bin: timestep bin, 0 to 2.
        prompt_sha256: of the prompt's text; the negative prompt's branch belongs to the prompt it ran with.
        inputs: keyword arguments of the diffusers transformer's forward, on the CPU, in the dtypes they had:
            `hidden_states` [batch, channels, frames, height, width], `timestep` [batch] or [batch, tokens],
            `encoder_hidden_states` [batch, tokens, channels], and what else the pipeline passed.
        movement: |d sigma| of the step, what its output's error weighs; see `movements`.
    """

    step: int
    t: float
    branch: str
    bin: int
    prompt_sha256: str
    inputs: Inputs
    movement: float = 1.0


class CallKeeper:
    """The kept calls of one prompt while it runs.

    Args:
        spread: a third of the spread calls per expert and guidance branch.
        sampled: sampled calls per expert, timestep bin and guidance branch.
        seed: of the choice.
        schedules: role -> calls of one run.
    """

    def __init__(self, spread: int, sampled: int, seed: int, schedules: Mapping[str, ExpertSchedule]) -> None:
        self._spread, self._sampled = spread, sampled
        self._seed, self._schedules = seed, dict(schedules)
        self._chosen: dict[str, list[CallKey]] = {}
        self._chosen_spread: dict[str, list[CallKey]] = {}
        self._taken: dict[tuple[str, Call], Inputs] = {}

    def begin_prompt(self, prompt: str) -> None:
        """Forget everything; the next calls belong to this prompt."""
        self._taken = {}
        self._chosen = {
            role: choose_calls((CallKey.of(self._seed, prompt, call) for call in schedule.calls), self._sampled)
            for role, schedule in self._schedules.items()
        }
        self._chosen_spread = {
            role: choose_spread(schedule, self._spread, self._seed, [prompt])
            for role, schedule in self._schedules.items()
        }

    def wants(self, role: str, call: Call) -> bool:
        """Whether this call is to be kept."""
        return any(key.call == call for key in (*self._chosen[role], *self._chosen_spread[role]))

    def take(self, role: str, call: Call, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
        """Copy the arguments of a forward of `module` to the CPU and keep them.

        Raises:
            UsageError: an argument that a later forward could not be given again.
        """
        # Bound by hand: a forward may lack what offloading adds to it later.
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        inputs: Inputs = {}
        for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items():
            if isinstance(value, Tensor):
                inputs[name] = _copy(value, f"{role} {name}")
            elif isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
                inputs[name] = [_copy(part, f"{role} {name}") for part in value]
            elif not (value is None or isinstance(value, bool) or (isinstance(value, Mapping) and not value)):
                raise _not_kept(f"{role} {name}", type(value).__name__)
        self._taken[role, call] = inputs
        return inputs

    def sampled(self) -> dict[str, list[KeptCall]]:
        """role -> sampled calls, by bin, branch and rising digest; every chosen call has run."""
        return self._kept(self._chosen)

    def spread(self) -> dict[str, list[KeptCall]]:
        """role -> spread calls, by step and branch; every chosen call has run."""
        return self._kept(self._chosen_spread)

    def _kept(self, keys: Mapping[str, Sequence[CallKey]]) -> dict[str, list[KeptCall]]:
        return {
            role: [KeptCall(key, self._taken[role, key.call]) for key in chosen]
            for role, chosen in keys.items()
            if chosen
        }


def _copy(value: Tensor, where: str) -> Tensor:
    if value.dtype not in DTYPES or value.is_meta:
        raise _not_kept(where, value.dtype)
    # The pipeline goes on with its tensors, and a timestep is one number behind many places.
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _not_kept(where: str, found: object) -> UsageError:
    return UsageError(
        "an argument of the transformer that cannot be kept",
        where=where,
        expected="tensors, lists of tensors, or nothing",
        found=found,
        todo="calibrate without kept calls (--keep-calls 0)",
    )


def flatten(inputs: Inputs) -> dict[str, Tensor]:
    """Stored name -> tensor, sorted: an argument's own name, or `name/0`, `name/1` ... for a list."""
    found: dict[str, Tensor] = {}
    for name in sorted(inputs):
        value = inputs[name]
        if isinstance(value, Tensor):
            found[name] = value
        else:
            found |= {f"{name}/{index}": part for index, part in enumerate(value)}
    return found


def check_inputs(inputs: Inputs, call: Call, where: str) -> None:
    """Refuse stored inputs that no run can have made; names in messages follow on `where`.

    Raises:
        MalformedFileError
    """
    for name, value in flatten(inputs).items():
        if not bool(torch.isfinite(value).all()):
            raise MalformedFileError("numbers that no run can have made", where=where + name, expected="finite numbers")
    timestep = inputs["timestep"]
    # A clip with a given first frame has a timestep per token, 0 for that frame's.
    t = float(timestep.max()) if isinstance(timestep, Tensor) else None
    if t is None or abs(t - call.t) > _SAME_T:
        raise MalformedFileError("the timestep of another call", where=f"{where}timestep", expected=call.t, found=t)
