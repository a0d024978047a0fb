"""Random diffusers Wan pipelines of every kind, built in code: a byte-level tokenizer, a text encoder, a VAE and
transformers of two blocks, about a megabyte each, nothing downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

KINDS = ("t2v-2.2", "i2v-2.2", "i2v-2.1", "ti2v-2.2", "ti2v-2.2-image", "vace-2.1", "flf2v-2.1")
TINY_PROMPTS = ("a red circle moving left over a black background", "a blue square moving up over a white background")
"""Prompts of the fixture `tiny_calibration`."""
SIZE = {"height": 32, "width": 32, "frames": 9}
"""Settings that every kind can run; TI2V needs twice the pixels, see `size_of`."""

_TEXT_DIM, _IMAGE_DIM = 32, 48


def size_of(kind: str) -> dict[str, int]:
    """Height, width and frames of a run that takes no time."""
    return {**SIZE, "height": 64, "width": 64} if kind.startswith("ti2v") else dict(SIZE)


def tokenizer() -> Any:
    """One token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{letter: i for i, letter in enumerate(letters, 3)}}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _text_encoder() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=320, d_model=_TEXT_DIM, d_kv=8, d_ff=64, num_layers=1, num_heads=4, pad_token_id=0, eos_token_id=1
    )
    return UMT5EncoderModel(config).eval()


def _vae(kind: str) -> Any:
    from diffusers import AutoencoderKLWan

    common: dict[str, Any] = {
        "base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True],
    }  # fmt: skip
    if kind.startswith("ti2v"):
        return AutoencoderKLWan(
            **common, z_dim=48, in_channels=12, out_channels=12, is_residual=True, patch_size=2,
            scale_factor_spatial=16, scale_factor_temporal=4, latents_mean=[0.0] * 48, latents_std=[1.0] * 48,
        ).eval()  # fmt: skip
    return AutoencoderKLWan(**common, z_dim=16).eval()


def transformer(kind: str, seed: int) -> Any:
    """A random transformer, float32, parameters large enough that no layer vanishes."""
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    torch.manual_seed(seed)
    channels = {"t2v": (16, 16), "i2v": (36, 16), "flf2v": (36, 16), "ti2v": (48, 48), "vace": (16, 16)}
    incoming, outgoing = channels[kind.split("-")[0]]
    config: dict[str, Any] = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 64, "in_channels": incoming,
        "out_channels": outgoing, "text_dim": _TEXT_DIM, "freq_dim": 64, "ffn_dim": 256, "num_layers": 2,
        "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
    }  # fmt: skip
    if kind in ("i2v-2.1", "flf2v-2.1"):
        config |= {"image_dim": _IMAGE_DIM, "added_kv_proj_dim": 128}
    if kind == "flf2v-2.1":
        config |= {"pos_embed_seq_len": 10}
    if kind == "vace-2.1":
        return WanVACETransformer3DModel(**config, vace_layers=[0, 1], vace_in_channels=96).eval()
    return WanTransformer3DModel(**config).eval()


def build_pipeline(kind: str, seed: int = 0) -> Any:
    """A pipeline of one of `KINDS`, float32, on the CPU. `seed` decides every weight."""
    import diffusers
    from diffusers import UniPCMultistepScheduler
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(seed + 1000)
    # The conversion script writes flow_shift 3.0 for every model but these, whatever the official schedule is.
    shift = {"ti2v": 5.0, "flf2v": 16.0}.get(kind.split("-")[0], 3.0)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )
    parts: dict[str, Any] = {
        "tokenizer": tokenizer(), "text_encoder": _text_encoder(), "vae": _vae(kind), "scheduler": scheduler,
        "transformer": transformer(kind, seed),
    }  # fmt: skip
    two = kind in ("t2v-2.2", "i2v-2.2")
    boundary = {"t2v-2.2": 0.875, "i2v-2.2": 0.9}.get(kind)
    if kind == "vace-2.1":
        return diffusers.WanVACEPipeline(**parts, transformer_2=None)
    parts["transformer_2"] = transformer(kind, seed + 1) if two else None
    parts["boundary_ratio"] = boundary
    if kind in ("t2v-2.2", "ti2v-2.2"):
        return diffusers.WanPipeline(**parts, expand_timesteps=kind == "ti2v-2.2")
    parts["image_encoder"] = parts["image_processor"] = None
    if kind in ("i2v-2.1", "flf2v-2.1"):
        torch.manual_seed(seed + 2000)
        vision = CLIPVisionConfig(
            hidden_size=_IMAGE_DIM, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32,
            patch_size=16,
        )  # fmt: skip
        parts["image_encoder"] = CLIPVisionModel(vision).eval()
        parts["image_processor"] = CLIPImageProcessor(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32})
    return diffusers.WanImageToVideoPipeline(**parts, expand_timesteps=kind == "ti2v-2.2-image")


def write_pipeline(folder: Path, kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """The same as a diffusers folder, transformers stored in `dtype`."""
    pipeline = build_pipeline(kind, seed)
    for module in (pipeline.transformer, getattr(pipeline, "transformer_2", None)):
        if module is not None:
            module.to(dtype)
    pipeline.save_pretrained(folder)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == type(pipeline).__name__
    return folder
