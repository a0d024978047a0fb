"""NaN and infinity in a base: refused by name and position wherever the base is read, unless somebody takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import bytes_of, write_base
from synthetic import tiny, write_checkpoint
from torch import Tensor

import hfq
from hfq.cli import run
from hfq.convert import scan_parts, scan_pass
from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.finite import all_finite, find_non_finite
from hfq.convert.transformer import build_transformer
from hfq.schema.errors import NonFiniteWeightError

NAN, INF = float("nan"), float("inf")
KINDS = (
    "blocks.1.norm3.weight", "blocks.0.self_attn.norm_q.weight", "blocks.1.modulation", "blocks.0.ffn.0.bias",
    "patch_embedding.weight", "text_embedding.2.weight", "head.modulation", "head.head.bias",
    "blocks.1.cross_attn.v.weight",
)  # fmt: skip
"""A tensor of every kind, the last one of a linear that presets quantize."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def damage(name: str, value: float, index: int = 5) -> Callable[[str, Tensor], Tensor]:
    def change(canonical: str, values: Tensor) -> Tensor:
        if canonical == name:
            values.view(-1)[index] = value
        return values

    return change


def broken(root: Path, name: str = "blocks.1.norm3.weight", value: float = NAN, **options: Any) -> str:
    return write_base(root / "base", change=damage(name, value), **options)


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*(str(argument) for argument in arguments), "--json"])
    return code, json.loads(capsys.readouterr().out).get("error", {})


def test_every_bit_pattern_of_bf16_is_judged_rightly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    values = torch.from_numpy(bits).view(torch.bfloat16)
    finite = torch.isfinite(values).numpy()
    assert all_finite(bits[finite])
    found = [all_finite(bits[i : i + 1]) for i in range(0, 1 << 16, 7)] + [all_finite(bits[i : i + 1]) for i in
             (0x7F7F, 0x7F80, 0x7FFF, 0xFF7F, 0xFF80, 0xFFFF)]  # fmt: skip
    assert found == [*finite[::7], True, False, False, True, False, False]
    where = find_non_finite(bits, (4, 128, 128))
    assert where is not None
    assert (where.position, where.value, where.count) == ((1, 127, 0), INF, 256)
    assert all_finite(np.empty(0, np.uint16))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_inspect_convert_and_verify_refuse_a_broken_base(
    name: str, value: float, small_delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = broken(tmp_path, name, value)
    for command in (
        ("inspect", base),
        ("inspect", base, "--no-file-hashes"),
        ("convert", base, "--recipe", "rtn-hif4", "-o", tmp_path / "delta"),
        ("verify", small_delta, "--base", base),
        ("export", "onnx", small_delta, "--base", base, "--site", name.rpartition(".")[0], "-o", tmp_path / "a.onnx"),
    ):
        if command[0] == "export" and not name.startswith("blocks.1.cross_attn"):
            continue
        code, error = failure(capsys, *command)
        assert (code, error["code"]) == (1, "non-finite"), (command, error)
        assert "high_noise_model/diffusion_pytorch_model.safetensors: " + name in error["message"]
        assert f"found {value} at position [" in error["message"]
        assert "--allow-non-finite" in error["message"]
    assert not (tmp_path / "delta").exists()
    assert not (tmp_path / "delta.partial").exists()


@pytest.mark.parametrize(("dtype", "value"), [("F32", NAN), ("F16", NAN), ("BF16", INF), ("mixed", -INF), ("F16", INF)])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_dtype_and_every_way_through_a_file(
    dtype: str, value: float, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (scan_pass, scan_parts):  # many chunks a tensor
        monkeypatch.setattr(module, "CHUNK_BYTES", 4096)
        monkeypatch.setattr(module, "FED_BYTES", 2048)
    write_checkpoint(
        tmp_path, tiny(), "original-2.1", dtype=dtype, change=damage("blocks.2.ffn.2.weight", value, 64 * 128 - 2)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with open_checkpoint(tmp_path) as checkpoint:
            expert = checkpoint.experts["single"]
            for read in (
                lambda: expert.scan().run(),
                lambda: expert.scan(hash_files=False).run(),
                lambda: list(expert.scan()),
                lambda: expert.scan().each(lambda tensor: None),
                lambda: expert.read_bf16("blocks.2.ffn.2.weight"),
                lambda: build_transformer(expert),
            ):
                with pytest.raises(NonFiniteWeightError, match=r"blocks\.2\.ffn\.2\.weight.* at position \[63, 126\]"):
                    read()
    finally:
        torch.set_num_threads(before)


def test_a_number_that_bf16_makes_infinite_is_named_as_it_is_stored(tmp_path: Path) -> None:
    base = broken(tmp_path, "blocks.0.ffn.0.bias", 3.4e38)
    with (
        open_checkpoint(base) as checkpoint,
        pytest.raises(NonFiniteWeightError, match=r"3\.4e\+38 at position \[5\], which becomes infinite in BF16"),
    ):
        checkpoint.experts["high_noise"].scan().run()
    largest = float(torch.finfo(torch.bfloat16).max)
    write_checkpoint(tmp_path / "sound", tiny(), "original-2.1", change=damage("blocks.0.ffn.0.bias", largest))
    with open_checkpoint(tmp_path / "sound") as checkpoint:
        assert checkpoint.experts["single"].scan().run()


def test_the_first_in_file_order_is_named_whatever_the_threads(tmp_path: Path) -> None:
    def change(name: str, values: Tensor) -> Tensor:
        return (
            values.fill_(NAN) if name in ("text_embedding.0.bias", "blocks.0.modulation", "head.head.bias") else values
        )

    path = write_base(tmp_path / "base", change=change)
    for threads in (1, 2, 5):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with (
                open_checkpoint(path) as checkpoint,
                pytest.raises(NonFiniteWeightError, match=r"blocks\.0\.modulation"),
            ):
                checkpoint.experts["high_noise"].scan(hash_files=False).run()
        finally:
            torch.set_num_threads(before)


def test_what_is_allowed_is_recorded_said_and_can_be_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = broken(tmp_path, dtype="BF16"), tmp_path / "delta"
    assert run(["convert", base, "--recipe", "rtn-hif4", "-o", str(out), "--allow-non-finite"]) == 0
    said = capsys.readouterr()
    assert "warning: high_noise: 1 tensor holds what is not a finite number" in said.err
    assert f"hfq verify {out} --base {base} --allow-non-finite" in said.out
    experts = json.loads((out / "provenance.json").read_bytes())["base"]["experts"]
    recorded = {"blocks.1.norm3.weight": {"position": [5], "value": "nan", "count": 1}}
    assert experts["high_noise"]["non_finite"] == recorded
    report = json.loads((out / "report.json").read_bytes())
    assert any("blocks.1.norm3.weight" in warning for warning in report["warnings"])
    code, error = failure(capsys, "verify", out, "--base", base)
    assert (code, error["code"]) == (1, "non-finite")
    assert "say --allow-non-finite" in error["message"]
    assert run(["verify", str(out), "--base", base, "--allow-non-finite", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["ok"]
    assert verified["non_finite"]["high_noise"] == recorded
    assert run(["inspect", base, "--allow-non-finite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experts"]["high_noise"]["non_finite"] == recorded


def test_a_sound_base_is_recorded_as_before_whatever_is_allowed(small_base: Path, tmp_path: Path) -> None:
    for name, allowed in (("a", False), ("b", True)):
        with hfq.open_checkpoint(small_base, allow_non_finite=allowed) as checkpoint:
            hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / name).close()
        provenance = json.loads((tmp_path / name / "provenance.json").read_bytes())
        assert all("non_finite" not in expert for expert in provenance["base"]["experts"].values())
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


@pytest.mark.parametrize("made", ["rtn-hif4", "rtn-hif8"])
def test_a_quantized_weight_is_refused_whoever_allows_it(made: str, tmp_path: Path) -> None:
    base = broken(tmp_path, "blocks.1.ffn.0.weight", INF)
    refused = pytest.raises(NonFiniteWeightError, match=r"blocks\.1\.ffn\.0.*\[0, 5\].*keep this site")
    with hfq.open_checkpoint(base, allow_non_finite=True) as checkpoint, refused:
        hfq.quantize(checkpoint, made, out=tmp_path / "delta")
    assert not (tmp_path / "delta.partial").exists()


def test_apply_refuses_weights_in_memory_and_from_a_base(small_delta: Path, small_base: Path, tmp_path: Path) -> None:
    base = broken(tmp_path, "head.head.bias")
    with hfq.open_checkpoint(base, allow_non_finite=True) as checkpoint:
        hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / "delta").close()
        model = build_transformer(checkpoint.experts["high_noise"])[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteWeightError, match=r"high_noise head\.head\.bias.*nan at position \[5\]"):
        hfq.apply(model, tmp_path / "delta", role="high_noise")
    with hfq.open_checkpoint(base) as checkpoint, pytest.raises(NonFiniteWeightError, match=r"head\.head\.bias"):
        hfq.apply(model, tmp_path / "delta", role="high_noise", base=checkpoint)
    assert all(
        torch.equal(value.nan_to_num(7), before[name].nan_to_num(7)) for name, value in model.state_dict().items()
    )
    assert hfq.apply(model, tmp_path / "delta", role="high_noise", allow_non_finite=True)
    with hfq.open_checkpoint(small_base) as checkpoint:
        model = build_transformer(checkpoint.experts["high_noise"])[0]
    with hfq.open_checkpoint(base, allow_non_finite=True) as checkpoint:
        assert hfq.apply(model, tmp_path / "delta", role="high_noise", base=checkpoint)


def test_a_trusted_witness_does_not_hide_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = broken(tmp_path)
    assert run(["inspect", base, "--allow-non-finite"]) == 0  # hashed, and remembered
    for command in (("inspect", base), ("convert", base, "--recipe", "rtn-hif4", "-o", tmp_path / "delta")):
        code, error = failure(capsys, *command, "--trust-witness")
        assert (code, error["code"]) == (1, "non-finite")
        assert "blocks.1.norm3.weight" in error["message"]
        assert "nan at position [5]" in error["message"]
    out = tmp_path / "delta"
    assert run(["convert", base, "--recipe", "rtn-hif4", "-o", str(out), "--trust-witness", "--allow-non-finite"]) == 0
    expert = json.loads((out / "provenance.json").read_bytes())["base"]["experts"]["high_noise"]
    assert expert["files"][0]["trusted"]
    assert expert["non_finite"] == {"blocks.1.norm3.weight": {"position": [5], "value": "nan", "count": 1}}


def test_a_complete_delta_does_not_make_its_base_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = broken(tmp_path), tmp_path / "delta"
    arguments = ("convert", base, "--recipe", "rtn-hif4", "-o", out)
    assert run([*(str(argument) for argument in arguments), "--allow-non-finite"]) == 0
    code, error = failure(capsys, *arguments, "--resume")
    assert (code, error["code"]) == (1, "non-finite")
    assert "blocks.1.norm3.weight" in error["message"]
    assert run([*(str(argument) for argument in arguments), "--resume", "--allow-non-finite"]) == 0


def test_a_pipeline_in_memory_is_refused_before_it_is_calibrated(tmp_path: Path) -> None:
    from hfq.convert.tiny.pipeline import load_tiny_pipeline

    pipeline = load_tiny_pipeline()
    pipeline.transformer_2.blocks[3].norm2.weight.data[5] = NAN
    with pytest.raises(
        NonFiniteWeightError, match=r"pipeline low_noise: blocks\.3\.norm3\.weight.*nan at position \[5\]"
    ):
        hfq.calibrate(pipeline, ["a red circle"], tmp_path / "cal", steps=2)
    assert not (tmp_path / "cal.partial").exists()
