"""Opening every layout, and what may be inside."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from synthetic import (
    PAIR,
    RELEASES,
    released_keys,
    released_shapes,
    tiny,
    value,
    write_checkpoint,
    write_expert,
    write_file,
    write_sharded,
)

from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.derive import derive_architecture
from hfq.schema.errors import (
    ConfigMismatchError,
    HfqError,
    MalformedFileError,
    MissingTensorError,
    TrailingBytesError,
    UnexpectedTensorError,
    UnknownLayoutError,
    UnsupportedDtypeError,
    UnsupportedModelError,
)

PAIRS = ("original-2.2", "diffusers-pair", "comfyui-pair")
KINDS = ("t2v", "i2v", "i2v-image", "flf2v", "ti2v", "vace")
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")


# --- every layout of every release, as sparse files -----------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("layout", "shards"),
    [("original-2.1", 1), ("original-2.1", 6), ("original-2.2", 1), ("original-2.2", 6), ("diffusers", 1),
     ("diffusers", 12), ("diffusers-pair", 1), ("diffusers-pair", 12), ("comfyui-pair", 1)],
)  # fmt: skip
def test_a_release_opens_in_every_layout(release: str, layout: str, shards: int, tmp_path: Path) -> None:
    keys = released_keys(release, "original")
    made = derive_architecture(released_shapes(release), keys["config"], release)
    model = write_checkpoint(tmp_path, made, layout, seed=None, dtype="F32", shards=shards)
    with open_checkpoint(model) as checkpoint:
        pair = layout in PAIRS
        assert list(checkpoint.experts) == (list(PAIR) if pair else ["single"])
        assert checkpoint.layout == layout.replace("-pair", "").replace("comfyui", "comfyui-single-file")
        assert checkpoint.architecture.tensors() == released_shapes(release)
        for expert in checkpoint.experts.values():
            assert len(expert.names) == keys["n_tensors"]
            assert list(expert.names) == sorted(keys["tensors"])
            assert len(expert.sites) == keys["n_linear_weights"]
            assert sum(site.in_block for site in expert.sites) == keys["n_block_linear_weights"]
            assert len(expert.files) == shards
            assert sum(expert.info(name).size_bytes for name in expert.names) == keys["bytes_f32"]
            assert expert.read("blocks.7.norm3.bias").sum() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["original-2.1", "original-2.2", "diffusers", "diffusers-pair", "comfyui-pair"])
@pytest.mark.parametrize("dtype", ["BF16", "mixed"])
def test_a_small_model_of_every_kind_is_read_back(kind: str, layout: str, dtype: str, tmp_path: Path) -> None:
    made = tiny(kind)
    model = write_checkpoint(tmp_path, made, layout, dtype=dtype, shards=1 if layout == "comfyui-pair" else 2)
    with open_checkpoint(model) as checkpoint:
        assert checkpoint.architecture.tensors() == made.tensors()
        for role, expert in checkpoint.experts.items():
            for name in expert.names[::7]:
                expected = value(0, role, name, made.tensors()[name]).bfloat16()
                found = expert.read(name)
                assert found.dtype == (torch.float32 if expert.info(name).dtype == "F32" else torch.bfloat16)
                assert torch.equal(found.bfloat16(), expected)
                assert torch.equal(expert.read_bf16(name), expected)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_prefixes_are_taken_off(prefix: str, naming: str, tmp_path: Path) -> None:
    write_expert(tmp_path, tiny("vace").tensors(), naming=naming, prefix=prefix, stem="wan_low_noise")
    with open_checkpoint(tmp_path / "wan_low_noise.safetensors") as checkpoint:
        expert = checkpoint.experts["low_noise"]
        assert (expert.prefix, expert.naming) == (prefix, naming)
        assert set(expert.names) == set(tiny("vace").tensors())
        assert expert.info("blocks.0.norm3.bias").stored_name.startswith(prefix + "blocks.0.norm")


def test_other_parts_of_an_all_in_one_file_are_passed_over(tmp_path: Path) -> None:
    prefix = "model.diffusion_model."
    plan = [(prefix + name, "F16", shape) for name, shape in tiny().tensors().items()]
    others = [("vae.decoder.conv1.weight", "BF16", (3, 2)), ("text_encoders.umt5xxl.shared.weight", "F32", (5,))]
    shapes = {name: shape for name, _, shape in [*others, *plan]}
    write_file(tmp_path / "a.safetensors", [others[0], *plan, others[1]], lambda name: torch.ones(shapes[name]))
    with open_checkpoint(tmp_path / "a.safetensors", role="single") as checkpoint:
        expert = checkpoint.experts["single"]
        assert expert.other_tensors == 2
        assert len(expert.names) == len(plan)
    write_file(tmp_path / "b.safetensors", [*plan, ("blocks.0.modulation", "F16", (1, 6, 64))], None)
    with pytest.raises(UnexpectedTensorError, match="outside the model"):
        open_checkpoint(tmp_path / "b.safetensors", role="single")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_that_diffusers_saved(dtype: str, tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(3)
    sizes = {"patch_size": (1, 4, 4), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 3,
             "out_channels": 3, "text_dim": 16, "freq_dim": 8, "ffn_dim": 40, "num_layers": 2}  # fmt: skip
    model = WanTransformer3DModel(**sizes)
    model.save_pretrained(tmp_path / "f32", max_shard_size="40KB")
    if dtype == "bfloat16":
        model = WanTransformer3DModel.from_pretrained(tmp_path / "f32", torch_dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved", max_shard_size="40KB")
    with open_checkpoint(tmp_path / "saved") as checkpoint, open_checkpoint(tmp_path / "f32") as full:
        expert = checkpoint.experts["single"]
        assert checkpoint.layout == "diffusers-transformer"
        assert len(expert.files) > 1
        assert expert.architecture.num_heads == 2
        dtypes = {expert.info(name).dtype for name in expert.names}
        assert dtypes == ({"F32"} if dtype == "float32" else {"F32", "BF16"})
        state = model.state_dict()
        for name in expert.names:
            stored = expert.read(name)
            assert torch.equal(stored, state[expert.info(name).stored_name])
        assert expert.identity().bf16_root == full.experts["single"].identity().bf16_root


# --- what is inside -------------------------------------------------------------------------------------------------


def test_a_file_of_something_else(tmp_path: Path) -> None:
    write_file(tmp_path / "a.safetensors", [("shared.weight", "F32", (2, 3)), ("encoder.x", "F32", (2,))], None)
    with pytest.raises(UnknownLayoutError, match=r"encoder\.x"):
        open_checkpoint(tmp_path / "a.safetensors")
    write_file(tmp_path / "b.safetensors", [], None)
    with pytest.raises(UnknownLayoutError, match="no tensor"):
        open_checkpoint(tmp_path / "b.safetensors")


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_missing_and_extra_tensors_are_named(naming: str, tmp_path: Path) -> None:
    shapes = tiny().tensors()
    missing = {name: shape for name, shape in shapes.items() if name != "blocks.1.cross_attn.norm_k.weight"}
    write_expert(tmp_path / "a", missing, naming=naming)
    with pytest.raises(MissingTensorError, match=r"blocks\.1\.cross_attn\.norm_k\.weight"):
        open_checkpoint(tmp_path / "a")
    write_expert(tmp_path / "b", {**shapes, "blocks.3.modulation": (1, 6, 64)}, naming=naming)
    with pytest.raises(MissingTensorError, match=r"blocks\.3\.self_attn"):
        open_checkpoint(tmp_path / "b")
    (file,) = write_expert(tmp_path / "c", shapes, naming=naming, stem="low_noise")
    with open_checkpoint(file) as checkpoint:
        stored = [checkpoint.experts["low_noise"].info(name) for name in shapes]
    plan = [(info.stored_name, "F32", info.shape) for info in stored]
    for extra in ("blocks.0.norm9.weight", "surprise"):
        write_file(file, [*plan, (extra, "F32", (64,))], None)
        with pytest.raises(UnexpectedTensorError, match=extra.replace(".", r"\.")):
            open_checkpoint(file)
    # The norm of the other layout, under the name it has there.
    trap = "blocks.0.norm2.weight" if naming == "original" else "blocks.0.norm3.weight"
    write_file(file, [*plan, (trap, "F32", (64,))], None)
    with pytest.raises(UnexpectedTensorError, match=trap.replace(".", r"\.")):
        open_checkpoint(file)


def test_dtypes_that_no_base_has(tmp_path: Path) -> None:
    import safetensors.torch

    state = {name: torch.zeros(shape) for name, shape in tiny().tensors().items()}
    file = tmp_path / "low_noise.safetensors"
    for dtype, error in [(torch.float64, UnsupportedDtypeError), (torch.int8, UnsupportedDtypeError),
                         (torch.float8_e4m3fn, UnsupportedModelError)]:  # fmt: skip
        safetensors.torch.save_file({**state, "blocks.0.ffn.0.weight": state["blocks.0.ffn.0.weight"].to(dtype)}, file)
        with pytest.raises(error, match=r"blocks\.0\.ffn\.0\.weight"):
            open_checkpoint(file)
    # As ComfyUI's fp8_scaled files are: weights F8, the rest F16, scalar scales, an empty marker.
    scaled = {
        name: tensor.to(torch.float8_e4m3fn if tensor.ndim == 2 else torch.float16) for name, tensor in state.items()
    }
    scaled |= {
        name.replace(".weight", ".scale_weight"): torch.tensor(1.0) for name in state if name.endswith("q.weight")
    }
    scaled["scaled_fp8"] = torch.empty(0).to(torch.float8_e4m3fn)
    safetensors.torch.save_file(scaled, file)
    with pytest.raises(UnsupportedModelError, match="fp8_scaled"):
        open_checkpoint(file)


def test_animate_and_s2v_are_recognised(tmp_path: Path) -> None:
    for number, extra in enumerate(
        ("face_adapter.fuser_blocks.0.linear2.weight", "audio_injector.injector.0.q.weight")
    ):
        plan = [(name, "BF16", shape) for name, shape in tiny("i2v-image").tensors().items()]
        write_file(tmp_path / f"{number}.safetensors", [*plan, (extra, "BF16", (64, 64))], None)
        with pytest.raises(UnsupportedModelError, match=r"Animate|S2V"):
            open_checkpoint(tmp_path / f"{number}.safetensors")


def test_a_config_beside_a_comfyui_file_is_not_its_own(tmp_path: Path) -> None:
    (file,) = write_expert(tmp_path, tiny().tensors(), stem="low_noise")
    (tmp_path / "config.json").write_text(json.dumps({"dim": 5120}))
    with open_checkpoint(file) as checkpoint:
        assert not checkpoint.architecture.heads_known
    for text, error in [(json.dumps({"dim": 5120}), ConfigMismatchError), ("[]", MalformedFileError)]:
        root = write_sharded(tmp_path / error.code)
        (root / "config.json").write_text(text)
        with pytest.raises(error, match=r"config\.json"):
            open_checkpoint(root)


def test_files_are_closed_with_the_checkpoint_and_on_every_error(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    root = write_sharded(tmp_path / "a")
    for _ in range(3):
        open_checkpoint(root).close()
        with open_checkpoint(root):
            pass
    with open(root / "diffusion_pytorch_model-00004-of-00004.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(TrailingBytesError):
        open_checkpoint(root)
    write_checkpoint(tmp_path / "b", tiny(), "original-2.2")
    (tmp_path / "b" / "low_noise_model" / "config.json").write_text("[]")
    with pytest.raises(HfqError):
        open_checkpoint(tmp_path / "b")
    assert len(os.listdir("/proc/self/fd")) == before
