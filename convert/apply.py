"""Putting a delta onto a model that is already in memory: a diffusers pipeline, or one transformer of either naming."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfq.schema.errors import (
    DigestMismatchError,
    MissingRoleError,
    UsageError,
    WrongBaseError,
    WrongRoleError,
)

from .bf16 import to_bf16, to_finite_bf16
from .checkpoint import Checkpoint
from .clip import TimestepClock
from .delta import Delta, load_delta
from .keymap import to_diffusers
from .linear import QuantizedLinear
from .restore import restore_site
from .tensor_bytes import tensor_bytes
from .transformer import keeps_fp32, set_tensor
from .wrappers import refuse_wrapped

__all__ = ["Replaced", "apply", "base_mismatch"]


@dataclass(frozen=True)
class Replaced:
    """One linear that became a quantized one: expert, original Wan name, name inside the module, and the rule."""

    role: str
    site: str
    module: str
    reason: str


def apply(
    target: Any,
    delta: Delta | str | os.PathLike[str],
    *,
    base: Checkpoint | None = None,
    role: str | None = None,
    allow_non_finite: bool = False,
) -> dict[str, Replaced]:
    """Quantize a model in place.

    Args:
        target: a diffusers Wan pipeline, or one transformer (diffusers or original Wan names).
        delta: opened, or its folder.
        base: where the weights come from: every tensor of the target is set from it. Without it the target's own
            weights are the base; what diffusers loaded in fp32 without rounding is rounded to BF16 in place, so that
            the result does not depend on the loader.
        role: expert of a bare transformer; needed when the delta has two.
        allow_non_finite: take NaN and infinity in the target's own weights. A `base` was opened with a permission or
            without one.

    Returns:
        `role/site` -> what was replaced.

    Raises:
        MissingRoleError, UsageError: which expert a transformer is cannot be known, it has been quantized before, it is
            in float16, offloaded, wrapped (see `wrappers`) or without weights; nothing was changed.
        NonFiniteWeightError: the base holds NaN or infinity and nobody allowed it; nothing was changed.
        WrongBaseError, WrongRoleError: the weights are not the delta's base; nothing was changed.
        DigestMismatchError: a site came out different from what the delta says; the target must be loaded again.
    """
    opened = delta if isinstance(delta, Delta) else load_delta(delta)
    try:
        experts = []
        for found, module in _targets(target, opened, role).items():
            names = _Names(module, opened, found)
            source = _ModuleSource(names, found, allow_non_finite) if base is None else _CheckpointSource(base, found)
            experts.append((found, names, source))
        for found, _, source in experts:
            _check_base(opened, found, source)
        return {
            f"{found}/{entry.site}": entry
            for found, names, source in experts
            for entry in _apply_one(opened, found, names, source)
        }
    finally:
        if opened is not delta:
            opened.close()


def _targets(target: Any, delta: Delta, role: str | None) -> dict[str, nn.Module]:
    if isinstance(target, nn.Module):
        roles = delta.roles
        if role is None:
            if len(roles) != 1:
                raise MissingRoleError(
                    "the delta has two experts and the transformer could be either",
                    expected=" or ".join(roles),
                    todo='say which: role="high_noise" or role="low_noise"',
                )
            role = roles[0]
        if role not in roles:
            raise UsageError("the delta has no such expert", expected=" or ".join(roles), found=role)
        return {role: target}
    if role is not None:
        raise UsageError("a role goes with a bare transformer, not with a pipeline", found=role)
    found: dict[str, nn.Module] = {}
    for name in delta.roles:
        module = getattr(target, "transformer_2" if name == "low_noise" else "transformer", None)
        if not isinstance(module, nn.Module):
            raise UsageError(
                "the pipeline does not hold this expert",
                where=name,
                expected="transformer and transformer_2" if len(delta.roles) == 2 else "transformer",
            )
        found[name] = module
    if delta.roles == ["single"] and isinstance(getattr(target, "transformer_2", None), nn.Module):
        raise UsageError("the pipeline has two experts and the delta one", todo="apply it to one transformer")
    return found


class _Names:
    """Canonical names of a module's tensors, for a module that a delta can be put on.

    Raises:
        UsageError, WrongBaseError: it is none.
    """

    def __init__(self, module: nn.Module, delta: Delta, role: str) -> None:
        self.module = module
        # A module that stands in two places has its names twice.
        self.parameters = dict(module.named_parameters(remove_duplicate=False))
        wanted = delta.base_tensors(role)
        diffusers = {name: to_diffusers(name) for name in wanted}
        refuse_wrapped(module, role, {*wanted, *diffusers.values()})
        _check_state_of(module, role)
        plain = sum(name in self.parameters for name in wanted)
        is_diffusers = sum(name in self.parameters for name in diffusers.values()) >= plain
        self.local = diffusers if is_diffusers else {name: name for name in wanted}
        for name, local in self.local.items():
            if local not in self.parameters:
                raise WrongBaseError(
                    "the model lacks a tensor of the delta's base",
                    where=f"{role} {name}",
                    todo="is this the right model?",
                )
        known = set(self.local.values())
        for local in self.parameters:
            if local not in known:
                raise WrongBaseError(
                    "the model has a tensor that the delta's base does not have",
                    where=f"{role} {local}",
                    todo="is this the right model?",
                )
        self.linears = {site: self._linear(site, role) for site in delta.quantized(role)}

    def _linear(self, site: str, role: str) -> tuple[str, nn.Linear]:
        local = self.local[f"{site}.weight"].removesuffix(".weight")
        linear = self.module.get_submodule(local)
        if not isinstance(linear, nn.Linear):
            raise UsageError("not a linear", where=f"{role} {site}", found=type(linear).__name__)
        return local, linear


def _check_state_of(module: nn.Module, role: str) -> None:
    for name, child in module.named_modules():
        if isinstance(child, QuantizedLinear):
            raise UsageError(
                "the model is quantized already",
                where=f"{role} {child.site}",
                todo="load the model again, then apply one delta",
            )
        hook = getattr(child, "_hf_hook", None)
        if any(getattr(part, "offload", False) is True for part in (hook, *getattr(hook, "hooks", ()))):
            raise UsageError(
                "the model is offloaded, its weights are elsewhere",
                where=f"{role} {name}",
                todo="apply the delta first, then enable offloading",
            )
    for name, parameter in module.named_parameters():
        if parameter.dtype not in (torch.bfloat16, torch.float32):
            raise UsageError(
                "not a dtype that a quantized model runs in",
                where=f"{role} {name}",
                expected="bfloat16 or float32",
                found=str(parameter.dtype).removeprefix("torch."),
                todo="load the model in bfloat16; a quantized one may be cast to float16 afterwards",
            )
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            raise UsageError(
                "a buffer without values, which no checkpoint holds",
                where=f"{role} {name}",
                todo="build the model with accelerate.init_empty_weights(include_buffers=False)",
            )


class _ModuleSource:
    """The target's own weights."""

    def __init__(self, names: _Names, role: str, allow_non_finite: bool) -> None:
        self._names, self._role, self._allow_non_finite = names, role, allow_non_finite

    def read(self, name: str) -> Tensor:
        """A tensor rounded to BF16, on the CPU.

        Raises:
            UsageError: it is on the meta device: there is nothing to quantize.
            NonFiniteWeightError
        """
        parameter = self._names.parameters[self._names.local[name]]
        if parameter.is_meta:
            raise UsageError(
                "the model has no weights here", where=name, todo="load it without offloading, or give base="
            )
        stored = parameter.detach().cpu()
        return to_bf16(stored) if self._allow_non_finite else to_finite_bf16(stored, f"{self._role} {name}")


class _CheckpointSource:
    """A checkpoint's weights."""

    def __init__(self, checkpoint: Checkpoint, role: str) -> None:
        if role not in checkpoint.experts:
            raise UsageError("the base has no such expert", expected=role, found=", ".join(checkpoint.experts))
        self._expert = checkpoint.experts[role]

    def read(self, name: str) -> Tensor:
        """A tensor rounded to BF16, on the CPU.

        Raises:
            WrongBaseError, and what `Expert.read_bf16` raises
        """
        if name not in self._expert.names:
            raise WrongBaseError("the base lacks a tensor", where=f"{self._expert.role} {name}")
        return self._expert.read_bf16(name)


def base_mismatch(delta: Delta, role: str, name: str, found: str) -> WrongBaseError | WrongRoleError:
    """The error for a base tensor with another digest: a known tensor of the other expert is a wrong role."""
    for other in delta.roles:
        tensor = delta.base_tensors(other).get(name)
        if other != role and tensor is not None and tensor["bf16"] == found:
            return WrongRoleError(
                f"these are the weights of the expert {other}",
                where=f"{role} {name}",
                expected=role,
                found=other,
                todo=f"give them as {other}; are the two experts exchanged?",
            )
    return WrongBaseError(
        "not the checkpoint that the delta was made from",
        where=f"{role} {name}",
        expected=f"bf16 digest {delta.base_tensors(role)[name]['bf16'][:12]}…",
        found=f"{found[:12]}…",
        todo="`hfq inspect MODEL` and `hfq inspect DELTA` print both roots",
    )


def _check_base(delta: Delta, role: str, source: _ModuleSource | _CheckpointSource) -> None:
    for name, entry in delta.base_tensors(role).items():
        tensor = source.read(name)
        digest = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
        if digest != entry["bf16"] or list(tensor.shape) != entry["shape"]:
            raise base_mismatch(delta, role, name, digest)


def _apply_one(delta: Delta, role: str, names: _Names, source: _ModuleSource | _CheckpointSource) -> Iterator[Replaced]:
    module = names.module
    quantized = {f"{site}.weight" for site in names.linears}
    for name in delta.base_tensors(role):
        if name not in quantized:
            _set_kept(module, names.local[name], source.read(name), isinstance(source, _CheckpointSource))
    clock: TimestepClock | None = None
    for site, (local, linear) in names.linears.items():
        try:
            restored = restore_site(delta, role, site, source.read(f"{site}.weight"))
        except DigestMismatchError as error:
            raise DigestMismatchError(
                f"{error.what}; the model is quantized in part now",
                where=error.where,
                expected=error.expected,
                found=error.found,
                todo="load the model again, and do not use this delta",
            ) from None
        if restored.ops.clip is not None and clock is None:
            # Every site of an expert has the same edges, which reading the delta has checked.
            clock = TimestepClock(role, restored.ops.clip.edges)
            clock.install(module)
        parent, _, leaf = local.rpartition(".")
        replacement = QuantizedLinear(restored, linear, role=role, site=site, clock=clock)
        setattr(module.get_submodule(parent), leaf, replacement)
        yield Replaced(role, site, local, delta.routes[role][site].reason)


def _set_kept(module: nn.Module, local: str, rounded: Tensor, from_base: bool) -> None:
    """Give a tensor that is not quantized the base's value rounded to BF16.

    From a checkpoint, in fp32 where diffusers keeps fp32; a loaded model keeps the dtype that it has.
    """
    parameter = module.get_parameter(local)
    dtype = torch.float32 if from_base and keeps_fp32(module, local) else parameter.dtype
    if parameter.is_meta or parameter.dtype != dtype:
        device = torch.device("cpu") if parameter.is_meta else parameter.device
        set_tensor(module, local, rounded.to(device=device, dtype=dtype, copy=True))
    elif from_base or dtype != torch.bfloat16:
        with torch.no_grad():
            parameter.copy_(rounded)


def summary(replaced: Mapping[str, Replaced]) -> dict[str, int]:
    """role -> number of linears that were replaced."""
    counts: dict[str, int] = {}
    for entry in replaced.values():
        counts[entry.role] = counts.get(entry.role, 0) + 1
    return counts
