"""Tensor names: original Wan (canonical here) and diffusers, one table, read in both directions.

The two layouts are pure renames of each other (no tensor is split, fused or transposed). The trap is a block's norm:
the affine one is `norm3` in the original code and `norm2` in diffusers, where `norm3` exists too and has no parameters.
A chain of text replacements gets this wrong; here whole names are looked up.

Source: Wan2.1 and Wan2.2 `wan/modules/model.py`, `vace_model.py`; diffusers `transformer_wan.py`,
`transformer_wan_vace.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hfq.schema.errors import UnknownLayoutError

__all__ = [
    "BLOCK_MODULES",
    "OUTER_MODULES",
    "VACE_ONLY",
    "Module",
    "canonical_name",
    "site_of",
    "to_diffusers",
    "to_original",
]


@dataclass(frozen=True)
class Module:
    """One parameter-bearing module: its name in each layout, its parameters, and whether it is an nn.Linear (a site).

    `parameters` are the leaves (`weight`, `bias`); empty for a bare nn.Parameter, whose name is the tensor's own.
    """

    original: str
    diffusers: str
    parameters: tuple[str, ...]
    linear: bool = False


_AFFINE: Final = ("weight", "bias")


def _linear(original: str, diffusers: str) -> Module:
    return Module(original, diffusers, _AFFINE, linear=True)


# Relative to `blocks.N.` and `vace_blocks.N.`, in the order of the forward pass.
BLOCK_MODULES: Final[tuple[Module, ...]] = (
    _linear("before_proj", "proj_in"),
    Module("modulation", "scale_shift_table", ()),
    _linear("self_attn.q", "attn1.to_q"),
    _linear("self_attn.k", "attn1.to_k"),
    _linear("self_attn.v", "attn1.to_v"),
    _linear("self_attn.o", "attn1.to_out.0"),
    Module("self_attn.norm_q", "attn1.norm_q", ("weight",)),
    Module("self_attn.norm_k", "attn1.norm_k", ("weight",)),
    Module("norm3", "norm2", _AFFINE),
    _linear("cross_attn.q", "attn2.to_q"),
    _linear("cross_attn.k", "attn2.to_k"),
    _linear("cross_attn.v", "attn2.to_v"),
    _linear("cross_attn.o", "attn2.to_out.0"),
    Module("cross_attn.norm_q", "attn2.norm_q", ("weight",)),
    Module("cross_attn.norm_k", "attn2.norm_k", ("weight",)),
    _linear("cross_attn.k_img", "attn2.add_k_proj"),
    _linear("cross_attn.v_img", "attn2.add_v_proj"),
    Module("cross_attn.norm_k_img", "attn2.norm_added_k", ("weight",)),
    _linear("ffn.0", "ffn.net.0.proj"),
    _linear("ffn.2", "ffn.net.2"),
    _linear("after_proj", "proj_out"),
)

# Modules that only the blocks of the VACE branch have.
VACE_ONLY: Final = frozenset({"before_proj", "after_proj"})

OUTER_MODULES: Final[tuple[Module, ...]] = (
    Module("patch_embedding", "patch_embedding", _AFFINE),
    Module("vace_patch_embedding", "vace_patch_embedding", _AFFINE),
    _linear("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    _linear("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    _linear("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    _linear("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    _linear("time_projection.1", "condition_embedder.time_proj"),
    Module("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed", ()),
    Module("img_emb.proj.0", "condition_embedder.image_embedder.norm1", _AFFINE),
    _linear("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    _linear("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    Module("img_emb.proj.4", "condition_embedder.image_embedder.norm2", _AFFINE),
    Module("head.modulation", "scale_shift_table", ()),
    _linear("head.head", "proj_out"),
)


def _tensors(module: Module) -> list[tuple[str, str]]:
    if not module.parameters:
        return [(module.original, module.diffusers)]
    return [(f"{module.original}.{leaf}", f"{module.diffusers}.{leaf}") for leaf in module.parameters]


_OUTER: Final = dict(pair for module in OUTER_MODULES for pair in _tensors(module))
_BLOCK: Final = dict(pair for module in BLOCK_MODULES for pair in _tensors(module))
_OUTER_BACK: Final = {diffusers: original for original, diffusers in _OUTER.items()}
_BLOCK_BACK: Final = {diffusers: original for original, diffusers in _BLOCK.items()}
_LINEARS: Final = frozenset(module.original for module in (*OUTER_MODULES, *BLOCK_MODULES) if module.linear)

# No leading zeros: `blocks.07` would be a second name for `blocks.7`. Four digits: no model has 10,000 blocks.
_IN_BLOCK: Final = re.compile(r"(vace_blocks|blocks)\.(0|[1-9][0-9]{0,3})\.(.+)", re.ASCII)


def _rename(name: str, outer: Mapping[str, str], block: Mapping[str, str]) -> str | None:
    found = _IN_BLOCK.fullmatch(name)
    if found is None:
        return outer.get(name)
    stack, index, inner = found.groups()
    renamed = block.get(inner)
    if renamed is None or (stack == "blocks" and _is_vace_only(inner if block is _BLOCK else renamed)):
        return None
    return f"{stack}.{index}.{renamed}"


def _is_vace_only(original: str) -> bool:
    return original.split(".", 1)[0] in VACE_ONLY


def canonical_name(name: str, naming: str) -> str | None:
    """The canonical name of a tensor of a file whose names are "original" or "diffusers"; None when no Wan model of
    that naming has such a tensor."""
    if naming == "original":
        return name if _rename(name, _OUTER, _BLOCK) is not None else None
    return _rename(name, _OUTER_BACK, _BLOCK_BACK)


def to_diffusers(name: str) -> str:
    """The diffusers name of a tensor given by its original Wan name.

    Raises:
        UnknownLayoutError: no Wan model has such a tensor.

    >>> to_diffusers("blocks.7.norm3.weight")
    'blocks.7.norm2.weight'
    """
    return _known(name, _rename(name, _OUTER, _BLOCK), "original")


def to_original(name: str) -> str:
    """The original (canonical) name of a tensor given by its diffusers name.

    Raises:
        UnknownLayoutError: diffusers has no such tensor; for one, its `norm3` has no parameters.

    >>> to_original("blocks.7.norm2.weight")
    'blocks.7.norm3.weight'
    """
    return _known(name, _rename(name, _OUTER_BACK, _BLOCK_BACK), "diffusers")


def _known(name: str, renamed: str | None, naming: str) -> str:
    if renamed is None:
        raise UnknownLayoutError(f"a tensor that no Wan model has in {naming} names", where=name)
    return renamed


def site_of(name: str) -> str | None:
    """The site (nn.Linear) that a canonical tensor name belongs to, or None for a norm, a modulation or a convolution.

    >>> site_of("blocks.7.self_attn.q.bias")
    'blocks.7.self_attn.q'
    """
    if canonical_name(name, "original") is None:
        return None
    module, _, _leaf = name.rpartition(".")
    found = _IN_BLOCK.fullmatch(module)
    return module if (found[3] if found else module) in _LINEARS else None
