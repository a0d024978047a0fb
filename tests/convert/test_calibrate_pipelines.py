"""`hfq calibrate` on diffusers pipelines of every kind: random weights, real classes, the real denoising loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import KINDS, build_pipeline, size_of, write_pipeline

import hfq
from hfq.cli import run
from hfq.convert.calibration import Calibration
from hfq.convert.keymap import to_original
from hfq.schema.errors import (
    HfqError,
    MalformedFileError,
    MissingPathError,
    MissingPipelineError,
    UnsupportedDtypeError,
    UnsupportedModelError,
    UsageError,
)

STEPS = 8
"""With the official shift and boundary both experts of Wan 2.2 have steps."""
FRAMES = {
    "i2v-2.2": {"image": "blank"},
    "i2v-2.1": {"image": "blank"},
    "ti2v-2.2-image": {"image": "blank"},
    "flf2v-2.1": {"image": "blank", "last_image": "blank"},
}
PROMPT = "a cat, 一只猫"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("pipelines"), {}

    def folder_of(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_pipeline(root / kind, kind)
        return made[kind]

    return folder_of


def calibrated(source: Any, kind: str, out: Path, **settings: Any) -> Calibration:
    return hfq.calibrate(source, [PROMPT], out, **{"steps": STEPS, **size_of(kind), **FRAMES.get(kind, {}), **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Both experts, both branches, every input of every block, the official settings, and a delta from it."""
    folder = folders(kind)
    pair = kind in ("t2v-2.2", "i2v-2.2")
    with calibrated(folder, kind, tmp_path / "cal") as found, hfq.open_checkpoint(folder) as checkpoint:
        assert found.roles == (["high_noise", "low_noise"] if pair else ["single"])
        calls = [call for role in found.roles for call in found.document["schedule"][role]["calls"]]
        assert [(call["step"], call["branch"]) for call in calls] == [
            (step, branch) for step in range(STEPS) for branch in ("cond", "uncond")
        ]
        per_block = 8 if kind in ("i2v-2.1", "flf2v-2.1") else 7
        for role, expert in checkpoint.experts.items():
            groups = found.groups(role)
            assert {site.input_group for site in expert.sites} == set(groups)
            assert sum(group.startswith("blocks.1.") for group in groups) == per_block
            for site in expert.sites:
                found.check_group(role, site.input_group, site.in_features)
            for group in groups:
                statistics = found.read(role, group)
                assert bool((statistics.channel_max() > 0).any())
                assert bool((statistics.count > 0).all())
            assert found.document["base"]["experts"][role]["bf16_root"] == expert.identity().bf16_root
        settings = found.document["settings"]
        assert settings["boundary"] == {"t2v-2.2": 0.875, "i2v-2.2": 0.9}.get(kind)
        assert settings["shift"] == {"t2v-2.2": 12, "flf2v-2.1": 16, "vace-2.1": 16, "i2v-2.1": 3}.get(kind, 5)
        assert (settings["image"] is not None) == (kind in FRAMES)
        delta = hfq.quantize(checkpoint, "tail-aware-hif4", found.path, out=tmp_path / "delta")
        assert delta.document["calibration"]["id"] == found.id


def test_the_guidance_branches_differ(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """The text inputs are the prompt's in one branch and the negative prompt's in the other, in every step."""
    with calibrated(folders("t2v-2.2"), "t2v-2.2", tmp_path / "cal", negative_prompt="blurry") as found:
        largest = found.read("high_noise", "blocks.0.cross_attn.kv").max
        cond, uncond = largest[0::2], largest[1::2]
        assert not torch.equal(cond[0], uncond[0])
        assert all(torch.equal(cond[0], other) for other in cond)
        assert all(torch.equal(uncond[0], other) for other in uncond)


def original_layout(folder: Path, out: Path) -> Path:
    """The experts of a diffusers folder in the layout of an original Wan 2.2 release, in BF16."""
    for source, target in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        (out / target).mkdir(parents=True)
        tensors = load_file(folder / source / "diffusion_pytorch_model.safetensors")
        renamed = {str(to_original(name)): value.bfloat16() for name, value in tensors.items()}
        save_file(renamed, out / target / "diffusion_pytorch_model.safetensors")
        config = {
            "_class_name": "WanModel",
            "dim": 128,
            "num_heads": 2,
            "ffn_dim": 256,
            "num_layers": 2,
            "model_type": "t2v",
        }
        (out / target / "config.json").write_text(json.dumps(config))
    return out


def test_the_layout_does_not_matter(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Original layout in BF16 with --pipeline, the diffusers folder in F32, and the live pipeline: the same bytes."""
    folder = folders("t2v-2.2")
    original = original_layout(folder, tmp_path / "wan")
    with pytest.raises(MissingPipelineError, match="--pipeline"):
        calibrated(original, "t2v-2.2", tmp_path / "none")
    pipeline = build_pipeline("t2v-2.2")
    # As `from_pretrained(torch_dtype=torch.bfloat16)` leaves it: norms, modulation and time embedding in float32.
    pipeline = type(pipeline).from_pretrained(folder, torch_dtype={"vae": torch.float32, "default": torch.bfloat16})
    for part in (pipeline.transformer, pipeline.transformer_2):
        for parameter in part.parameters():
            parameter.data = parameter.data.bfloat16().to(parameter.dtype, copy=True)
    # The folder has the conversion script's shift of 3, which a live pipeline keeps.
    with (
        calibrated(folder, "t2v-2.2", tmp_path / "a", shift=3.0, steps=10) as from_folder,
        calibrated(original, "t2v-2.2", tmp_path / "b", pipeline=folder, shift=3.0, steps=10) as from_original,
        calibrated(pipeline, "t2v-2.2", tmp_path / "c", steps=10) as live,
    ):
        assert from_folder.id == from_original.id == live.id
    data = {(tmp_path / name / "statistics.safetensors").read_bytes() for name in "abc"}
    assert len(data) == 1


def test_text_encoder_and_image_are_part_of_the_identity(folders: Callable[[str], Path], tmp_path: Path) -> None:
    from PIL import Image

    other = tmp_path / "other"
    shutil.copytree(folders("i2v-2.1"), other)
    weights = other / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    tensors[name][0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    with (
        calibrated(folders("i2v-2.1"), "i2v-2.1", tmp_path / "a", steps=2) as first,
        calibrated(other, "i2v-2.1", tmp_path / "b", steps=2) as encoder,
        calibrated(folders("i2v-2.1"), "i2v-2.1", tmp_path / "c", steps=2, image=str(tmp_path / "red.png")) as image,
    ):
        left, right = first.document["settings"]["components"], encoder.document["settings"]["components"]
        assert {part for part in left if left[part] != right[part]} == {"text_encoder"}
        assert first.document["settings"] == image.document["settings"]
        assert first.document["parts"][0]["prompts"] != image.document["parts"][0]["prompts"]


def test_paths_and_versions_are_not(folders: Callable[[str], Path], tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folders("ti2v-2.2"), moved)
    for path in moved.rglob("*.json"):
        document = json.loads(path.read_text())
        if isinstance(document, dict) and "_diffusers_version" in document:
            document |= {"_diffusers_version": "0.1", "_name_or_path": str(moved)}
            path.write_text(json.dumps(document))
    with (
        calibrated(folders("ti2v-2.2"), "ti2v-2.2", tmp_path / "a", steps=2) as left,
        calibrated(moved, "ti2v-2.2", tmp_path / "b", steps=2) as right,
    ):
        assert left.id == right.id


def test_frames_that_are_missing(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Before the first forward: no first frame, no last frame, no such file, not an image."""
    (tmp_path / "text.png").write_text("not an image")
    cases: list[tuple[type[HfqError], str, dict[str, Any]]] = [
        (UsageError, "i2v-2.1", {"image": None}),
        (UsageError, "flf2v-2.1", {"last_image": None}),
        (MissingPathError, "i2v-2.2", {"image": str(tmp_path / "none.png")}),
        (MalformedFileError, "i2v-2.2", {"image": str(tmp_path / "text.png")}),
    ]
    for error, kind, settings in cases:
        with pytest.raises(error):
            calibrated(folders(kind), kind, tmp_path / "out", **settings)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "changes", [{"height": 40}, {"width": 8}, {"frames": 10}, {"boundary": 0.5}, {"guidance_low": 2.0}]
)
def test_what_the_pipeline_would_change_silently(
    changes: dict[str, Any], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """diffusers rounds frames and sizes with a warning; a calibration would then record what did not run."""
    with pytest.raises(UsageError):
        calibrated(folders("ti2v-2.2"), "ti2v-2.2", tmp_path / "out", **changes)


def test_live_pipelines_that_cannot_be_calibrated(tmp_path: Path) -> None:
    pipeline = build_pipeline("ti2v-2.2")
    pipeline.transformer.to(torch.float16)
    with pytest.raises(UsageError, match="dtype"):
        calibrated(pipeline, "ti2v-2.2", tmp_path / "out")
    pipeline.transformer.to(torch.float64)
    with pytest.raises(UnsupportedDtypeError):
        calibrated(pipeline, "ti2v-2.2", tmp_path / "out")
    pipeline.transformer.to("meta")
    with pytest.raises(UsageError, match="not in memory"):
        calibrated(pipeline, "ti2v-2.2", tmp_path / "out")


def test_float32_runs(folders: Callable[[str], Path], tmp_path: Path) -> None:
    with calibrated(folders("ti2v-2.2"), "ti2v-2.2", tmp_path / "cal", dtype=torch.float32, steps=2) as found:
        assert found.document["settings"]["dtype"] == "float32"


def edit_index(folder: Path, out: Path, **changes: Any) -> Path:
    shutil.copytree(folder, out)
    index = json.loads((out / "model_index.json").read_text())
    (out / "model_index.json").write_text(json.dumps({**index, **changes}))
    return out


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, UnsupportedModelError),
        ({"_class_name": ["WanPipeline"]}, UnsupportedModelError),
        ({"text_encoder": ["my_module", "Encoder"]}, UnsupportedModelError),
        ({"text_encoder": ["transformers"]}, MalformedFileError),
        ({"scheduler": ["diffusers", "WanPipeline"]}, UnsupportedModelError),
        ({"scheduler": ["diffusers", "no_such"]}, UnsupportedModelError),
        ({"scheduler": [None, None]}, UnsupportedModelError),
        ({"text_encoder": ["transformers", "NoSuchModel"]}, MalformedFileError),
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, HfqError),
    ],
)
def test_hostile_pipeline_folders(
    changes: dict[str, Any], error: type[HfqError], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Nothing that a folder names is imported unless it is a known part of a known library."""
    folder = edit_index(folders("ti2v-2.2"), tmp_path / "edited", **changes)
    with pytest.raises(error):
        calibrated(folder, "ti2v-2.2", tmp_path / "out")


def test_the_command_on_a_folder_with_images(
    folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON lines with an image each, relative to the prompt file; one text with two images is two parts."""
    from PIL import Image

    for colour in ("red", "blue"):
        Image.new("RGB", (48, 32), colour).save(tmp_path / f"{colour}.png")
    lines = [{"prompt": "a cat", "id": f"cat-{c}", "category": "animal", "image": f"{c}.png"} for c in ("red", "blue")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--prompts", str(tmp_path / "prompts.jsonl"), "--height", "32", "--width", "32", "--frames", "9"]
    command = ["calibrate", str(folders("i2v-2.2")), *arguments, "--steps", "4", "--keep-inputs", "4", "--json"]
    assert run([*command, "-o", str(tmp_path / "cal")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prompts"] == 2
    with hfq.load_calibration(tmp_path / "cal") as found:
        prompts = [prompt for part in found.document["parts"] for prompt in part["prompts"]]
        assert {prompt["id"] for prompt in prompts} == {"cat-red", "cat-blue"}
        assert len({prompt["image"] for prompt in prompts}) == 2
