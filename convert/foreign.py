"""Files that are recognised and are no base: other models, adapters, quantized files. Tensor names and dtypes tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from hfq.schema.errors import UnsupportedModelError

__all__ = ["refuse_unsupported"]

_SUPPORTED: Final = "Wan T2V, I2V, FLF2V, TI2V or VACE in F32, BF16 or F16"

# Name fragments that only another kind of model has, and what it is.
_MODELS: Final = (
    (("face_adapter.", "motion_encoder.", "face_encoder.", "pose_patch_embedding."), "a Wan Animate model"),
    (("audio_injector.", "casual_audio_encoder.", "audio_proj", "trainable_cond_mask", "frame_packer."),
     "a Wan S2V (speech to video) model"),
)  # fmt: skip

# Adapters as peft, kohya, diffusers, ComfyUI and LyCORIS name their tensors; the special ones first, because a DoRA has
# the tensors of a LoRA, too.
_ADAPTERS: Final = tuple(
    (re.compile(pattern, re.ASCII), kind)
    for pattern, kind in (
        (r"\.(dora_scale|lora_magnitude_vector)(\.|$)", "DoRA"),
        (r"[._]lokr_w[12]", "LoKr"),
        (r"[._]hada_[wt][12]", "LoHa"),
        (r"[._]b?oft_(blocks|diag|r|s)(\.|_|$)|\.oft_R\.", "OFT"),
        (r"[._]ia3_l(\.|$)|\.on_input$", "IA3"),
        (r"[._]vera_lambda_[bd]", "VeRA"),
        (r"\.(a1|a2|b1|b2|bm1|bm2)\.weight$", "GLoRA"),
        (r"[._]lora_(A|B|up|down|mid|embedding_[AB])(\.|$)|^lora_(unet|te|transformer)|[._]lora\.(up|down)\.", ""),
        (r"\.lora_linear_layer\.|^lycoris_", ""),
        (r"\.(diff|diff_b|diff_m|w_norm|b_norm|set_weight|reshape_weight)$", "whole differences"),
    )
)

# A weight that every model has and no adapter: where it is, the adapter's tensors lie beside a whole model.
_WHOLE: Final = re.compile(r"(^|\.)blocks\.0\.ffn\.(0|net\.0\.proj)\.weight$")

_QUANTIZED: Final = (
    "scaled_fp8", ".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant", ".qweight",
    ".qzeros", ".absmax", ".quant_map", ".quant_state", ".weight_packed", ".wscales",
)  # fmt: skip


def refuse_unsupported(dtypes: Mapping[str, str], where: str) -> None:
    """Recognise what is known and not supported, from tensor names (any layout, any prefix) and safetensors dtypes.

    Raises:
        UnsupportedModelError: Animate, S2V, LoRA and its relatives, fp8_scaled and other quantized files.
    """
    for fragments, what in _MODELS:
        found = next((name for name in dtypes if any(fragment in name for fragment in fragments)), None)
        if found is not None:
            raise UnsupportedModelError(
                f"{what} is not supported",
                where=where,
                expected=_SUPPORTED,
                found=f"tensor {found}",
                todo="give the checkpoint of a supported model",
            )
    for pattern, kind in _ADAPTERS:
        found = next((name for name in dtypes if pattern.search(name)), None)
        if found is not None:
            adapter = f"a LoRA{f' ({kind})' if kind else ''}"
            if any(_WHOLE.search(name) for name in dtypes):
                raise UnsupportedModelError(
                    f"{adapter} beside the weights of a whole model",
                    where=where,
                    expected=_SUPPORTED,
                    found=f"tensor {found}",
                    todo="merge it into the weights, or leave its tensors out, and save the checkpoint again",
                )
            raise UnsupportedModelError(
                f"{adapter} and not a checkpoint",
                where=where,
                expected=_SUPPORTED,
                found=f"tensor {found}",
                todo="give the checkpoint that it is for; to have it in the delta, merge it into that checkpoint with "
                "peft, LyCORIS or ComfyUI first, and give the merged file",
            )
    found = next((name for name in dtypes if any(fragment in name for fragment in _QUANTIZED)), None)
    if found is not None:
        raise UnsupportedModelError(
            "a quantized file (fp8_scaled or another scaled format) is not a base",
            where=where,
            expected=_SUPPORTED,
            found=f"tensor {found}",
            todo="give the F32, BF16 or F16 checkpoint that it was made from",
        )
    eight_bit = next((name for name, dtype in dtypes.items() if dtype.startswith(("F8_", "F4", "F6_"))), None)
    if eight_bit is not None:
        raise UnsupportedModelError(
            "a quantized file is not a base",
            where=f"{where}: {eight_bit}",
            expected="F32, BF16 or F16",
            found=dtypes[eight_bit],
            todo="give the checkpoint that it was made from",
        )
