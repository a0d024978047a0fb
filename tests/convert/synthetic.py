"""Checkpoints made up for tests: any architecture, layout, dtype and sharding; seeded values, or sparse files of zeros.

Values depend on (seed, role, canonical name) alone, so that the same weights can be written in every layout. Files are
written one tensor at a time: a 14B model needs disk, not memory, and a sparse one needs neither.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfq.convert.architecture import Architecture, Shape
from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.keymap import to_diffusers

KEYS = Path(__file__).parents[1] / "data" / "wan-keys"
RELEASES = ("wan2.1-t2v-1.3B", "wan2.1-t2v-14B", "wan2.1-i2v-14B", "wan2.2-i2v-A14B-expert")
TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPES = ("F32", "BF16", "F16", "mixed")
PAIR = ("high_noise", "low_noise")

TINY = Architecture(
    model_type="t2v", dim=64, ffn_dim=128, num_layers=3, in_channels=3, out_channels=3, text_dim=32, freq_dim=64,
    patch_size=(1, 4, 4), num_heads=2, heads_known=True,
)  # fmt: skip


def tiny(model_type: str = "t2v", **changes: Any) -> Architecture:
    """A model of every kind that takes kilobytes."""
    kinds: dict[str, dict[str, Any]] = {
        "t2v": {},
        "i2v": {"in_channels": 10},
        "i2v-image": {"in_channels": 10, "image_dim": 48},
        "flf2v": {"in_channels": 10, "image_dim": 48, "image_tokens": 7},
        "ti2v": {"in_channels": 48, "out_channels": 48},
        "vace": {"vace_blocks": 2, "vace_in_channels": 12, "vace_layers": (0, 2)},
    }
    kind = "i2v" if model_type == "i2v-image" else model_type
    return replace(TINY, model_type=kind, **{**kinds[model_type], **changes})


def released_keys(name: str, layout: str) -> dict[str, Any]:
    """A key list of a released model: {"tensors": {name: {"shape", "other_layout", ...}}, ...}."""
    with gzip.open(KEYS / f"{name}.{layout}.json.gz") as file:
        keys: dict[str, Any] = json.load(file)
    return keys


def released_shapes(name: str) -> dict[str, Shape]:
    """Canonical name -> shape of a released model."""
    return {tensor: tuple(entry["shape"]) for tensor, entry in released_keys(name, "original")["tensors"].items()}


def value(seed: int, role: str, name: str, shape: Shape, *, representable: bool = False) -> Tensor:
    """The F32 values of one tensor; `representable` rounds them to BF16 first."""
    digest = hashlib.sha256(f"{seed}/{role}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    values = torch.randn(shape, generator=generator) * 0.02
    return values.bfloat16().float() if representable else values


def stored_dtype(dtype: str, name: str) -> str:
    """The dtype of a tensor; "mixed" keeps what diffusers keeps in fp32 after loading in BF16."""
    if dtype != "mixed":
        return dtype
    kept = "modulation" in name or "time_embedding" in name or "norm3" in name or "img_emb.proj.0" in name
    return "F32" if kept or "img_emb.proj.4" in name else "BF16"


def write_file(
    path: Path, plan: Sequence[tuple[str, str, Shape]], make: Callable[[str], Tensor] | None,
    metadata: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """A safetensors file with these (name, dtype, shape), written without the code under test. None: zeros, sparse."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in plan:
        end = offset + math.prod(shape) * TORCH[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, _ in plan if make else ():
            data = make(name).to(TORCH[dtype]).contiguous() if make else torch.empty(0)
            file.write(data.reshape(-1).view(torch.uint8).numpy().tobytes())
        file.truncate(8 + len(text) + offset)


def write_expert(
    folder: Path, shapes: Mapping[str, Shape], *, role: str = "single", naming: str = "original", dtype: str = "F32",
    shards: int = 1, index: bool = True, seed: int | None = 0, representable: bool = False, prefix: str = "",
    stem: str = "diffusion_pytorch_model", suffix: str = "",
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> list[Path]:  # fmt: skip
    """One transformer's files in `folder`; `seed=None` is sparse zeros; `change(canonical name, values)` edits them."""
    stored = {prefix + (to_diffusers(name) if naming == "diffusers" else name): name for name in shapes}

    def make(name: str) -> Tensor:
        canonical = stored[name]
        values = value(seed or 0, role, canonical, shapes[canonical], representable=representable)
        values = values if change is None else change(canonical, values)
        # Mixed files keep fp32 of rounded values, as a model loaded in BF16 and saved again does.
        return values.bfloat16().float() if dtype == "mixed" else values

    names = sorted(stored)
    parts = [names[i * len(names) // shards : (i + 1) * len(names) // shards] for i in range(shards)]
    files, places = [], {}
    for number, part in enumerate(parts, 1):
        middle = f"-{number:05}-of-{shards:05}" if shards > 1 else ""
        path = folder / f"{stem}{middle}{suffix}.safetensors"
        plan = [(name, stored_dtype(dtype, stored[name]), shapes[stored[name]]) for name in part]
        write_file(path, plan, None if seed is None else make)
        files.append(path)
        places.update(dict.fromkeys(part, path.name))
    if shards > 1 and index:
        document = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(document))
    return files


def config_of(architecture: Architecture, naming: str) -> dict[str, Any]:
    """The config.json that a release of this model has: original ones leave patch size and text width out."""
    heads = architecture.num_heads or architecture.dim // 128
    if naming == "original":
        config: dict[str, Any] = {
            "_class_name": "WanModel", "dim": architecture.dim, "eps": architecture.eps,
            "ffn_dim": architecture.ffn_dim, "freq_dim": architecture.freq_dim, "in_dim": architecture.in_channels,
            "model_type": architecture.model_type, "num_heads": heads, "num_layers": architecture.num_layers,
            "out_dim": architecture.out_channels, "text_len": architecture.text_len,
        }  # fmt: skip
        if architecture.vace_layers:
            config |= {"vace_layers": list(architecture.vace_layers), "vace_in_dim": architecture.vace_in_channels}
        return config
    vace: dict[str, Any] = {}
    if architecture.vace_layers:
        vace = {"vace_layers": list(architecture.vace_layers), "vace_in_channels": architecture.vace_in_channels}
    return vace | {
        "_class_name": "WanVACETransformer3DModel" if architecture.vace_blocks else "WanTransformer3DModel",
        "patch_size": list(architecture.patch_size), "num_attention_heads": heads,
        "attention_head_dim": architecture.dim // heads, "in_channels": architecture.in_channels,
        "out_channels": architecture.out_channels, "text_dim": architecture.text_dim,
        "freq_dim": architecture.freq_dim, "ffn_dim": architecture.ffn_dim, "num_layers": architecture.num_layers,
        "cross_attn_norm": architecture.cross_attn_norm, "qk_norm": "rms_norm_across_heads", "eps": architecture.eps,
        "image_dim": architecture.image_dim, "added_kv_proj_dim": architecture.dim if architecture.image_dim else None,
        "rope_max_seq_len": 1024, "pos_embed_seq_len": architecture.image_tokens,
    }  # fmt: skip


def write_checkpoint(
    root: Path, architecture: Architecture, layout: str, *, roles: Iterable[str] | None = None, config: bool = True,
    **options: Any,
) -> str:  # fmt: skip
    """A whole checkpoint; returns what `open_checkpoint` takes. `options` are those of `write_expert`.

    Layouts: "original-2.1" (flat), "original-2.2" (two folders), "diffusers" (one transformer), "diffusers-pair",
    "comfyui" (one bare file, whose name says nothing), "comfyui-pair" (role=FILE,role=FILE).
    """
    shapes = architecture.tensors()
    pair = layout in ("original-2.2", "diffusers-pair", "comfyui-pair")
    naming = "diffusers" if layout.startswith("diffusers") else "original"
    folders = {
        "original-2.2": {"high_noise": "high_noise_model", "low_noise": "low_noise_model"},
        "diffusers-pair": {"high_noise": "transformer", "low_noise": "transformer_2"},
        "diffusers": {"single": "transformer"},
    }.get(layout, {})
    files: dict[str, Path] = {}
    for role in roles or (PAIR if pair else ("single",)):
        folder = root / folders.get(role, "")
        named = {"stem": f"wan_{role if pair else 'model'}"} if layout.startswith("comfyui") else {}
        files[role] = write_expert(folder, shapes, role=role, naming=naming, **{**named, **options})[0]
        if config and not layout.startswith("comfyui"):
            (folder / "config.json").write_text(json.dumps(config_of(architecture, naming)))
    if naming == "diffusers":
        parts = {name: ["diffusers", "WanTransformer3DModel"] for name in folders.values()}
        index = {"_class_name": "WanPipeline", "boundary_ratio": 0.875, "transformer_2": [None, None], **parts}
        (root / "model_index.json").write_text(json.dumps(index))
    if layout == "comfyui-pair":
        return ",".join(f"{role}={path}" for role, path in files.items())
    return str(files["single"]) if layout == "comfyui" else str(root)


def write_sharded(root: Path, **options: Any) -> Path:
    """A flat original folder of four shards with an index."""
    write_checkpoint(root, tiny(), "original-2.1", shards=4, **options)
    return root


def roles_of(model: Any, role: str | None = None) -> dict[str, str]:
    """role -> how it is known, of the experts that `open_checkpoint` finds."""
    with open_checkpoint(model, role=role) as checkpoint:
        return {name: expert.role_source for name, expert in checkpoint.experts.items()}
