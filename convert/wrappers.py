"""Models that no delta can be put on, because of what stands around or inside them: it is named, with the way out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

from torch import nn

from hfq.schema.errors import UsageError

__all__ = ["refuse_wrapped"]


class _Wrapper(NamedTuple):
    what: str
    todo: str


_UNFUSE: Final = "load the model again without fuse_qkv_projections()"
_FIRST: Final = "apply the delta to the bare transformer first, then"

# By the name of a class: none of their packages is imported, and some of them need not be there.
_AROUND: Final = {
    "OptimizedModule": _Wrapper(
        "the model is wrapped by torch.compile", "apply the delta to model._orig_mod, then compile again"
    ),
    "DataParallel": _Wrapper("the model is wrapped by torch.nn.DataParallel", f"{_FIRST} wrap it (model.module)"),
    "DistributedDataParallel": _Wrapper(
        "the model is wrapped by DistributedDataParallel", f"{_FIRST} wrap it (model.module)"
    ),
    "FullyShardedDataParallel": _Wrapper(
        "the model is wrapped by FullyShardedDataParallel", f"{_FIRST} shard it: its weights are elsewhere now"
    ),
    "FSDPModule": _Wrapper("the model is sharded by fully_shard (FSDP2)", f"{_FIRST} shard it"),
    "PeftModel": _Wrapper(
        "the model is wrapped by PEFT (PeftModel)", f"{_FIRST} add the adapters again (model.unload() takes them off)"
    ),
    "ScriptModule": _Wrapper("the model is a TorchScript module", "apply the delta to the model that it was made from"),
}
_INSIDE: Final = {
    "BaseTunerLayer": _Wrapper(
        "the model has PEFT adapters, such as a LoRA, on its linears",
        "take them off (pipeline.unload_lora_weights() or model.delete_adapters(...)), apply the delta, add them again",
    ),
    "OptimizedModule": _Wrapper("a part of the model is wrapped by torch.compile", f"{_FIRST} compile its blocks"),
    "FullyShardedDataParallel": _Wrapper("a part of the model is wrapped by FSDP", f"{_FIRST} shard it"),
}
_HOOKS: Final = {
    "group_offloading": _Wrapper("group offloading is on, the weights are elsewhere", f"{_FIRST} enable offloading"),
    "layerwise_casting": _Wrapper(
        "layerwise casting is on, the weights are rounded", "load the model again and apply the delta without it"
    ),
}
# By the name of what they put into a module.
_MEMBERS: Final = {
    "to_qkv": _Wrapper("projections are fused", f"{_UNFUSE}, apply the delta, and leave them apart"),
    "to_kv": _Wrapper("projections are fused", f"{_UNFUSE}, apply the delta, and leave them apart"),
    "weight_orig": _Wrapper(
        "a pruned or spectrally normalized weight", "remove that (torch.nn.utils.prune.remove, remove_spectral_norm)"
    ),
    "weight_g": _Wrapper("a weight under weight norm", "remove it: torch.nn.utils.remove_weight_norm"),
}
_COMFY: Final = _Wrapper(
    "a model of ComfyUI, whose patcher would skip every LoRA on a quantized linear",
    "apply the delta in diffusers; in ComfyUI load a checkpoint that needs no patch of quantized linears",
)


def refuse_wrapped(module: nn.Module, role: str, wanted: Collection[str]) -> None:
    """Refuse what is not a bare transformer with its own weights.

    Args:
        module: what a delta is to be put on.
        role: expert, for messages.
        wanted: names of the delta's base tensors, in any of the two namings.

    Raises:
        UsageError: it says what stands around the transformer or inside it, and what to do.
    """
    for kind in type(module).__mro__:
        _refuse(_AROUND.get(kind.__name__), role, module)
    for name, child in module.named_modules():
        where = f"{role} {name}" if name else role
        for kind in type(child).__mro__:
            _refuse(_INSIDE.get(kind.__name__), where, child)
        for hook in getattr(getattr(child, "_diffusers_hook", None), "hooks", ()):
            _refuse(_HOOKS.get(str(hook)), where, child)
        if hasattr(child, "parametrizations"):
            what, todo = "a parametrized weight", "remove it: torch.nn.utils.parametrize.remove_parametrizations"
            raise UsageError(what, where=where, found=type(child).__name__, todo=todo)
        for member in (*child._parameters, *child._modules):
            _refuse(_MEMBERS.get(member), where, child)
        if hasattr(child, "comfy_cast_weights"):
            _refuse(_COMFY, where, child)
    _refuse_nested(module, role, wanted)


def _refuse(wrapper: _Wrapper | None, where: str, found: Any) -> None:
    if wrapper is not None:
        raise UsageError(wrapper.what, where=where, found=type(found).__name__, todo=wrapper.todo)


def _refuse_nested(module: nn.Module, role: str, wanted: Collection[str]) -> None:
    """The whole transformer inside another module, whatever that is."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    if any(name in names for name in wanted):
        return
    one = min((name for name in names if any(name.endswith(f".{suffix}") for suffix in wanted)), default=None)
    if one is None:
        return
    suffix = max((suffix for suffix in wanted if one.endswith(f".{suffix}")), key=len)
    inner = one.removesuffix(f".{suffix}")
    raise UsageError(
        "the transformer is inside another module",
        where=role,
        expected="the transformer itself",
        found=f"{type(module).__name__} with a {type(module.get_submodule(inner)).__name__} at {inner}",
        todo=f"apply the delta to model.{inner}",
    )
