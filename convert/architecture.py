"""Which Wan model a set of tensors is: its sizes, every tensor it must have, and its sites.

Everything comes from tensor names and shapes. `config.json` adds what no tensor shows (heads, eps, text length) and
must not contradict them.

Source: Wan2.1 and Wan2.2 `wan/modules/model.py` and `vace_model.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

from hfq.schema.errors import MissingTensorError, ShapeMismatchError, UnexpectedTensorError

from .keymap import BLOCK_MODULES, OUTER_MODULES, VACE_ONLY, Module

__all__ = ["MODEL_TYPES", "Architecture", "Shape", "Site", "check_tensors", "input_group_of"]

Shape = tuple[int, ...]

MODEL_TYPES: Final = ("t2v", "i2v", "flf2v", "ti2v", "vace")

# The sites of a block that read the same input, by name. A site that is not here reads an input of its own.
_SHARED_INPUT: Final = {
    "self_attn.q": "self_attn.qkv",
    "self_attn.k": "self_attn.qkv",
    "self_attn.v": "self_attn.qkv",
    "cross_attn.k": "cross_attn.kv",
    "cross_attn.v": "cross_attn.kv",
    "cross_attn.k_img": "cross_attn.kv_img",
    "cross_attn.v_img": "cross_attn.kv_img",
}


@dataclass(frozen=True)
class Site:
    """One nn.Linear. Weight [out_features, in_features], bias [out_features] (every Wan Linear has one).

    `in_block` is true in `blocks` and in `vace_blocks`; `block` is the index within that stack. Sites with one
    `input_group` read the same activation.
    """

    name: str
    in_features: int
    out_features: int
    in_block: bool
    block: int | None
    input_group: str


@dataclass(frozen=True)
class Architecture:
    """The sizes of one Wan transformer.

    `image_dim` is the width of the CLIP image embedding, None without an image branch; `image_tokens` the length of the
    first-last-frame position embedding. `vace_blocks` counts the VACE branch, `vace_layers` are the blocks it feeds
    (None when config.json does not say and they are not evenly spaced). `num_heads` is config.json's, else `dim / 128`
    as in every release (`heads_known` tells which), else None. `text_len` and `eps` are config.json's, else the
    releases'.
    """

    model_type: str
    dim: int
    ffn_dim: int
    num_layers: int
    in_channels: int
    out_channels: int
    text_dim: int
    freq_dim: int
    patch_size: tuple[int, int, int]
    image_dim: int | None = None
    image_tokens: int | None = None
    vace_blocks: int = 0
    vace_in_channels: int | None = None
    vace_layers: tuple[int, ...] | None = None
    cross_attn_norm: bool = True
    num_heads: int | None = None
    heads_known: bool = False
    text_len: int = 512
    eps: float = 1e-6

    @property
    def head_dim(self) -> int | None:
        """Channels of one attention head."""
        return None if self.num_heads is None else self.dim // self.num_heads

    def tensors(self) -> dict[str, Shape]:
        """Every tensor of the model: canonical name -> shape, in the order of the forward pass."""
        return {name: shape for module, place, _ in self._modules() for name, shape in self._shapes(module, place)}

    def sites(self) -> tuple[Site, ...]:
        """Every nn.Linear, in the order of the forward pass."""
        found = []
        for module, place, block in self._modules():
            if not module.linear:
                continue
            name = place + module.original
            out_features, in_features = self._linear_shape(module.original)
            found.append(Site(name, in_features, out_features, block is not None, block, input_group_of(name)))
        return tuple(found)

    def could_be_expert(self) -> bool:
        """Whether a released two-expert model could have this shape.

        False for TI2V, for anything with an image branch and for the 1.3B sizes: these exist as single models only. A
        size that no release has (a trained or a tiny model) could be either.
        """
        small = (self.dim, self.ffn_dim, self.num_layers) == (1536, 8960, 30)
        return self.model_type != "ti2v" and self.image_dim is None and not small

    def _modules(self) -> Iterator[tuple[Module, str, int | None]]:
        """(module, name prefix, block index) in forward order, without those that this model does not have."""
        head = [module for module in OUTER_MODULES if module.original.startswith("head.")]
        for module in OUTER_MODULES:
            absent = (
                module in head
                or (module.original == "vace_patch_embedding" and not self.vace_blocks)
                or (module.original.startswith("img_emb.") and self.image_dim is None)
                or (module.original == "img_emb.emb_pos" and self.image_tokens is None)
            )
            if not absent:
                yield module, "", None
        for stack, count in (("blocks", self.num_layers), ("vace_blocks", self.vace_blocks)):
            for block in range(count):
                for module in BLOCK_MODULES:
                    absent = (
                        (module.original in VACE_ONLY and stack == "blocks")
                        or (module.original == "before_proj" and block > 0)
                        or (module.original == "norm3" and not self.cross_attn_norm)
                        or (module.original.endswith("_img") and self.image_dim is None)
                    )
                    if not absent:
                        yield module, f"{stack}.{block}.", block
        for module in head:
            yield module, "", None

    def _linear_shape(self, module: str) -> tuple[int, int]:
        """(out_features, in_features) of a linear, by its name without the block."""
        image_dim = self.image_dim or 0
        special = {
            "text_embedding.0": (self.dim, self.text_dim),
            "time_embedding.0": (self.dim, self.freq_dim),
            "time_projection.1": (6 * self.dim, self.dim),
            "img_emb.proj.1": (image_dim, image_dim),
            "img_emb.proj.3": (self.dim, image_dim),
            "ffn.0": (self.ffn_dim, self.dim),
            "ffn.2": (self.dim, self.ffn_dim),
            "head.head": (self.out_channels * prod(self.patch_size), self.dim),
        }
        return special.get(module, (self.dim, self.dim))

    def _shapes(self, module: Module, place: str) -> list[tuple[str, Shape]]:
        name = place + module.original
        if module.linear:
            weight = self._linear_shape(module.original)
            return [(f"{name}.weight", weight), (f"{name}.bias", weight[:1])]
        match module.original:
            case "patch_embedding":
                return [
                    (f"{name}.weight", (self.dim, self.in_channels, *self.patch_size)),
                    (f"{name}.bias", (self.dim,)),
                ]
            case "vace_patch_embedding":
                channels = self.vace_in_channels or 0
                return [(f"{name}.weight", (self.dim, channels, *self.patch_size)), (f"{name}.bias", (self.dim,))]
            case "modulation":
                return [(name, (1, 6, self.dim))]
            case "head.modulation":
                return [(name, (1, 2, self.dim))]
            case "img_emb.emb_pos":
                return [(name, (1, self.image_tokens or 0, self.image_dim or 0))]
        width = self.image_dim or 0 if module.original == "img_emb.proj.0" else self.dim
        return [(f"{name}.{leaf}", (width,)) for leaf in module.parameters]


def input_group_of(site: str) -> str:
    """The input group of a site: `blocks.7.self_attn.qkv` for q, k and v of block 7; a site's own name when it shares
    its input with none.

    >>> input_group_of("blocks.7.cross_attn.v")
    'blocks.7.cross_attn.kv'
    """
    stack, _, rest = site.partition(".")
    if stack not in ("blocks", "vace_blocks"):
        return site
    index, _, inner = rest.partition(".")
    return f"{stack}.{index}.{_SHARED_INPUT.get(inner, inner)}"


def check_tensors(architecture: Architecture, shapes: Mapping[str, Shape], where: str) -> None:
    """Compare the tensors that are there (canonical name -> shape) with those that the model must have.

    Raises:
        MissingTensorError, UnexpectedTensorError, ShapeMismatchError: naming the first such tensor and their number.
    """
    expected = architecture.tensors()
    missing = [name for name in expected if name not in shapes]
    if missing:
        raise MissingTensorError(
            _counted("a tensor is missing", len(missing)),
            where=f"{where}: {missing[0]}",
            expected=f"{len(expected)} tensors",
            found=f"{len(shapes)}",
            todo="download the checkpoint again, or give the folder that holds all its parts",
        )
    unexpected = sorted(name for name in shapes if name not in expected)
    if unexpected:
        raise UnexpectedTensorError(
            _counted("a tensor that this model does not have", len(unexpected)),
            where=f"{where}: {unexpected[0]}",
            expected=f"{len(expected)} tensors",
            found=f"{len(shapes)}",
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ShapeMismatchError(
                "a shape that does not fit the other tensors",
                where=f"{where}: {name}",
                expected=list(shape),
                found=list(shapes[name]),
            )


def _counted(what: str, count: int) -> str:
    return what if count == 1 else f"{what} (the first of {count})"
