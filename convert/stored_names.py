"""From the tensor names in files to canonical ones: a prefix that all of them have, wrappers, and the naming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final

from hfq.schema.errors import UnexpectedTensorError, UnknownLayoutError, WrappedNameError

from .keymap import canonical_name

__all__ = ["canonical_names", "is_other_part", "refuse_adapted", "strip_prefix"]

# What ComfyUI's files have, and those of its other loaders.
_USUAL: Final = ("model.diffusion_model.", "diffusion_model.", "")

# What an all-in-one file holds beside the transformer.
_OTHER_PARTS: Final = (
    "text_encoders.", "cond_stage_model.", "conditioner.", "first_stage_model.", "vae.", "clip_vision.",
    "model_ema.", "model_sampling.",
)  # fmt: skip

_MOST_PARTS: Final = 8
"""Names of a prefix: wrappers are stacked three or four deep."""

_NAMINGS: Final = ("original", "diffusers")

_PEFT: Final = ("a PEFT adapter", "merge the adapter (`model.merge_and_unload()`) and save that model")

# A wrapper's attribute -> what it is, and how its model is saved without it.
_WRAPPERS: Final = {
    "_orig_mod": ("torch.compile", "save the state_dict of the `_orig_mod` inside, or compile after loading"),
    "module": ("DataParallel or another parallel wrapper", "save the state_dict of the `module` inside"),
    "_fsdp_wrapped_module": ("FSDP", "save a full state_dict (`get_model_state_dict` with `full_state_dict=True`)"),
    "_checkpoint_wrapped_module": ("activation checkpointing", "save the model without activation checkpointing"),
    "_forward_module": ("Lightning Fabric or DeepSpeed", "save the state_dict of the model inside"),
    "parametrizations": ("torch.nn.utils.parametrize", "call `remove_parametrizations` and save again"),
    "base_model": _PEFT,
    "base_layer": _PEFT,
    "original_module": _PEFT,
    "modules_to_save": _PEFT,
}
_ADAPTED: Final = ("base_layer", "original_module")


def is_other_part(name: str) -> bool:
    """Whether a tensor of an all-in-one file is not the transformer's."""
    return name.startswith(_OTHER_PARTS)


def strip_prefix(names: Collection[str], where: str) -> tuple[str, dict[str, str]]:
    """The prefix of all the transformer's names, mostly empty, and name without it -> stored name.

    Whatever stands before every name is taken off: `model.diffusion_model.`, `module._orig_mod.` and so on.

    Raises:
        UnexpectedTensorError: names under more than one prefix, or a tensor outside the model.
    """
    votes = Counter(prefix for name in names if (prefix := _prefix_of(name)) is not None)
    # What most names have; between equals what is usual.
    ranked = sorted(votes, key=lambda prefix: (-votes[prefix], *(prefix != usual for usual in _USUAL), prefix))
    prefix = ranked[0] if ranked else ""
    rivals = [name for name in ranked[1:] if 2 * votes[name] >= votes[prefix] and not is_other_part(name)]
    if rivals:
        shown = ", ".join(f"{name or 'no prefix'} ({votes[name]} tensors)" for name in [prefix, *rivals[:3]])
        raise UnexpectedTensorError(
            "tensor names under more than one prefix",
            where=where,
            expected="one transformer, whose names have one prefix or none",
            found=shown,
            todo="save one of them in a file of its own",
        )
    inner = {}
    for name in names:
        if name.startswith(prefix):
            inner[name.removeprefix(prefix)] = name
        elif not is_other_part(name):
            raise UnexpectedTensorError(
                "a tensor outside the model", where=f"{where}: {name}", expected=f"names that begin with {prefix}"
            )
    return prefix, inner


def _prefix_of(name: str) -> str | None:
    """What stands before the longest end of a name that a Wan model has; None when it has no such end."""
    begin = 0
    for _ in range(_MOST_PARTS):
        if any(canonical_name(name[begin:], naming) is not None for naming in _NAMINGS):
            return name[:begin]
        begin = name.find(".", begin) + 1
        if not begin:
            return None
    return None


def refuse_adapted(names: Iterable[str], where: str) -> None:
    """Refuse a whole model with an adapter in it, which is neither a checkpoint nor a LoRA.

    Raises:
        WrappedNameError
    """
    _refuse_wrapped(names, _ADAPTED, where)


def canonical_names(names: Collection[str], where: str) -> tuple[str, dict[str, str]]:
    """The naming, "original" or "diffusers", and canonical name -> name, of names without a prefix.

    Raises:
        WrappedNameError: a wrapper's name is inside of some.
        UnknownLayoutError: not a Wan transformer.
        UnexpectedTensorError: a tensor that no Wan transformer has.
    """
    renamed = {naming: {name: canonical_name(name, naming) for name in names} for naming in _NAMINGS}
    naming = max(renamed, key=lambda naming: sum(name is not None for name in renamed[naming].values()))
    places = {canonical: name for name, canonical in renamed[naming].items() if canonical is not None}
    unknown = [name for name, canonical in renamed[naming].items() if canonical is None]
    _refuse_wrapped(unknown, _WRAPPERS, where)
    if len(unknown) >= len(places):
        raise UnknownLayoutError(
            "not a Wan transformer",
            where=where,
            expected="tensor names of a Wan checkpoint",
            found=f"{len(names)} tensors, for example {min(unknown)}" if unknown else "no tensor",
        )
    if unknown:
        raise UnexpectedTensorError(
            f"a tensor that no Wan model has in {naming} names",
            where=f"{where}: {min(unknown)}",
            found=f"{len(unknown)} of {len(names)}",
        )
    return naming, places


def _refuse_wrapped(names: Iterable[str], wrappers: Collection[str], where: str) -> None:
    wrapped = {name: part for name in names if (part := next((p for p in name.split(".") if p in wrappers), None))}
    if not wrapped:
        return
    name = min(wrapped)
    what, todo = _WRAPPERS[wrapped[name]]
    raise WrappedNameError(
        f"`{wrapped[name]}` inside the tensor names: the model was saved inside {what}",
        where=f"{where}: {name}",
        expected="the names of the bare model, all with one prefix or none",
        found=f"{len(wrapped)} such name{'' if len(wrapped) == 1 else 's'}",
        todo=todo,
    )
