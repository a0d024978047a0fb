"""How the role of an expert is known."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import (
    PAIR,
    RELEASES,
    config_of,
    released_shapes,
    roles_of,
    tiny,
    write_checkpoint,
    write_expert,
)

from hfq.convert.checkpoint import open_checkpoint, parse_model
from hfq.convert.derive import derive_architecture
from hfq.convert.role_names import roles_in
from hfq.schema.errors import (
    ConfigMismatchError,
    MissingPathError,
    MissingRoleError,
    ShapeMismatchError,
    UnreadableFileError,
    UsageError,
)


def test_folders_say_the_role(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "wan", tiny(), "original-2.2")
    assert roles_of(tmp_path / "wan") == {
        "high_noise": "folder high_noise_model", "low_noise": "folder low_noise_model",
    }  # fmt: skip
    assert roles_of(tmp_path / "wan" / "low_noise_model") == {"low_noise": "folder low_noise_model"}
    assert roles_of(tmp_path / "wan", role="low_noise") == {"low_noise": "folder low_noise_model"}
    # A file in such a folder is known by it.
    file = tmp_path / "wan" / "high_noise_model" / "diffusion_pytorch_model.safetensors"
    assert roles_of(file) == {"high_noise": "folder high_noise_model"}
    with pytest.raises(UsageError, match="does not have"):
        open_checkpoint(tmp_path / "wan", role="single")
    shutil.rmtree(tmp_path / "wan" / "low_noise_model")
    with pytest.raises(MissingPathError, match=r"low_noise_model.*high_noise_model alone"):
        open_checkpoint(tmp_path / "wan")


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, tiny(), "original-2.2")
    monkeypatch.chdir(tmp_path / "low_noise_model")
    assert roles_of(".") == {"low_noise": "folder low_noise_model"}


def test_a_pipeline_says_the_role(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "pair", tiny(), "diffusers-pair")
    both = {"high_noise": "model_index.json transformer", "low_noise": "model_index.json transformer_2"}
    assert roles_of(tmp_path / "pair") == both
    assert roles_of(tmp_path / "pair" / "transformer") == {"high_noise": "model_index.json transformer"}
    assert roles_of(tmp_path / "pair" / "transformer_2") == {"low_noise": "model_index.json transformer_2"}
    (tmp_path / "pair" / "model_index.json").unlink()
    assert roles_of(tmp_path / "pair") == {"high_noise": "folder transformer", "low_noise": "folder transformer_2"}
    assert roles_of(tmp_path / "pair" / "transformer") == {"high_noise": "folder transformer"}
    write_checkpoint(tmp_path / "one", tiny(), "diffusers")
    assert roles_of(tmp_path / "one") == {"single": "only one transformer"}
    assert roles_of(tmp_path / "one" / "transformer") == {"single": "only one transformer"}
    index = json.loads((tmp_path / "one" / "model_index.json").read_text())
    del index["transformer_2"]
    (tmp_path / "one" / "model_index.json").write_text(json.dumps(index))
    assert roles_of(tmp_path / "one") == {"single": "only one transformer"}
    # The low-noise transformer alone, as a pipeline may be cut down.
    index |= {"transformer": [None, None], "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (tmp_path / "one" / "transformer").rename(tmp_path / "one" / "transformer_2")
    (tmp_path / "one" / "model_index.json").write_text(json.dumps(index))
    assert roles_of(tmp_path / "one") == {"low_noise": "model_index.json transformer_2"}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("wan2.2_t2v_high_noise_14B_fp16", "high_noise"), ("wan2.2_t2v_low_noise_14B_bf16", "low_noise"),
        ("Wan2_2-T2V-A14B-HighNoise", "high_noise"), ("wan22-low-noise", "low_noise"), ("LOWNOISE", "low_noise"),
        ("wan_high_quality", None), ("wan_A14B_HIGH", "high_noise"), ("high_noise_and_low_noise", None),
        ("denoise", None), ("slow_noise", None), ("high_noises", None), ("model", None),
    ],
)  # fmt: skip
def test_a_file_name_says_the_role_or_nothing(name: str, role: str | None, tmp_path: Path) -> None:
    (file,) = write_expert(tmp_path, tiny().tensors(), stem=name)
    if role is None:
        with pytest.raises(MissingRoleError, match=r"--role high_noise, --role low_noise or --role single") as caught:
            open_checkpoint(file)
        assert caught.value.exit_code == 2
    else:
        assert roles_of(file) == {role: "file name"}
    for given_role in ("high_noise", "low_noise", "single"):
        found = roles_of(file, role=given_role)
        assert list(found) == [given_role]
        if role is None:
            assert found[given_role] == "--role"
        elif role != given_role:
            assert found[given_role] == f"--role (file name says {role})"


@pytest.mark.parametrize(
    ("kind", "asks"), [("t2v", True), ("i2v", True), ("vace", True), ("ti2v", False), ("i2v-image", False),
                       ("flf2v", False)],
)  # fmt: skip
def test_only_a_file_that_could_be_an_expert_needs_a_role(kind: str, asks: bool, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, tiny(kind), "comfyui")
    if asks:
        with pytest.raises(MissingRoleError):
            open_checkpoint(model)
        assert list(roles_of(model, role="high_noise")) == ["high_noise"]
    else:
        assert roles_of(model) == {"single": "only one transformer"}
        with pytest.raises(UsageError, match="one transformer"):
            open_checkpoint(model, role="high_noise")
    assert list(roles_of(model, role="single")) == ["single"]


@pytest.mark.parametrize("release", RELEASES)
def test_a_bare_file_of_a_release(release: str, tmp_path: Path) -> None:
    made = derive_architecture(released_shapes(release), None, release)
    model = write_checkpoint(tmp_path, made, "comfyui", seed=None)
    if release in ("wan2.1-t2v-1.3B", "wan2.1-i2v-14B"):
        assert list(roles_of(model)) == ["single"]
    else:
        with pytest.raises(MissingRoleError):
            open_checkpoint(model)


def test_a_bare_folder_is_a_model_of_its_own_unless_its_name_says_more(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "Wan2.1-T2V-14B", tiny(), "original-2.1", shards=3)
    assert roles_of(tmp_path / "Wan2.1-T2V-14B") == {"single": "only one transformer"}
    assert roles_of(tmp_path / "Wan2.1-T2V-14B", role="low_noise") == {"low_noise": "--role"}
    (tmp_path / "Wan2.1-T2V-14B").rename(tmp_path / "my-low-noise")
    assert roles_of(tmp_path / "my-low-noise") == {"low_noise": "folder my-low-noise"}
    (file,) = write_expert(tmp_path / "x", tiny().tensors(), stem="wan_high_noise")
    assert roles_of(file.parent) == {"high_noise": "file name"}


def test_two_named_files_in_one_folder_are_a_pair(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny(), "comfyui-pair")
    assert roles_of(tmp_path) == {"high_noise": "file name", "low_noise": "file name"}
    write_expert(tmp_path, tiny().tensors(), stem="other")
    with pytest.raises(UsageError, match="several checkpoints"):
        open_checkpoint(tmp_path)


def test_a_mapping_and_its_text(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "pair", tiny(), "original-2.2")
    (file,) = write_expert(tmp_path, tiny().tensors(), role="low_noise", stem="b")
    high = tmp_path / "pair" / "high_noise_model"
    for model in (f"low_noise={file},high_noise={high}", {"low_noise": file, "high_noise": str(high)}):
        with open_checkpoint(model) as checkpoint:
            assert list(checkpoint.experts) == list(PAIR)
            assert checkpoint.layout == "original-2.2-expert + comfyui-single-file"
            assert checkpoint.experts["low_noise"].role_source == "given as low_noise="
            assert checkpoint.experts["high_noise"].role_source == "folder high_noise_model"
    # A whole model stands for its expert of that role.
    assert roles_of(f"high_noise={tmp_path / 'pair'}") == {"high_noise": "folder high_noise_model"}
    assert roles_of({"high_noise": high, "low_noise": file}, role="low_noise") == {"low_noise": "given as low_noise="}
    assert roles_of(f"high_noise={file}") == {"high_noise": "given as high_noise="}
    assert roles_of(f"single={file}") == {"single": "given as single="}
    # A name that contradicts what is given: what is given counts, and the words say so.
    low = tmp_path / "pair" / "low_noise_model"
    assert roles_of({"high_noise": low}) == {
        "high_noise": "given as high_noise= (folder low_noise_model says low_noise)"
    }


def test_a_path_that_only_looks_like_a_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "single=x", tiny(), "original-2.1")
    assert list(roles_of("single=x")) == ["single"]
    assert list(roles_of(Path("single=x"))) == ["single"]


@pytest.mark.parametrize(
    "model",
    ["high_noise=a,high_noise=b", "single=a,low_noise=b", "high_noise=", "high_noise=a,low_noise=", "", {}, {"x": "a"},
     {"single": "a", "high_noise": "b"}, {"high_noise": ""}],
)  # fmt: skip
def test_mappings_that_mean_nothing(model: Any) -> None:
    with pytest.raises(UsageError) as caught:
        open_checkpoint(model)
    assert caught.value.exit_code == 2


def test_roles_that_mean_nothing(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, tiny(), "comfyui-pair")
    file = tmp_path / "wan_high_noise.safetensors"
    with pytest.raises(UsageError, match="unknown role"):
        open_checkpoint(model, role="middle")
    with pytest.raises(UsageError, match="was not given a path"):
        open_checkpoint(model, role="single")
    with pytest.raises(UsageError, match="one file for two roles"):
        open_checkpoint({"high_noise": file, "low_noise": file})
    os.link(file, tmp_path / "again.safetensors")
    with pytest.raises(UsageError, match="one file for two roles"):
        open_checkpoint({"high_noise": file, "low_noise": tmp_path / "again.safetensors"})


@given(st.text(alphabet="ab=,_highlownse/. ", max_size=30))
def test_any_text_is_a_path_or_a_mapping_or_an_error(text: str) -> None:
    try:
        found = parse_model(text)
    except UsageError:
        return
    assert isinstance(found, Path) or list(found)


def test_experts_of_different_models_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny(), "original-2.2")
    shutil.rmtree(tmp_path / "low_noise_model")
    write_expert(tmp_path / "low_noise_model", tiny(ffn_dim=64).tensors())
    with pytest.raises(ShapeMismatchError, match=r"different models.*high_noise.*low_noise"):
        open_checkpoint(tmp_path)
    shutil.rmtree(tmp_path / "low_noise_model")
    write_expert(tmp_path / "low_noise_model", tiny().tensors())
    with open_checkpoint(tmp_path) as checkpoint:  # only one of two has a config.json
        assert checkpoint.experts["high_noise"].architecture.num_heads == 2
    config = {**config_of(tiny(), "original"), "num_heads": 4}
    (tmp_path / "low_noise_model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigMismatchError, match="heads"):
        open_checkpoint(tmp_path)


def test_only_a_released_folder_name_speaks_for_a_file_inside(tmp_path: Path) -> None:
    (file,) = write_expert(tmp_path / "low-noise-study", tiny().tensors(), stem="wan")
    with pytest.raises(MissingRoleError):
        open_checkpoint(file)
    (file,) = write_expert(tmp_path / "low_noise_model", tiny().tensors(), stem="wan")
    assert roles_of(file) == {"low_noise": "folder low_noise_model"}


def test_a_path_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError):
        open_checkpoint(tmp_path / ("n" * 300))


HIGH = (
    "Wan2_2-T2V-A14B-HighNoise_xx", "Wan2_2-I2V-A14B-HIGH_bf16", "Wan2_2-T2V-A14B_HIGH_fp8_e4m3fn_scaled_KJ",
    "I2V_high", "smoothMixWan22I2VT2V_i2vHigh", "smoothMix_t2vHighV20", "wan22I2VA14BHighNoise", "WanHighNoiseModel",
    "HIGH", "wan22-i2v-high-14B-fp16", "wan2.2_i2v_high", "Wan22HighNoise", "HIGHNoise", "high-noise-v2",
    "High Noise", "t2v14bhigh", "wan22_high_noise_low_vram", "high_noise_low_res", "Wan2.1_high_noise",
    "Wan2.2-High (1)", "high_00001-of-00002",
)  # fmt: skip
NEITHER = (
    "wan_high_quality", "WanHighQuality", "wan22_highres", "lowvram", "LowVram_wan", "wan_low_vram_bf16",
    "quality-high", "wan_lowrank_16", "low_rank", "high_motion", "wan22_HighDetail", "slow", "SLOW", "Flow_noise",
    "flowNoise", "glowNoise", "thigh", "yellow", "Below", "wan_high_4bit", "high-fps", "ultra_high", "wan21_HIGH",
    "Wan2.1-T2V-14B-HIGH", "wan2.2_ti2v_5B_high", "highlow", "wan22", "denoise", "lower_noise", "highest_noise",
    "HIGHER", "", "wan_resolution_low",
)  # fmt: skip
BOTH = (
    "wan22_HIGH_LOW", "high-and-low-noise_high_noise", "HighNoise_LowNoise", "low_noise_HIGH_fp16", "I2V_high_i2v_low",
    "LOW_vs_HIGH", "WanHighNoiseLowNoise",
)  # fmt: skip


def lowered(name: str) -> str:
    """The same name of the other expert."""
    for word, other in (("High", "Low"), ("HIGH", "LOW"), ("high", "low")):
        name = name.replace(word, f"<{other}>") if "low_" not in name else name
    return name.replace("<", "").replace(">", "")


@pytest.mark.parametrize("name", HIGH)
@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_names_that_users_files_have(name: str, suffix: str) -> None:
    assert roles_in(name + suffix) == {"high_noise"}
    if "low_" not in name:
        assert roles_in(lowered(name) + suffix) == {"low_noise"}


@pytest.mark.parametrize("name", NEITHER)
def test_a_name_that_could_mean_something_else_says_nothing(name: str) -> None:
    assert roles_in(f"{name}.safetensors") == frozenset()


@pytest.mark.parametrize("name", BOTH)
def test_a_name_that_says_both_is_asked_about(name: str, tmp_path: Path) -> None:
    assert roles_in(name) == {"high_noise", "low_noise"}
    (file,) = write_expert(tmp_path / "x", tiny().tensors(), stem=name)
    with pytest.raises(MissingRoleError, match="says both"):
        open_checkpoint(file)
    (file,) = write_expert(tmp_path / name, tiny().tensors())
    with pytest.raises(MissingRoleError, match="says both"):
        open_checkpoint(file.parent)
    assert roles_of(file.parent, role="low_noise") == {"low_noise": "--role"}


def test_a_folder_and_a_file_that_contradict_each_other_are_asked_about(tmp_path: Path) -> None:
    (file,) = write_expert(tmp_path / "high_noise_model", tiny().tensors(), stem="wan_low_noise")
    (other,) = write_expert(tmp_path / "my-HIGH", tiny().tensors(), stem="wan22LowNoise")
    for place in (file, file.parent, other.parent):
        with pytest.raises(MissingRoleError, match=r"found folder .*, but file .*[lL]ow"):
            open_checkpoint(place)
        assert list(roles_of(place, role="low_noise")) == ["low_noise"]
    assert roles_of(other) == {"low_noise": "file name"}  # a single file may lie in a folder of any name


def test_files_named_in_camel_case_are_a_pair_and_shards_have_a_role(tmp_path: Path) -> None:
    for stem, role in (("Wan2_2-T2V-A14B-HIGH_bf16", "high_noise"), ("Wan2_2-T2V-A14B-LOW_bf16", "low_noise")):
        write_expert(tmp_path / "pair", tiny().tensors(), role=role, stem=stem)
    assert roles_of(tmp_path / "pair") == {"high_noise": "file name", "low_noise": "file name"}
    write_expert(tmp_path / "x", tiny().tensors(), stem="wanLowNoise", shards=2)
    assert roles_of(tmp_path / "x") == {"low_noise": "file name"}
