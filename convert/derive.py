"""From canonical names, shapes and an optional config.json to an `Architecture`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any, Final

from hfq.schema.errors import ConfigMismatchError, MissingTensorError, ShapeMismatchError, UnsupportedModelError

from .architecture import MODEL_TYPES, Architecture, Shape, check_tensors

__all__ = ["derive_architecture"]

_BLOCK: Final = re.compile(r"(vace_blocks|blocks)\.([0-9]{1,4})\.", re.ASCII)

# The releases' head width; used when no config.json says otherwise.
_HEAD_DIM: Final = 128

# Field -> its names in config.json: original Wan first, then diffusers.
_CONFIG_NAMES: Final = {
    "dim": ("dim",),
    "ffn_dim": ("ffn_dim",),
    "num_layers": ("num_layers",),
    "in_channels": ("in_dim", "in_channels"),
    "out_channels": ("out_dim", "out_channels"),
    "text_dim": ("text_dim",),
    "freq_dim": ("freq_dim",),
    "patch_size": ("patch_size",),
    "image_dim": ("image_dim",),
    "image_tokens": ("pos_embed_seq_len",),
    "vace_in_channels": ("vace_in_dim", "vace_in_channels"),
    "cross_attn_norm": ("cross_attn_norm",),
}


def derive_architecture(shapes: Mapping[str, Shape], config: Mapping[str, Any] | None, where: str) -> Architecture:
    """The model that `shapes` (canonical name -> shape) make up, checked tensor by tensor.

    Args:
        config: the parsed config.json of the same folder, original or diffusers, or None.
        where: the path, for messages.

    Raises:
        MissingTensorError, UnexpectedTensorError, ShapeMismatchError: the tensors are not one whole Wan model.
        ConfigMismatchError: config.json describes another model.
        UnsupportedModelError: config.json says Animate or S2V.
    """
    config = config or {}
    _refuse_config(config, where)
    patch = _anchor(shapes, "patch_embedding.weight", 5, where)
    ffn = _anchor(shapes, "blocks.0.ffn.0.weight", 2, where)
    text = _anchor(shapes, "text_embedding.0.weight", 2, where)
    time = _anchor(shapes, "time_embedding.0.weight", 2, where)
    head = _anchor(shapes, "head.head.weight", 2, where)
    dim, in_channels, *patch_sizes = patch
    per_channel = prod(patch_sizes)
    if head[0] % per_channel:
        raise ShapeMismatchError(
            "the head does not fit the patch size",
            where=f"{where}: head.head.weight",
            expected=f"a multiple of {per_channel} rows",
            found=head[0],
        )
    has_image = any(name.startswith("img_emb.") or "_img" in name for name in shapes)
    image_dim = _anchor(shapes, "img_emb.proj.1.weight", 2, where)[1] if has_image else None
    image_tokens = _anchor(shapes, "img_emb.emb_pos", 3, where)[1] if "img_emb.emb_pos" in shapes else None
    vace_blocks = _count_blocks(shapes, "vace_blocks")
    vace_patch = _anchor(shapes, "vace_patch_embedding.weight", 5, where) if vace_blocks else None
    num_layers = _count_blocks(shapes, "blocks")
    heads = _heads(config, dim, where)
    architecture = Architecture(
        model_type=_model_type(
            in_channels, head[0] // per_channel, image_dim, image_tokens, vace_blocks, config, where
        ),
        dim=dim,
        ffn_dim=ffn[0],
        num_layers=num_layers,
        in_channels=in_channels,
        out_channels=head[0] // per_channel,
        text_dim=text[1],
        freq_dim=time[1],
        patch_size=(patch_sizes[0], patch_sizes[1], patch_sizes[2]),
        image_dim=image_dim,
        image_tokens=image_tokens,
        vace_blocks=vace_blocks,
        vace_in_channels=vace_patch[1] if vace_patch else None,
        vace_layers=_vace_layers(config, num_layers, vace_blocks, where),
        cross_attn_norm=any(".norm3." in name for name in shapes),
        num_heads=heads if heads is not None else (dim // _HEAD_DIM if dim % _HEAD_DIM == 0 else None),
        heads_known=heads is not None,
        text_len=_positive(config, "text_len", where) or 512,
        eps=_eps(config, where),
    )
    _check_depth(architecture, config, where)
    check_tensors(architecture, shapes, where)
    _check_config(architecture, config, where)
    return architecture


def _refuse_config(config: Mapping[str, Any], where: str) -> None:
    kind, class_name = config.get("model_type"), config.get("_class_name")
    told = f"{kind if isinstance(kind, str) else ''} {class_name if isinstance(class_name, str) else ''}".lower()
    for word in ("animate", "s2v"):
        if word in told:
            raise UnsupportedModelError(
                "a Wan Animate or S2V model is not supported",
                where=f"{where}: config.json",
                expected=", ".join(MODEL_TYPES),
                found=told.strip(),
            )


def _anchor(shapes: Mapping[str, Shape], name: str, dimensions: int, where: str) -> Shape:
    shape = shapes.get(name)
    if shape is None:
        raise MissingTensorError(
            "a tensor is missing",
            where=f"{where}: {name}",
            todo="download the checkpoint again, or give the folder that holds all its parts",
        )
    if len(shape) != dimensions or 0 in shape:
        raise ShapeMismatchError(
            "a shape that no Wan model has",
            where=f"{where}: {name}",
            expected=f"{dimensions} dimensions, none of them 0",
            found=list(shape),
        )
    return shape


def _count_blocks(shapes: Mapping[str, Shape], stack: str) -> int:
    matches = (_BLOCK.match(name) for name in shapes)
    return max((int(found[2]) + 1 for found in matches if found and found[1] == stack), default=0)


def _model_type(
    in_channels: int, out_channels: int, image_dim: int | None, image_tokens: int | None, vace_blocks: int,
    config: Mapping[str, Any], where: str,
) -> str:  # fmt: skip
    told = config.get("model_type")
    if vace_blocks:
        possible = ["vace"]
    elif image_tokens is not None:
        possible = ["flf2v"]
    elif image_dim is not None:
        possible = ["i2v", "flf2v"]
    elif in_channels > out_channels:
        possible = ["i2v"]
    else:
        # The latent of the TI2V autoencoder has 48 channels; only config.json can tell a small one.
        possible = ["ti2v", "t2v"] if in_channels == out_channels == 48 else ["t2v", "ti2v"]
    if told is None:
        return possible[0]
    if told not in possible:
        raise ConfigMismatchError(
            "config.json describes another kind of model than the tensors make up",
            where=f"{where}: config.json: model_type",
            expected=" or ".join(possible),
            found=told,
        )
    return str(told)


def _heads(config: Mapping[str, Any], dim: int, where: str) -> int | None:
    heads = _positive(config, "num_heads", where) or _positive(config, "num_attention_heads", where)
    if heads is None:
        return None
    width = _positive(config, "attention_head_dim", where)
    if dim % heads or (width is not None and heads * width != dim):
        raise ConfigMismatchError(
            "the heads of config.json do not make up the width",
            where=f"{where}: config.json",
            expected=f"{dim} channels",
            found=f"{heads} heads" + (f" of {width}" if width else ""),
        )
    return heads


def _positive(config: Mapping[str, Any], key: str, where: str) -> int | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigMismatchError("not a positive whole number", where=f"{where}: config.json: {key}", found=value)
    return value


def _eps(config: Mapping[str, Any], where: str) -> float:
    value = config.get("eps")
    if value is None:
        return 1e-6
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise ConfigMismatchError("not a small positive number", where=f"{where}: config.json: eps", found=value)
    return float(value)


def _vace_layers(config: Mapping[str, Any], num_layers: int, count: int, where: str) -> tuple[int, ...] | None:
    if not count:
        return None
    told = config.get("vace_layers")
    if told is None:
        # As in the releases: evenly spaced from block 0.
        return tuple(range(0, num_layers, num_layers // count)) if num_layers % count == 0 else None
    whole = isinstance(told, list) and all(isinstance(layer, int) and not isinstance(layer, bool) for layer in told)
    if not whole or len(told) != count or told != sorted(set(told)) or told[0] < 0 or told[-1] >= num_layers:
        raise ConfigMismatchError(
            "vace_layers do not fit the blocks",
            where=f"{where}: config.json: vace_layers",
            expected=f"{count} rising indices below {num_layers}",
            found=told,
        )
    return tuple(told)


def _check_depth(architecture: Architecture, config: Mapping[str, Any], where: str) -> None:
    told = _positive(config, "num_layers", where)
    if told is not None and told > architecture.num_layers:
        # Whole blocks at the end are absent: that is a missing tensor, not another model.
        raise MissingTensorError(
            "a tensor is missing",
            where=f"{where}: blocks.{architecture.num_layers}.modulation",
            expected=f"{told} blocks (config.json)",
            found=f"{architecture.num_layers}",
        )


def _check_config(architecture: Architecture, config: Mapping[str, Any], where: str) -> None:
    for field, keys in _CONFIG_NAMES.items():
        found = getattr(architecture, field)
        for key in keys:
            told = config.get(key)
            if told is None:
                continue
            if isinstance(found, tuple) and isinstance(told, list):
                told = tuple(told)
            if told != found or isinstance(told, bool) != isinstance(found, bool):
                raise ConfigMismatchError(
                    "config.json contradicts the tensors",
                    where=f"{where}: config.json: {key}",
                    expected=f"{found} (from the tensors)",
                    found=told,
                )
