"""The shipped tiny model: it runs diffusers' own loop, obeys its prompts, and its layout is that of a real release."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors import safe_open

from hfq.convert.tiny.pipeline import WEIGHTS, TinyWanPipeline, load_tiny_pipeline
from hfq.schema.errors import MalformedFileError, UnknownWordError, UsageError

PROMPT = "a red circle moving left over a black background"
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "tiny_wan"


@pytest.fixture(scope="module")
def pipeline() -> TinyWanPipeline:
    return load_tiny_pipeline()


def generate(pipeline: TinyWanPipeline, prompt: str | list[str], seed: int = 0, **settings: Any) -> torch.Tensor:
    settings = {"num_inference_steps": 3, "output_type": "pt"} | settings
    frames: torch.Tensor = pipeline(prompt, generator=torch.Generator().manual_seed(seed), **settings).frames
    return frames


def test_clip_has_the_documented_shape(pipeline: TinyWanPipeline) -> None:
    clip = generate(pipeline, [PROMPT, ""])
    assert clip.shape == (2, 9, 3, 24, 24)
    assert clip.dtype == torch.float32
    assert float(clip.min()) >= 0
    assert float(clip.max()) <= 1


def test_same_seed_same_clip(pipeline: TinyWanPipeline) -> None:
    assert torch.equal(generate(pipeline, PROMPT, seed=3), generate(pipeline, PROMPT, seed=3))
    assert torch.equal(generate(pipeline, PROMPT, seed=3), generate(load_tiny_pipeline(), PROMPT, seed=3))


def test_seed_and_prompt_matter(pipeline: TinyWanPipeline) -> None:
    first = generate(pipeline, PROMPT, seed=3)
    assert not torch.equal(first, generate(pipeline, PROMPT, seed=4))
    assert not torch.equal(first, generate(pipeline, "a blue square moving up over a white background", seed=3))


def test_negative_prompt_defaults_to_the_empty_one(pipeline: TinyWanPipeline) -> None:
    assert torch.equal(generate(pipeline, PROMPT), generate(pipeline, PROMPT, negative_prompt=""))
    assert not torch.equal(generate(pipeline, PROMPT), generate(pipeline, PROMPT, negative_prompt="a blue square"))


def test_several_clips_per_prompt(pipeline: TinyWanPipeline) -> None:
    assert generate(pipeline, [PROMPT, ""], num_videos_per_prompt=2).shape[0] == 4


def test_unknown_word_is_refused_before_any_work(pipeline: TinyWanPipeline) -> None:
    with pytest.raises(UnknownWordError, match="mauve"):
        generate(pipeline, "a mauve circle")
    with pytest.raises(UnknownWordError, match="ugly"):
        generate(pipeline, PROMPT, negative_prompt="ugly")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"height": 30}, "30x24"),
        ({"negative_prompt": ["", ""]}, "negative prompt"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "generator"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(pipeline: TinyWanPipeline, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pipeline(PROMPT, num_inference_steps=1, **settings)


def test_loop_is_diffusers_own(pipeline: TinyWanPipeline) -> None:
    """Both experts run, conditional before unconditional, and the boundary is where Wan 2.2 has it."""
    assert isinstance(pipeline, WanPipeline)
    calls: list[tuple[str, float]] = []

    def watch(role: str) -> Any:
        return lambda module, args, kwargs: calls.append((role, float(kwargs["timestep"][0])))

    handles = [
        pipeline.transformer.register_forward_pre_hook(watch("high_noise"), with_kwargs=True),
        pipeline.transformer_2.register_forward_pre_hook(watch("low_noise"), with_kwargs=True),
    ]
    try:
        generate(pipeline, PROMPT, num_inference_steps=8)
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == 16
    for role, t in calls:
        assert role == ("high_noise" if t >= 875 else "low_noise")
    assert {role for role, _ in calls} == {"high_noise", "low_noise"}


def test_high_noise_expert_has_a_third_of_the_steps(pipeline: TinyWanPipeline) -> None:
    """The same share as a full Wan 2.2 at shift 3: the boundary lies where the experts were trained to meet."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(40)
    assert int((scheduler.timesteps >= 875).sum()) in (12, 13)


def test_dtypes_are_those_of_from_pretrained(pipeline: TinyWanPipeline, tmp_path: Path) -> None:
    pipeline.transformer.save_pretrained(tmp_path)
    again = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    expected = {name: (p.dtype, p.shape) for name, p in again.named_parameters()}
    assert {name: (p.dtype, p.shape) for name, p in pipeline.transformer.named_parameters()} == expected
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, pipeline.transformer.get_parameter(name))
    assert pipeline.transformer.rope.freqs_cos.dtype == again.rope.freqs_cos.dtype


def test_every_linear_is_whole_groups_of_64(pipeline: TinyWanPipeline) -> None:
    for expert in (pipeline.transformer, pipeline.transformer_2):
        widths = [m.in_features for m in expert.modules() if isinstance(m, torch.nn.Linear)]
        assert len(widths) == 10 * len(expert.blocks) + 6
        assert all(width % 64 == 0 for width in widths)
        assert len(expert.blocks) >= 8


def test_experts_differ(pipeline: TinyWanPipeline) -> None:
    high, low = pipeline.transformer.state_dict(), pipeline.transformer_2.state_dict()
    assert high.keys() == low.keys()
    assert not torch.equal(high["blocks.0.ffn.net.2.weight"], low["blocks.0.ffn.net.2.weight"])


def test_folder_is_an_original_wan22_release() -> None:
    for role in ("high_noise_model", "low_noise_model"):
        config = json.loads((WEIGHTS / role / "config.json").read_text())
        assert config["_class_name"] == "WanModel"
        assert not {"patch_size", "text_dim", "qk_norm", "cross_attn_norm"} & set(config)
        with safe_open(WEIGHTS / role / "diffusion_pytorch_model.safetensors", framework="pt") as file:
            names = set(file.keys())
            assert {"blocks.0.self_attn.q.weight", "blocks.7.norm3.bias", "head.modulation"} <= names
            assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}


def test_folder_is_at_most_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 12_000_000


def test_unknown_scheduler_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(WEIGHTS, folder)
    settings = json.loads((folder / "pipeline.json").read_text())
    settings["scheduler"]["class"] = "os.system"
    (folder / "pipeline.json").write_text(json.dumps(settings))
    with pytest.raises(MalformedFileError, match=r"os\.system"):
        load_tiny_pipeline(folder)


def benchmark_module(name: str) -> ModuleType:
    """Import a script of benchmarks/tiny_wan, which is no package."""
    sys.path.insert(0, str(BENCHMARK))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARK))


@pytest.mark.skipif(not BENCHMARK.exists(), reason="benchmarks are not part of the installed package")
def test_clips_show_what_was_asked_for(pipeline: TinyWanPipeline) -> None:
    """A handful of unseen seeds at half the steps; the accuracy over many clips is in evaluation.json."""
    judge, evaluate = benchmark_module("classifier"), benchmark_module("evaluate")
    labels = evaluate.choose_labels(4, seed=1)
    prompts = [evaluate.prompt_of(label) for label in labels]
    clips = evaluate.generate(pipeline, prompts, first_seed=70_000, steps=20, guidance=3.0, batch=4)
    seen = judge.classify(judge.load_classifier(), clips)
    right = (seen == labels)[:, :3].all(dim=1)
    assert int(right.sum()) >= 3, [evaluate.prompt_of(label) for label in seen]
