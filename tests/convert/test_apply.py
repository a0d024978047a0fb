"""Putting a delta on models that were loaded in every way people load them; refusals that leave the model alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made import SMALL, forge, write_base
from synthetic import value
from test_recipe import recipe
from torch import Tensor, nn

import hfq
from hfq.convert.linear import QuantizedLinear
from hfq.convert.restore import restore_site
from hfq.convert.transformer import build_transformer, empty_transformer
from hfq.schema.errors import (
    DigestMismatchError,
    HfqError,
    MissingRoleError,
    UsageError,
    WrongBaseError,
    WrongRoleError,
)

ROLE = "low_noise"


def build(base: Path | str, role: str = ROLE, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    with hfq.open_checkpoint(base) as checkpoint:
        return build_transformer(checkpoint.experts[role], dtype=dtype)[0]


@torch.no_grad()
def run_model(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, SMALL.in_channels, 2, 8, 8, generator=generator).to(dtype)
    text = torch.randn(1, 4, SMALL.text_dim, generator=generator).to(dtype)
    found: Tensor = model(latents, torch.tensor([500]), text, return_dict=False)[0]
    return found


def snapshot(model: nn.Module) -> dict[str, Any]:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if not tensor.is_meta}
    return {"state": state, "types": {name: type(module) for name, module in model.named_modules()}}


def same(before: dict[str, Any], model: nn.Module) -> bool:
    after = snapshot(model)
    equal = all(torch.equal(tensor, after["state"][name]) for name, tensor in before["state"].items())
    return equal and before["types"] == after["types"] and set(before["state"]) == set(after["state"])


@pytest.fixture(scope="module")
def quantized(small_base: Path, small_delta: Path) -> nn.Module:
    """The small low-noise transformer with the delta on it. Not to be changed."""
    model = build(small_base)
    hfq.apply(model, small_delta, role=ROLE)
    return model


def test_what_is_replaced_and_what_is_not(quantized: nn.Module, small_base: Path, small_delta: Path) -> None:
    model = build(small_base)
    replaced = hfq.apply(model, small_delta, role=ROLE)
    assert len(replaced) == 20
    entry = replaced["low_noise/blocks.1.cross_attn.o"]
    assert (entry.site, entry.module) == ("blocks.1.cross_attn.o", "blocks.1.attn2.to_out.0")
    assert entry.reason == "blocks.*: linear inside a block"
    classes = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert sum(kind is QuantizedLinear for kind in classes.values()) == 20
    assert classes["proj_out"] is nn.Linear
    assert torch.equal(run_model(model), run_model(quantized))
    difference = run_model(quantized).float() - run_model(build(small_base)).float()
    assert 0 < float(difference.norm() / run_model(quantized).float().norm()) < 0.5


def test_each_operand_is_the_restored_weight(quantized: nn.Module, small_base: Path, small_delta: Path) -> None:
    with hfq.load_delta(small_delta) as delta, hfq.open_checkpoint(small_base) as checkpoint:
        for linear in (module for module in quantized.modules() if isinstance(module, QuantizedLinear)):
            weight = checkpoint.experts[ROLE].read_bf16(f"{linear.site}.weight")
            restored = restore_site(delta, ROLE, linear.site, weight)
            assert torch.equal(linear.operand, restored.operand())
            assert torch.equal(linear.weight, restored.effective().bfloat16())
            assert torch.equal(linear.mask, delta.state(ROLE, linear.site)["mask"])


def from_pretrained(small_base: Path, tmp_path: Path) -> nn.Module:
    """diffusers' own loader, on an F32 release: it keeps some modules in fp32, unrounded."""
    from diffusers import WanTransformer3DModel

    write_base(tmp_path / "release", layout="diffusers-pair")
    model: nn.Module = WanTransformer3DModel.from_pretrained(
        tmp_path / "release" / "transformer_2", torch_dtype=torch.bfloat16
    )
    kept = model.get_parameter("blocks.0.scale_shift_table")
    assert kept.dtype == torch.float32
    assert not torch.equal(kept, kept.bfloat16().float())
    return model


def on_meta(small_base: Path, tmp_path: Path) -> nn.Module:
    return empty_transformer(SMALL)


def random_values(small_base: Path, tmp_path: Path) -> nn.Module:
    model = build(small_base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize("load", [from_pretrained, on_meta, random_values, lambda base, _: build(base)])
@pytest.mark.parametrize("with_base", [False, True])
def test_however_it_was_loaded_the_result_is_the_same(
    load: Callable[[Path, Path], nn.Module], with_base: bool, quantized: nn.Module, small_base: Path,
    small_delta: Path, tmp_path: Path,
) -> None:  # fmt: skip
    model = load(small_base, tmp_path)
    if not with_base and load in (on_meta, random_values):
        with pytest.raises((UsageError, WrongBaseError)):
            hfq.apply(model, small_delta, role=ROLE)
        return
    with hfq.open_checkpoint(small_base) as checkpoint:
        hfq.apply(model, small_delta, role=ROLE, base=checkpoint if with_base else None)
    ours, theirs = model.state_dict(), quantized.state_dict()
    # On the meta device everything was float32; what diffusers keeps so is so everywhere.
    if load is on_meta:
        model = model.to(torch.bfloat16)
        ours, theirs = model.state_dict(), {name: tensor.bfloat16() for name, tensor in theirs.items()}
    assert {name: tensor.dtype for name, tensor in ours.items()} == {
        name: tensor.dtype for name, tensor in theirs.items()
    }
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    if load is not on_meta:
        assert torch.equal(run_model(model), run_model(quantized))


def test_float32_models(quantized: nn.Module, small_base: Path, small_delta: Path) -> None:
    model = build(small_base, dtype=torch.float32)
    hfq.apply(model, small_delta, role=ROLE)
    found = run_model(model, torch.float32)
    assert found.dtype == torch.float32
    assert float((found - run_model(quantized).float()).norm() / found.norm()) < 0.2


def original_names(*, role: str = ROLE, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A stand-in with the names of the original Wan code: its tensors, no forward pass."""
    root = nn.Module()
    sites = {site.name: site for site in SMALL.sites()}

    def child(module: nn.Module, path: str) -> nn.Module:
        for part in path.split(".") if path else ():
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        return module

    for name, shape in SMALL.tensors().items():
        path, _, leaf = name.rpartition(".")
        parent, _, last = path.rpartition(".")
        if path in sites and leaf == "weight":
            child(root, parent).add_module(last, nn.Linear(shape[1], shape[0]))
    for name, shape in SMALL.tensors().items():
        path, _, leaf = name.rpartition(".")
        tensor = nn.Parameter(value(0, role, name, shape).to(dtype), requires_grad=False)
        child(root, path).register_parameter(leaf, tensor)
    return root


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_with_original_names(dtype: torch.dtype, quantized: nn.Module, small_delta: Path) -> None:
    model = original_names(dtype=dtype)
    replaced = hfq.apply(model, small_delta, role=ROLE)
    assert replaced["low_noise/blocks.0.self_attn.q"].module == "blocks.0.self_attn.q"
    q = model.get_submodule("blocks.0.self_attn.q")
    assert torch.equal(q.weight.bfloat16(), quantized.get_submodule("blocks.0.attn1.to_q").weight)
    x = torch.randn(3, SMALL.dim).to(dtype)
    expected = quantized.get_submodule("blocks.0.attn1.to_q")(x.bfloat16()).float()
    assert torch.allclose(q(x).float(), expected, rtol=2**-8, atol=1e-4)
    head = model.get_parameter("head.head.weight")
    assert torch.equal(head, head.bfloat16().to(dtype))  # rounded like the base


def test_a_pipeline_of_two_experts(tiny_weights: Path, tmp_path: Path) -> None:
    from hfq.convert.tiny.pipeline import load_tiny_pipeline

    everything = recipe(route=[{"match": "*", "to": "quantize"}])
    with hfq.open_checkpoint(tiny_weights) as checkpoint:
        hfq.quantize(checkpoint, everything, out=tmp_path / "delta").close()
    pipeline = load_tiny_pipeline()

    def clip() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        frames: Tensor = pipeline(
            "a red circle moving left over a black background", num_inference_steps=3, generator=generator,
            output_type="pt",
        ).frames  # fmt: skip
        return frames

    before = clip()
    with pytest.raises(UsageError, match="goes with a bare transformer"):
        hfq.apply(pipeline, tmp_path / "delta", role="high_noise")
    replaced = hfq.apply(pipeline, tmp_path / "delta")
    assert {key.partition("/")[0] for key in replaced} == {"high_noise", "low_noise"}
    after = clip()
    assert bool(torch.isfinite(after).all())
    assert not torch.equal(before, after)
    assert torch.equal(after, clip())
    with pytest.raises(UsageError, match="quantized already"):
        hfq.apply(pipeline, tmp_path / "delta")


def test_a_pipeline_that_lacks_the_expert(tiny_weights: Path, small_delta: Path) -> None:
    with pytest.raises(UsageError, match="does not hold this expert"):
        hfq.apply(object(), small_delta)


REFUSALS: list[tuple[str, dict[str, Any], Callable[[nn.Module], Any], type[HfqError], str]] = [
    ("no role", {}, lambda model: model, MissingRoleError, "could be either"),
    ("a role that the delta lacks", {"role": "single"}, lambda model: model, UsageError, "no such expert"),
    ("the other expert", {"role": "high_noise"}, lambda model: model, WrongRoleError, "expert low_noise"),
    ("one bit", {"role": ROLE}, lambda model: model.proj_out.weight.data.view(torch.int16).view(-1)[5].bitwise_xor_(1),
     WrongBaseError, "head.head.weight"),
    ("another depth", {"role": ROLE}, lambda model: model.blocks.append(model.blocks[0]), WrongBaseError, "blocks.2"),
    ("a block less", {"role": ROLE}, lambda model: model.blocks.__delitem__(1), WrongBaseError, "blocks.1"),
    ("float16", {"role": ROLE}, lambda model: model.half(), UsageError, "float16"),
    ("on the meta device", {"role": ROLE}, lambda model: model.to("meta"), UsageError, "without values"),
    ("no linear", {"role": ROLE}, lambda model: setattr(model.blocks[0].attn1, "to_q", NoLinear()), UsageError,
     "not a linear"),
]  # fmt: skip


class NoLinear(nn.Module):
    """Has a linear's parameters and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(value(0, ROLE, "blocks.0.self_attn.q.weight", (64, 64)).bfloat16())
        self.bias = nn.Parameter(value(0, ROLE, "blocks.0.self_attn.q.bias", (64,)).bfloat16())


@pytest.mark.parametrize(
    ("how", "change", "error", "words"), [case[1:] for case in REFUSALS], ids=[c[0] for c in REFUSALS]
)
def test_refusals_leave_the_model_as_it_was(
    how: dict[str, Any], change: Callable[[nn.Module], Any], error: type[HfqError], words: str, small_base: Path,
    small_delta: Path,
) -> None:  # fmt: skip
    model = build(small_base)
    change(model)
    before = snapshot(model)
    with pytest.raises(error, match=words):
        hfq.apply(model, small_delta, **how)
    assert same(before, model)


def test_a_wrong_checkpoint_as_base_leaves_the_model_as_it_was(
    small_base: Path, small_delta: Path, tmp_path: Path
) -> None:
    model = build(small_base)
    before = snapshot(model)
    other = write_base(tmp_path / "other", seed=1)
    swapped = {"high_noise": small_base / "low_noise_model", "low_noise": small_base / "high_noise_model"}
    for base, error in (
        (other, WrongBaseError),
        (swapped, WrongRoleError),
        (small_base / "high_noise_model", UsageError),
    ):
        with pytest.raises(error), hfq.open_checkpoint(base) as checkpoint:
            hfq.apply(model, small_delta, role=ROLE, base=checkpoint)
    assert same(before, model)


def test_a_second_delta_is_refused_and_the_first_stays(small_base: Path, small_delta: Path) -> None:
    model = build(small_base)
    hfq.apply(model, small_delta, role=ROLE)
    before = run_model(model)
    with pytest.raises(UsageError, match="quantized already"):
        hfq.apply(model, small_delta, role=ROLE)
    assert torch.equal(run_model(model), before)


def test_a_delta_that_lies_about_a_site_says_that_the_model_must_be_loaded_again(
    small_base: Path, small_delta: Path, tmp_path: Path
) -> None:
    lie = forge(small_delta, tmp_path / "lie", lambda d: d["sites"][ROLE]["blocks.1.ffn.2"].update(digest="0" * 64))
    with pytest.raises(DigestMismatchError, match="load the model again"):
        hfq.apply(build(small_base), lie, role=ROLE)


def test_state_dict_round_trip_of_a_whole_model(quantized: nn.Module, small_base: Path) -> None:
    plain = build(small_base)
    state = quantized.state_dict()
    assert set(state) == set(plain.state_dict())
    assert quantized.load_state_dict(state, strict=True).missing_keys == []
    plain.load_state_dict(state, strict=True)  # weight-only: the effective weights, activations as they are
    assert float((run_model(plain).float() - run_model(quantized).float()).abs().max()) > 0


@pytest.mark.parametrize("kind", ["hooks per module", "hooks per module, buffers too", "whole model"])
def test_offloading(kind: str, quantized: nn.Module, small_base: Path, small_delta: Path) -> None:
    import accelerate

    model = build(small_base)
    hfq.apply(model, small_delta, role=ROLE)
    if kind == "whole model":
        model, hook = accelerate.cpu_offload_with_hook(model, execution_device="cpu")
        found = run_model(model)
        hook.offload()
    else:
        accelerate.cpu_offload(model, execution_device="cpu", offload_buffers="buffers" in kind)
        found = run_model(model)
    assert torch.equal(found, run_model(quantized))
    assert torch.equal(run_model(model), found)


def test_an_offloaded_model_is_refused(small_base: Path, small_delta: Path) -> None:
    import accelerate

    model = build(small_base)
    accelerate.cpu_offload(model, execution_device="cpu")
    with hfq.open_checkpoint(small_base) as checkpoint:
        for base in (None, checkpoint):
            with pytest.raises(UsageError, match="apply the delta first"):
                hfq.apply(model, small_delta, role=ROLE, base=base)


def test_a_whole_model_survives_float16(small_base: Path, small_delta: Path, quantized: nn.Module) -> None:
    model = build(small_base)
    hfq.apply(model, small_delta, role=ROLE)
    expected = run_model(quantized).float()
    found = run_model(model.half(), torch.float16)
    assert found.dtype == torch.float16
    assert float((found.float() - expected).norm() / expected.norm()) < 0.1
