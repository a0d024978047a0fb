"""Sizes, expected tensors and sites, from names and shapes alone."""

from __future__ import annotations

import contextlib
import doctest
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import RELEASES, config_of, released_keys, released_shapes, tiny

import hfq.convert.architecture
from hfq.convert.architecture import Architecture
from hfq.convert.derive import derive_architecture
from hfq.convert.foreign import refuse_unsupported
from hfq.convert.keymap import site_of, to_original
from hfq.schema.errors import (
    ConfigMismatchError,
    HfqError,
    MissingTensorError,
    ShapeMismatchError,
    UnexpectedTensorError,
    UnsupportedModelError,
)

KINDS = ("t2v", "i2v", "i2v-image", "flf2v", "ti2v", "vace")
BASE_14B = Architecture("t2v", 5120, 13824, 40, 16, 16, 4096, 256, (1, 2, 2))
BASE_1_3B = Architecture("t2v", 1536, 8960, 30, 16, 16, 4096, 256, (1, 2, 2))

# Model, tensors, parameters, sites in blocks, in the VACE branch, outside: published sizes of the releases.
PUBLISHED = {
    "2.1 T2V-1.3B": (BASE_1_3B, 825, 1_418_996_800, 300, 0, 6),
    "2.1 T2V-14B": (BASE_14B, 1095, 14_288_491_584, 400, 0, 6),
    "2.1 I2V-14B": (
        replace(BASE_14B, model_type="i2v", in_channels=36, image_dim=1280), 1303, 16_394_878_784, 480, 0, 8,
    ),
    "2.1 FLF2V-14B": (
        replace(BASE_14B, model_type="flf2v", in_channels=36, image_dim=1280, image_tokens=514),
        1304, 16_395_536_704, 480, 0, 8,
    ),
    "2.1 VACE-1.3B": (
        replace(BASE_1_3B, model_type="vace", vace_blocks=15, vace_in_channels=96, vace_layers=tuple(range(0, 30, 2))),
        1264, 2_153_972_032, 300, 166, 6,
    ),
    "2.1 VACE-14B": (
        replace(BASE_14B, model_type="vace", vace_blocks=8, vace_in_channels=96, vace_layers=tuple(range(0, 40, 5))),
        1331, 17_337_592_896, 400, 89, 6,
    ),
    "2.2 I2V-A14B": (replace(BASE_14B, model_type="i2v", in_channels=36), 1095, 14_288_901_184, 400, 0, 6),
    "2.2 TI2V-5B": (
        Architecture("ti2v", 3072, 14336, 30, 48, 48, 4096, 256, (1, 2, 2)), 825, 4_999_787_712, 300, 0, 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_release_has_the_published_tensors_and_sites(name: str) -> None:
    made, tensors, parameters, in_blocks, in_vace, outside = PUBLISHED[name]
    shapes = made.tensors()
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == (tensors, parameters)
    sites = made.sites()
    stacks = [site.name.split(".")[0] if site.in_block else "" for site in sites]
    assert (stacks.count("blocks"), stacks.count("vace_blocks"), stacks.count("")) == (in_blocks, in_vace, outside)
    assert derive_architecture(shapes, None, "x") == replace(made, num_heads=made.dim // 128)


@pytest.mark.parametrize("release", RELEASES)
def test_a_key_list_gives_its_model(release: str) -> None:
    keys = released_keys(release, "original")
    shapes = released_shapes(release)
    for naming in ("original", "diffusers"):
        made = derive_architecture(shapes, released_keys(release, naming)["config"], release)
        assert made.tensors() == shapes
        assert (made.num_heads, made.heads_known) == (keys["config"]["num_heads"], True)
        assert made.model_type == keys["config"]["model_type"]
    sites = {site.name: site for site in made.sites()}
    linears = {name: entry for name, entry in keys["tensors"].items() if entry["linear_weight"]}
    assert set(sites) == {site_of(name) for name in linears}
    for name, entry in linears.items():
        site = sites[name.removesuffix(".weight")]
        assert [site.out_features, site.in_features] == entry["shape"]
        assert site.in_block == entry["in_block"]


def test_sites_that_share_an_input_share_a_group() -> None:
    groups: dict[str, list[str]] = {}
    for site in tiny("i2v-image").sites():
        groups.setdefault(site.input_group, []).append(site.name)
    assert groups["blocks.2.self_attn.qkv"] == [f"blocks.2.self_attn.{part}" for part in "qkv"]
    assert groups["blocks.2.cross_attn.kv"] == ["blocks.2.cross_attn.k", "blocks.2.cross_attn.v"]
    assert groups["blocks.2.cross_attn.kv_img"] == ["blocks.2.cross_attn.k_img", "blocks.2.cross_attn.v_img"]
    in_block = [group for group in groups if group.startswith("blocks.2.")]
    assert len(in_block) == 8
    assert sum(len(groups[group]) for group in in_block) == 12
    assert groups["head.head"] == ["head.head"]
    assert len([g for g in {s.input_group for s in tiny().sites()} if g.startswith("blocks.0.")]) == 7
    vace = {site.name: site.input_group for site in tiny("vace").sites()}
    assert vace["vace_blocks.0.before_proj"] == "vace_blocks.0.before_proj"
    assert vace["vace_blocks.1.self_attn.k"] == "vace_blocks.1.self_attn.qkv"
    assert "vace_blocks.1.before_proj" not in vace


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_a_small_model_of_every_kind(kind: str, naming: str) -> None:
    made = tiny(kind)
    found = derive_architecture(made.tensors(), config_of(made, naming), "x")
    # A diffusers config.json does not say t2v or ti2v; 48 channels do.
    assert found == made
    without = derive_architecture(made.tensors(), None, "x")
    assert without.tensors() == made.tensors()
    assert (without.num_heads, without.heads_known) == (None, False)  # 64 is no multiple of 128


@settings(max_examples=60, deadline=None)
@given(
    heads=st.integers(1, 4), width=st.integers(1, 12), ffn=st.integers(1, 40), layers=st.integers(1, 4),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)), text=st.integers(1, 9), freq=st.integers(1, 9),
    patch=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
    image=st.none() | st.integers(1, 9), norm=st.booleans(),
)  # fmt: skip
def test_any_sizes(heads: int, width: int, ffn: int, layers: int, channels: tuple[int, int], text: int, freq: int,
                   patch: tuple[int, int, int], image: int | None, norm: bool) -> None:  # fmt: skip
    in_channels, out_channels = max(channels), min(channels)
    kind = "i2v" if image or in_channels > out_channels else "t2v"
    made = Architecture(kind, heads * width, ffn, layers, in_channels, out_channels, text, freq, patch, image_dim=image,
                        cross_attn_norm=norm, num_heads=heads, heads_known=True)  # fmt: skip
    assert derive_architecture(made.tensors(), config_of(made, "diffusers"), "x") == made


@pytest.mark.parametrize(
    "config",
    [
        {"patch_size": (1, 4, 4), "num_attention_heads": 2, "attention_head_dim": 12, "cross_attn_norm": False},
        {"image_dim": 8, "added_kv_proj_dim": 24, "in_channels": 36},
        {"image_dim": 8, "added_kv_proj_dim": 24, "in_channels": 36, "pos_embed_seq_len": 6},
        {"in_channels": 48, "out_channels": 48},
        {"vace_layers": [0, 1], "vace_in_channels": 5},
    ],
)
def test_a_real_diffusers_model_of_any_kind(config: dict[str, Any]) -> None:
    import torch
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 8, "ffn_dim": 40,
             "num_layers": 2, **config}  # fmt: skip
    with torch.device("meta"):
        model = (WanVACETransformer3DModel if "vace_layers" in config else WanTransformer3DModel)(**sizes)
    shapes = {to_original(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    made = derive_architecture(shapes, dict(model.config), "x")
    assert made.tensors() == shapes
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert sorted((site.out_features, site.in_features) for site in made.sites()) == sorted(
        (linear.out_features, linear.in_features) for linear in linears
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_missing_tensor_is_named(kind: str) -> None:
    shapes = tiny(kind).tensors()
    for name in shapes:
        if ".2." in name and not name.startswith("blocks.2.modul"):
            continue  # one block stands for all
        left = {key: shape for key, shape in shapes.items() if key != name}
        # The position embedding is the one tensor that tells two models apart by being there.
        if name == "img_emb.emb_pos":
            assert derive_architecture(left, None, "x").model_type == "i2v"
            continue
        with pytest.raises(MissingTensorError, match=name.replace(".", r"\.")):
            derive_architecture(left, None, "x")


def test_missing_blocks_at_the_end_are_missing_tensors() -> None:
    shapes = {name: shape for name, shape in tiny().tensors().items() if not name.startswith("blocks.2.")}
    assert derive_architecture(shapes, None, "x").num_layers == 2
    with pytest.raises(MissingTensorError, match=r"blocks\.2\.modulation.*3 blocks"):
        derive_architecture(shapes, config_of(tiny(), "original"), "x")


@pytest.mark.parametrize(
    "name", ["blocks.1.cross_attn.norm_k_img.weight", "vace_blocks.0.after_proj.weight", "img_emb.proj.0.bias",
             "blocks.9998.modulation"],
)  # fmt: skip
def test_a_tensor_of_another_model_is_an_error(name: str) -> None:
    with pytest.raises((MissingTensorError, UnexpectedTensorError)):
        derive_architecture({**tiny().tensors(), name: (64,)}, None, "x")


def test_extra_tensors_are_named() -> None:
    shapes = {**tiny("vace").tensors(), "vace_blocks.1.before_proj.weight": (64, 64)}
    with pytest.raises(UnexpectedTensorError, match=r"vace_blocks\.1\.before_proj\.weight"):
        derive_architecture(shapes, None, "x")


@pytest.mark.parametrize("kind", KINDS)
def test_every_wrong_shape_is_an_error(kind: str) -> None:
    shapes = tiny(kind).tensors()
    for name, shape in shapes.items():
        if ".1." in name or ".2." in name:
            continue
        for wrong in ((*shape, 1), shape[1:], (*shape[:-1], shape[-1] + 1), (*shape[:-1], 0)):
            changed = {**shapes, name: wrong}
            if name == "img_emb.emb_pos" and wrong == shape:
                continue
            with pytest.raises((ShapeMismatchError, ConfigMismatchError)):
                derive_architecture(changed, config_of(tiny(kind), "diffusers"), "x")


def test_swapped_shapes_are_named() -> None:
    shapes = tiny().tensors()
    shapes["blocks.1.ffn.0.weight"], shapes["blocks.1.ffn.2.weight"] = (
        shapes["blocks.1.ffn.2.weight"], shapes["blocks.1.ffn.0.weight"],
    )  # fmt: skip
    with pytest.raises(ShapeMismatchError, match=r"blocks\.1\.ffn\.0\.weight.*\[128, 64\].*\[64, 128\]"):
        derive_architecture(shapes, None, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 128}, {"ffn_dim": 64}, {"num_layers": 2}, {"in_dim": 4}, {"out_dim": 4}, {"freq_dim": 1},
        {"text_dim": 4096}, {"patch_size": [1, 2, 2]}, {"num_heads": 3}, {"num_heads": 0}, {"num_heads": "2"},
        {"num_heads": True}, {"model_type": "i2v"}, {"model_type": 7}, {"eps": "small"}, {"eps": 0}, {"text_len": -1},
        {"image_dim": 1280}, {"cross_attn_norm": False}, {"patch_size": "1,4,4"}, {"attention_head_dim": 31},
    ],
)  # fmt: skip
def test_a_config_that_contradicts_the_tensors_is_an_error(change: dict[str, Any]) -> None:
    config = {**config_of(tiny(), "original"), **change}
    with pytest.raises(ConfigMismatchError, match=r"config\.json"):
        derive_architecture(tiny().tensors(), config, "x")


def test_the_config_tells_what_no_tensor_shows() -> None:
    config = {**config_of(tiny(), "original"), "num_heads": 4, "eps": 1e-5, "text_len": 77, "model_type": "ti2v"}
    made = derive_architecture(tiny().tensors(), config, "x")
    assert (made.num_heads, made.head_dim, made.eps, made.text_len, made.model_type) == (4, 16, 1e-5, 77, "ti2v")
    vace = derive_architecture(tiny("vace").tensors(), {"vace_layers": [0, 1]}, "x")
    assert vace.vace_layers == (0, 1)
    for wrong in ([0], [1, 0], [0, 3], [0, "1"], "0,1", [0, True]):
        with pytest.raises(ConfigMismatchError):
            derive_architecture(tiny("vace").tensors(), {"vace_layers": wrong}, "x")


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("face_adapter.fuser_blocks.0.linear1_kv.weight", "BF16", "Animate"),
        ("motion_encoder.enc.fc.0.weight", "F32", "Animate"),
        ("audio_injector.injector.0.q.weight", "BF16", "S2V"),
        ("casual_audio_encoder.weights", "BF16", "S2V"),
        ("blocks.0.ffn.0.scale_weight", "F32", "fp8_scaled"),
        ("scaled_fp8", "F8_E4M3", "fp8_scaled"),
        ("blocks.0.ffn.0.weight_scale", "F32", "scaled format"),
        ("blocks.0.ffn.0.weight", "F8_E4M3", "quantized"),
        ("diffusion_model.blocks.0.ffn.0.lora_A.weight", "BF16", "a LoRA beside the weights of a whole model"),
    ],
)
def test_models_that_are_not_supported_are_recognised(name: str, dtype: str, words: str) -> None:
    dtypes = {**dict.fromkeys(tiny().tensors(), "BF16"), name: dtype}
    with pytest.raises(UnsupportedModelError, match=words):
        refuse_unsupported(dtypes, "x")


@pytest.mark.parametrize("config", [{"model_type": "animate"}, {"_class_name": "WanAnimateTransformer3DModel"},
                                    {"model_type": "s2v"}, {"_class_name": "WanModel_S2V"}])  # fmt: skip
def test_a_config_of_an_unsupported_model_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError):
        derive_architecture(tiny().tensors(), config, "x")


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*tiny("vace").tensors(), "blocks.7.modulation", "img_emb.emb_pos", "x"]),
        st.lists(st.integers(0, 2**40), max_size=6).map(tuple), max_size=4,
    ),
    st.dictionaries(st.sampled_from(["dim", "num_heads", "model_type", "eps", "vace_layers", "patch_size"]),
                    st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.floats()),
)  # fmt: skip
def test_hostile_shapes_and_configs_end_in_an_error_of_ours(
    changes: dict[str, tuple[int, ...]], config: dict[str, Any]
) -> None:
    with contextlib.suppress(HfqError):
        derive_architecture({**tiny("vace").tensors(), **changes}, config, "x")


@pytest.mark.parametrize(
    ("made", "could"),
    [
        (BASE_14B, True),
        (replace(BASE_14B, model_type="i2v", in_channels=36), True),
        (PUBLISHED["2.1 VACE-14B"][0], True),
        (tiny(), True),
        (BASE_1_3B, False),
        (PUBLISHED["2.1 VACE-1.3B"][0], False),
        (PUBLISHED["2.2 TI2V-5B"][0], False),
        (PUBLISHED["2.1 I2V-14B"][0], False),
        (PUBLISHED["2.1 FLF2V-14B"][0], False),
    ],
)
def test_what_could_be_one_of_two_experts(made: Architecture, could: bool) -> None:
    assert made.could_be_expert() is could


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(hfq.convert.architecture).failed == 0
