"""Checkpoints that were saved inside a wrapper, and adapters: read, or refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made import bytes_of
from synthetic import tiny, write_checkpoint, write_expert, write_file
from torch import nn

from hfq.cli import run
from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.keymap import to_diffusers
from hfq.schema.errors import HfqError, UnexpectedTensorError, UnsupportedModelError, WrappedNameError

SHAPES = tiny("vace").tensors()
PREFIXES = (
    "module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.diffusion_model.module.",
    "diffusion_model._orig_mod.", "_forward_module.module.model.", "base_model.model.", "transformer.", "dit.",
    "_fsdp_wrapped_module.", "pipe.dit.", "ema.",
)  # fmt: skip


def write_names(path: Path, rename: Callable[[str], str], naming: str = "original") -> Path:
    """A file of `SHAPES` whose names have been changed."""
    plan = [
        (rename(to_diffusers(name) if naming == "diffusers" else name), "BF16", shape) for name, shape in SHAPES.items()
    ]
    write_file(path, plan, None)
    return path


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_one_prefix_of_all_names_is_taken_off(prefix: str, naming: str, tmp_path: Path) -> None:
    write_expert(tmp_path / "bare", SHAPES, naming=naming, dtype="BF16")
    write_expert(tmp_path / "wrapped", SHAPES, naming=naming, dtype="BF16", prefix=prefix, shards=2)
    with open_checkpoint(tmp_path / "bare") as bare, open_checkpoint(tmp_path / "wrapped") as wrapped:
        expert = wrapped.experts["single"]
        assert (expert.prefix, expert.naming) == (prefix, naming)
        found, expected = expert.identity(), bare.experts["single"].identity()
        assert found == expected  # both roots, and every digest under its canonical name
        assert wrapped.architecture == bare.architecture


def test_a_wrapped_checkpoint_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = "module._orig_mod."
    bare = write_checkpoint(tmp_path / "bare", tiny(), "original-2.2")
    wrapped = write_checkpoint(tmp_path / "wrapped", tiny(), "original-2.2", prefix=prefix)
    for base, out in ((bare, "a"), (wrapped, "b")):
        assert run(["convert", base, "--recipe", "rtn-hif4", "-o", str(tmp_path / out)]) == 0
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert run(["verify", str(tmp_path / "a"), "--base", wrapped]) == 0
    assert run(["verify", str(tmp_path / "b"), "--base", bare]) == 0
    capsys.readouterr()
    assert run(["inspect", wrapped]) == 0
    assert f"original names, prefix {prefix}" in capsys.readouterr().out
    assert run(["inspect", wrapped, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [expert["prefix"] for expert in document["experts"].values()] == [prefix, prefix]


def test_names_as_the_wrappers_themselves_save_them(tmp_path: Path) -> None:
    import safetensors.torch
    from diffusers import WanTransformer3DModel

    sizes = {"patch_size": (1, 4, 4), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 3,
             "out_channels": 3, "text_dim": 16, "freq_dim": 8, "ffn_dim": 40, "num_layers": 2}  # fmt: skip
    model = WanTransformer3DModel(**sizes)
    wrapped = torch.compile(nn.DataParallel(model))
    state = {name: value.clone() for name, value in wrapped.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "low_noise.safetensors")
    with open_checkpoint(tmp_path / "low_noise.safetensors") as checkpoint:
        assert checkpoint.experts["low_noise"].prefix == "_orig_mod.module."
    for block in range(2):
        model.blocks[block] = torch.compile(model.blocks[block])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "low_noise.safetensors")
    with pytest.raises(WrappedNameError, match=r"torch\.compile"):
        open_checkpoint(tmp_path / "low_noise.safetensors")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("_orig_mod", "torch.compile"), ("_fsdp_wrapped_module", "FSDP"), ("module", "DataParallel"),
        ("_checkpoint_wrapped_module", "activation checkpointing"), ("_forward_module", "Lightning"),
        ("_fsdp_wrapped_module._checkpoint_wrapped_module", "FSDP"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_wrapper_inside_the_names_is_named(part: str, words: str, naming: str, prefix: str, tmp_path: Path) -> None:
    def rename(name: str) -> str:
        pieces = name.split(".", 2)
        return prefix + (".".join([*pieces[:2], part, pieces[2]]) if pieces[0].endswith("blocks") else name)

    file = write_names(tmp_path / "low_noise.safetensors", rename, naming)
    with pytest.raises(WrappedNameError) as caught:
        open_checkpoint(file)
    message = str(caught.value)
    assert f"`{part.split('.')[0]}` inside the tensor names" in message
    assert words in message
    assert f"blocks.0.{part}." in message
    assert caught.value.exit_code == 1
    assert "save" in (caught.value.todo or "")


def test_one_wrapped_block_of_many_is_named(tmp_path: Path) -> None:
    file = write_names(
        tmp_path / "low_noise.safetensors",
        lambda name: name.replace("blocks.2.self_attn", "blocks.2._orig_mod.self_attn"),
    )
    with pytest.raises(WrappedNameError, match=r"blocks\.2\._orig_mod\.self_attn\.k\.bias: `_orig_mod` inside"):
        open_checkpoint(file)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_a_model_with_an_adapter_in_it_is_told_to_merge(prefix: str, tmp_path: Path) -> None:
    def rename(name: str) -> str:
        return prefix + name.replace("self_attn.q.", "self_attn.q.base_layer.")

    plan = [(rename(name), "BF16", shape) for name, shape in SHAPES.items()]
    plan += [(f"{prefix}blocks.0.self_attn.q.lora_A.default.weight", "BF16", (4, 64))]
    write_file(tmp_path / "low_noise.safetensors", plan, None)
    with pytest.raises(WrappedNameError, match=r"`base_layer` inside .*PEFT.*merge_and_unload"):
        open_checkpoint(tmp_path / "low_noise.safetensors")


def test_names_under_two_prefixes_are_refused(tmp_path: Path) -> None:
    both = [
        (prefix + name, "BF16", shape) for prefix in ("generator.", "generator_ema.") for name, shape in SHAPES.items()
    ]
    write_file(tmp_path / "low_noise.safetensors", both, None)
    with pytest.raises(UnexpectedTensorError, match=r"more than one prefix.*generator\. \(\d+ .*generator_ema\."):
        open_checkpoint(tmp_path / "low_noise.safetensors")
    write_names(tmp_path / "low_noise.safetensors", lambda name: name if "blocks.0" in name else f"module.{name}")
    with pytest.raises(HfqError, match=r"outside the model|more than one prefix"):
        open_checkpoint(tmp_path / "low_noise.safetensors")
    plan = [(f"module.{name}", "BF16", shape) for name, shape in SHAPES.items()]
    write_file(tmp_path / "low_noise.safetensors", [*plan, ("epoch", "F32", (1,))], None)
    with pytest.raises(UnexpectedTensorError, match=r"epoch: a tensor outside the model; expected names .* module\."):
        open_checkpoint(tmp_path / "low_noise.safetensors")


SITE = "diffusion_model.blocks.0.self_attn.q"
ADAPTERS = {
    "LoRA": (f"{SITE}.lora_A.weight", f"{SITE}.lora_B.weight"),
    "LoRA of kohya": ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "lora_unet_blocks_0_self_attn_q.alpha"),
    "LoRA of peft": ("base_model.model.blocks.0.self_attn.q.lora_A.default.weight",),
    "LoRA of diffusers": ("transformer.blocks.0.attn1.to_q.lora.down.weight",),
    "LoRA of processors": ("blocks.0.attn1.processor.to_q_lora.up.weight",),
    "LoRA with weights": (f"{SITE}.lora_up.weight", "diffusion_model.patch_embedding.weight"),
    "DoRA": (f"{SITE}.lora_A.weight", f"{SITE}.dora_scale"),
    "DoRA of peft": ("base_model.model.blocks.0.self_attn.q.lora_magnitude_vector.default.weight",),
    "LoKr": (f"{SITE}.lokr_w1", f"{SITE}.lokr_w2_a", f"{SITE}.alpha"),
    "LoKr of LyCORIS": ("lycoris_blocks_0_self_attn_q.lokr_w1",),
    "LoHa": (f"{SITE}.hada_w1_a",),
    "OFT": (f"{SITE}.oft_blocks",),
    "whole differences": (f"{SITE}.diff", f"{SITE}.diff_b", "diffusion_model.blocks.0.norm3.diff"),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_called_a_lora_with_what_to_do(kind: str, tmp_path: Path) -> None:
    write_file(tmp_path / "low_noise.safetensors", [(name, "BF16", (4, 8)) for name in ADAPTERS[kind]], None)
    with pytest.raises(UnsupportedModelError) as caught:
        open_checkpoint(tmp_path / "low_noise.safetensors")
    message = str(caught.value)
    special = kind.partition(" of ")[0].partition(" with")[0] if kind != "whole differences" else kind
    assert f"a LoRA{'' if special == 'LoRA' else f' ({special})'} and not a checkpoint;" in message
    assert "merge it into that checkpoint" in message
    assert "is not supported" not in message


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("blocks.0.self_attn.q.lora_A.weight", "a LoRA"),
        ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "a LoRA"),
        ("blocks.0.self_attn.q.diff", "a LoRA (whole differences)"),
        ("lycoris_blocks_0_self_attn_q.lokr_w1", "a LoRA (LoKr)"),
    ],
)
def test_a_checkpoint_with_an_adapter_beside_its_weights_is_not_called_a_lora(
    tensor: str, kind: str, naming: str, tmp_path: Path
) -> None:
    plan = [(to_diffusers(name) if naming == "diffusers" else name, "BF16", shape) for name, shape in SHAPES.items()]
    write_file(tmp_path / "low_noise.safetensors", [*plan, (tensor, "BF16", (4, 64))], None)
    with pytest.raises(UnsupportedModelError) as caught:
        open_checkpoint(tmp_path / "low_noise.safetensors")
    message = str(caught.value)
    assert f"{kind} beside the weights of a whole model;" in message
    assert tensor in message
    assert "not a checkpoint" not in message
    assert "merge it into the weights" in message


def test_no_tensor_of_a_model_is_taken_for_an_adapters(tmp_path: Path) -> None:
    for kind in ("t2v", "i2v-image", "flf2v", "vace"):
        for naming in ("original", "diffusers"):
            write_expert(tmp_path / kind / naming, tiny(kind).tensors(), naming=naming, dtype="BF16", seed=None)
            open_checkpoint(tmp_path / kind / naming, role="single").close()
