"""A delta goes on a bare transformer; whatever stands around or inside it is named, with the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_apply import ROLE, build, original_names, same, snapshot
from torch import nn
from torch.nn.utils import prune

import hfq
from hfq.schema.errors import UsageError


class Around(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def named(name: str, *parents: type[nn.Module]) -> type[Any]:
    """A class that goes by the name of one of a package that need not be installed."""
    return type(name, parents or (Around,), {})


class Adapter(named("BaseTunerLayer", nn.Module)):  # type: ignore[misc]
    """As peft puts one in the place of a linear."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, dtype=torch.bfloat16)})


def adapted(model: nn.Module) -> nn.Module:
    model.blocks[1].attn1.to_k = Adapter(model.blocks[1].attn1.to_k)
    return model


def group_offloaded(model: nn.Module) -> nn.Module:
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(model, onload_device=torch.device("cpu"), offload_type="leaf_level")
    return model


def cast_by_layer(model: nn.Module) -> nn.Module:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    return model


def parametrized(model: nn.Module) -> nn.Module:
    nn.utils.parametrizations.weight_norm(model.blocks[0].ffn.net[2])
    return model


def fused(model: nn.Module) -> nn.Module:
    model.fuse_qkv_projections()
    return model


def pruned(model: nn.Module) -> nn.Module:
    prune.l1_unstructured(model.blocks[0].attn1.to_q, "weight", 0.5)
    return model


def with_weight_norm(model: nn.Module) -> nn.Module:
    nn.utils.weight_norm(model.blocks[0].attn1.to_q)
    return model


def with_comfy_linears(model: nn.Module) -> nn.Module:
    model.blocks[0].attn1.to_q.comfy_cast_weights = False
    return model


def in_place_compiled(model: nn.Module) -> nn.Module:
    model.blocks[0] = torch.compile(model.blocks[0])
    return model


CASES: dict[str, tuple[Callable[[nn.Module], nn.Module], str, str]] = {
    "torch.compile": (torch.compile, "torch.compile", "model._orig_mod"),
    "a compiled block": (in_place_compiled, "torch.compile", "compile its blocks"),
    "DataParallel": (nn.DataParallel, "torch.nn.DataParallel", "model.module"),
    "DistributedDataParallel": (named("DistributedDataParallel"), "DistributedDataParallel", "model.module"),
    "FSDP": (named("FullyShardedDataParallel"), "FullyShardedDataParallel", "shard it"),
    "FSDP2": (lambda m: named("FSDPWan", named("FSDPModule"))(m), "fully_shard", "shard it"),
    "PeftModel": (lambda m: named("PeftModelForMine", named("PeftModel"))(m), "PEFT", "unload"),
    "LoRA layers": (adapted, "PEFT adapters", "unload_lora_weights"),
    "group offloading": (group_offloaded, "group offloading", "enable offloading"),
    "layerwise casting": (cast_by_layer, "layerwise casting", "load the model again"),
    "parametrizations": (parametrized, "parametrized", "remove_parametrizations"),
    "fused projections": (fused, "projections are fused", "fuse_qkv_projections"),
    "pruning": (pruned, "a pruned or spectrally", "prune.remove"),
    "weight norm": (with_weight_norm, "under weight norm", "remove_weight_norm"),
    "ComfyUI": (with_comfy_linears, "ComfyUI", "diffusers"),
    "any other": (Around, "inside another module.*Around.*WanTransformer3DModel at module", "model.module"),
    "two of them": (lambda m: Around(Around(m)), "inside another module", "model.module.module"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_named_and_left_alone(case: str, small_base: Path, small_delta: Path) -> None:
    wrap, words, todo = CASES[case]
    model = wrap(build(small_base))
    before = snapshot(model)
    with pytest.raises(UsageError, match=words) as caught:
        hfq.apply(model, small_delta, role=ROLE)
    assert todo in str(caught.value)
    assert "right model" not in str(caught.value)
    assert same(before, model)


def test_a_model_with_original_names_inside_another(small_delta: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.module"):
        hfq.apply(Around(original_names()), small_delta, role=ROLE)


def test_a_pipeline_whose_transformer_is_wrapped(small_base: Path, small_delta: Path) -> None:
    class Pipeline:
        transformer = build(small_base, "high_noise")
        transformer_2 = torch.compile(build(small_base))

    before = snapshot(Pipeline.transformer)
    with pytest.raises(UsageError, match=r"torch\.compile") as caught:
        hfq.apply(Pipeline(), small_delta)
    assert "low_noise" in str(caught.value)
    assert same(before, Pipeline.transformer)


def test_what_was_named_is_the_way_out(small_base: Path, small_delta: Path) -> None:
    compiled = torch.compile(build(small_base))
    assert len(hfq.apply(compiled._orig_mod, small_delta, role=ROLE)) == 20
    parallel = nn.DataParallel(build(small_base))
    assert len(hfq.apply(parallel.module, small_delta, role=ROLE)) == 20
