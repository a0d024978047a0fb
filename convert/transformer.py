"""Building a diffusers transformer from an expert of any layout.

One baseline for every loader: each tensor is the base's rounded to BF16, kept in BF16, except where diffusers keeps a
module in fp32 (`_keep_in_fp32_modules`): there the rounded value is stored as fp32. `from_pretrained` on an F32 release
would leave these few unrounded, so that "the BF16 model" depended on the file it was read from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfq.schema.errors import MissingDependencyError, UnsupportedModelError

from .architecture import Architecture
from .identity import Identity
from .keymap import to_diffusers
from .progress import Progress, Silent

if TYPE_CHECKING:
    from .checkpoint import Expert

__all__ = ["build_transformer", "empty_transformer", "keeps_fp32", "require_video_extra", "set_tensor"]


def require_video_extra() -> None:
    """Check that the packages which run a model are installed.

    Raises:
        MissingDependencyError
    """
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "running a model needs optional packages", found=error, todo="install them: pip install 'hfq[video]'"
        ) from None


def empty_transformer(architecture: Architecture) -> nn.Module:
    """The diffusers transformer of an architecture: parameters on the meta device, rotary tables real.

    Raises:
        UnsupportedModelError: the number of attention heads is unknown.
        MissingDependencyError
    """
    require_video_extra()
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    if architecture.num_heads is None:
        raise UnsupportedModelError(
            "the number of attention heads is unknown",
            expected="a config.json with num_heads beside the weights",
            found=f"dim {architecture.dim}, which is no multiple of 128",
        )
    image = architecture.image_dim is not None
    config: dict[str, Any] = {
        "patch_size": tuple(architecture.patch_size),
        "num_attention_heads": architecture.num_heads,
        "attention_head_dim": architecture.dim // architecture.num_heads,
        "in_channels": architecture.in_channels,
        "out_channels": architecture.out_channels,
        "text_dim": architecture.text_dim,
        "freq_dim": architecture.freq_dim,
        "ffn_dim": architecture.ffn_dim,
        "num_layers": architecture.num_layers,
        "cross_attn_norm": architecture.cross_attn_norm,
        "eps": architecture.eps,
        "image_dim": architecture.image_dim,
        "added_kv_proj_dim": architecture.dim if image else None,
        "pos_embed_seq_len": architecture.image_tokens,
    }
    with init_empty_weights(include_buffers=False):
        if architecture.vace_blocks:
            if architecture.vace_layers is None:
                raise UnsupportedModelError("which blocks the VACE branch feeds is unknown", expected="a config.json")
            config["vace_layers"] = list(architecture.vace_layers)
            config["vace_in_channels"] = architecture.vace_in_channels
        made = WanVACETransformer3DModel if architecture.vace_blocks else WanTransformer3DModel
        model: nn.Module = made(**config)
    return model


def keeps_fp32(model: nn.Module, name: str) -> bool:
    """Whether diffusers keeps this parameter (diffusers name) of the model in fp32."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return bool(kept & set(name.split(".")))


def set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter by a value of its own, without gradient."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))


def build_transformer(
    expert: Expert, *, dtype: torch.dtype = torch.bfloat16, progress: Progress | None = None
) -> tuple[nn.Module, Identity]:
    """Read an expert once, into a diffusers transformer in evaluation mode, and identify it on the way.

    Args:
        expert: of any layout.
        dtype: of everything that diffusers does not keep in fp32; BF16, or float32 for a reference run.

    Returns:
        the transformer and the expert's identity.
    """
    model = empty_transformer(expert.architecture)
    scan = expert.scan(progress=progress or Silent(), hash_files=False)
    for tensor in scan:
        name = to_diffusers(tensor.name)
        kept = torch.float32 if keeps_fp32(model, name) else dtype
        # A copy of its own: the alignment of a tensor inside a file's buffer changes the last bits of a CPU product.
        set_tensor(model, name, tensor.bf16.to(kept, copy=True))
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if left:
        raise UnsupportedModelError("diffusers expects tensors that the checkpoint does not have", found=left[0])
    model.eval()
    return model, scan.identity


def memory_bytes(architecture: Architecture) -> int:
    """Bytes of a transformer in BF16, fp32 parts not counted twice: the size of its tensors at two bytes each."""
    return 2 * sum(math.prod(shape) for shape in architecture.tensors().values())
