"""Verifying graphs: a right one passes every level, and each wrong one fails at its level, with the node's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

import hfq
from hfq.convert.graphs import site_runs
from hfq.convert.graphs.export import export_onnx
from hfq.convert.graphs.forced import OUTPUT, forced_errors
from hfq.convert.graphs.levels import Level
from hfq.convert.graphs.linear_level import largest_error
from hfq.convert.graphs.onnx_file import OnnxFile, open_onnx
from hfq.convert.graphs.origin import Origin, read_origin
from hfq.convert.graphs.output_level import References, output_level, relative_error
from hfq.convert.graphs.reference import sample_inputs
from hfq.convert.graphs.running import RunningGraph
from hfq.convert.graphs.scope import Scope
from hfq.convert.graphs.site_nodes import SiteNodes, locate_sites
from hfq.convert.graphs.site_runs import Flips
from hfq.convert.graphs.verify_onnx import LEVELS, OnnxVerification, onnx_report, verify_onnx
from hfq.convert.recipe import Recipe
from hfq.schema.documents import parse_document
from hfq.schema.errors import GraphNumericsError, GraphOriginError, GraphPayloadError, HfqError, UsageError

Q, K = "blocks.0.self_attn.q", "blocks.0.self_attn.k"
ROLE = "high_noise"
Model = onnx.ModelProto
Change = Callable[[Model], object]


@pytest.fixture(scope="module")
def base(small_base: Path) -> Iterator[Any]:
    with hfq.open_checkpoint(small_base) as opened:
        yield opened


@pytest.fixture(scope="module")
def delta(small_delta: Path) -> Iterator[Any]:
    with hfq.load_delta(small_delta) as opened:
        yield opened


@pytest.fixture(scope="module")
def block(delta: Any, base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graphs") / "block0.onnx"
    return export_onnx(delta, base, out, scope=Scope("block", "0"), role=ROLE).graphs[0].path


@pytest.fixture(scope="module")
def linear(delta: Any, base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graphs") / "q.onnx"
    return export_onnx(delta, base, out, scope=Scope("site", Q), role=ROLE).graphs[0].path


def changed(path: Path, folder: Path, change: Change) -> Path:
    model = onnx.load(path)
    change(model)
    out = folder / "changed.onnx"
    onnx.save(model, out)
    return out


def initializer(model: Model, name: str) -> Any:
    return next(entry for entry in model.graph.initializer if entry.name == name)


def node(model: Model, name: str) -> Any:
    return next(entry for entry in model.graph.node if entry.name == name)


def failed(found: OnnxVerification) -> list[str]:
    return [name for name, level in found.levels.items() if level.verdict == "failed"]


def test_a_right_graph_passes_every_level(block: Path, delta: Any, base: Any) -> None:
    found = verify_onnx(delta, base, block, threads=1)
    assert found.ok
    assert list(found.levels) == list(LEVELS)
    verdicts = {name: level.verdict for name, level in found.levels.items()}
    assert verdicts.pop("model") == "not applicable"
    assert set(verdicts.values()) == {"passed"}
    found.raise_first()
    figures = {name: level.figures for name, level in found.levels.items()}
    assert figures["ops"]["elements"] > 500_000
    assert (figures["payload"]["initializers"], figures["payload"]["decoded"]) == (47, 10)
    assert (figures["in_situ"]["nodes"], figures["in_situ"]["sites"]) == (20, 10)
    # Two inputs; 96 and 48 tokens; of every linear the quantizer and the way to it, and each decoded weight once.
    weights = sum(site.in_features * site.out_features for site in base.experts[ROLE].sites if site.block == 0)
    rows = {"text": 24 + 27, "tokens": 96 + 48}
    wide = sum(
        rows["text" if site.name.endswith(("cross_attn.k", "cross_attn.v")) else "tokens"] * site.in_features
        for site in base.experts[ROLE].sites
        if site.block == 0
    )
    assert figures["in_situ"]["elements"] == 2 * wide + weights
    document = onnx_report(delta, [found])
    assert parse_document(json.dumps(document).encode(), "onnx-report", "here")["ok"] is True


def flip_code(model: Model) -> None:
    tensor = initializer(model, f"{Q}.w_codes")
    data = bytearray(tensor.raw_data)
    data[777] ^= 1
    tensor.raw_data = bytes(data)


def swap_masks(model: Model) -> None:
    left, right = initializer(model, f"{Q}.mask"), initializer(model, f"{K}.mask")
    left.raw_data, right.raw_data = right.raw_data, left.raw_data


def turn_mask(model: Model) -> None:
    entry = initializer(model, f"{Q}.mask")
    entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry)[::-1].copy(), entry.name))


def add_weight(model: Model) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((200, 200), np.float32), "more"))


def change_headroom(model: Model) -> None:
    next(entry for entry in node(model, f"{Q}/HiFloat4QDQ").attribute if entry.name == "headroom").f = 0.9


def read_other_mask(model: Model) -> None:
    node(model, f"{Q}/Mul").input[1] = f"{K}.mask"


def read_other_bias(model: Model) -> None:
    node(model, f"{Q}/Add").input[1] = f"{K}.bias/float"


def read_other_codes(model: Model) -> None:
    node(model, f"{Q}/HiFloat4Dequantize").input[0] = f"{K}.w_codes"


def leave_out_rounding(model: Model) -> None:
    node(model, f"{Q}/Mul").input[0] = node(model, f"{Q}/Cast").input[0]


def change_body(model: Model) -> None:
    """The value of one byte of codes in the table of the decoder: found by what the table means, not where it is."""
    body = next(entry for entry in model.functions if entry.name == "HiFloat4Dequantize")
    tables = [a.t for entry in body.node for a in entry.attribute if a.HasField("t") and list(a.t.dims) == [256, 2]]
    values = numpy_helper.to_array(tables[0]).copy()
    values[0x11] *= 1.0625
    tables[0].CopyFrom(numpy_helper.from_array(values, tables[0].name))


def change_activation(model: Model) -> None:
    """A little of the cubic term of GELU: no code of this block moves, and no free run could tell."""
    found = [
        entry
        for entry in model.graph.initializer
        if not entry.dims and entry.data_type == onnx.TensorProto.FLOAT
        and abs(float(numpy_helper.to_array(entry)) - 0.044715) < 1e-6
    ]  # fmt: skip
    found[0].CopyFrom(numpy_helper.from_array(np.array(0.0448, np.float32), found[0].name))


def leave_out_bias_of_the_last(model: Model) -> None:
    last = next(entry for entry in model.graph.node if "blocks.0.ffn.2/output" in entry.input)
    last.input[list(last.input).index("blocks.0.ffn.2/output")] = "blocks.0.ffn.2/product"


def say(key: str, value: str) -> Change:
    def change(model: Model) -> None:
        next(entry for entry in model.metadata_props if entry.key == key).value = value

    return change


def forget_site(model: Model) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == "hfq.sites")
    sites = json.loads(entry.value)
    del sites[Q]
    entry.value = json.dumps(sites)


def lie_about_input(model: Model) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == "hfq.sites")
    sites = json.loads(entry.value)
    sites[Q]["input"] = sites["blocks.0.ffn.0"]["input"]
    entry.value = json.dumps(sites)


def fix_tokens(model: Model) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 96


@pytest.mark.parametrize(
    ("change", "first", "where", "error"),
    [
        (flip_code, "payload", f"{Q}/HiFloat4Dequantize: {Q}.w_codes", GraphPayloadError),
        (turn_mask, "payload", f"{Q}/Mul: {Q}.mask", GraphPayloadError),
        (add_weight, "payload", "more", GraphPayloadError),
        (change_headroom, "payload", f"{Q}/HiFloat4QDQ", GraphPayloadError),
        (change_body, "ops", f"{Q}/HiFloat4Dequantize", GraphNumericsError),
        (leave_out_rounding, "in_situ", f"{Q}/HiFloat4QDQ", GraphNumericsError),
    ],
)
def test_a_wrong_linear_fails_at_its_level(
    change: Change, first: str, where: str, error: type[HfqError], linear: Path, delta: Any, base: Any, tmp_path: Path
) -> None:
    expect(changed(linear, tmp_path, change), delta, base, first, where, error)


@pytest.mark.parametrize(
    ("change", "first", "where", "error"),
    [
        (swap_masks, "payload", f"{Q}/Mul: {Q}.mask", GraphPayloadError),
        (read_other_mask, "in_situ", f"{Q}/HiFloat4QDQ", GraphNumericsError),
        (lie_about_input, "in_situ", f"{Q}/HiFloat4QDQ", GraphNumericsError),
        (read_other_bias, "linear", f"{Q}/MatMul", GraphNumericsError),
        (change_activation, "block", "blocks.0.ffn.2/HiFloat4QDQ", GraphNumericsError),
        (leave_out_bias_of_the_last, "block", OUTPUT, GraphNumericsError),
        (read_other_codes, "file", f"{Q}/HiFloat4Dequantize", GraphOriginError),
        (forget_site, "file", Q, GraphOriginError),
        (fix_tokens, "file", "hidden_states", GraphOriginError),
        (say("hfq.delta", "0" * 64), "file", "hfq.delta", GraphOriginError),
        (say("hfq.base_root", "0" * 64), "file", "hfq.base_root", GraphOriginError),
        (say("hfq.role", "low_noise"), "file", "hfq.base_root", GraphOriginError),
        (say("hfq.scope", "block:1"), "file", "blocks.1.", GraphOriginError),
        (say("hfq.scope", "block:7"), "file", "hfq.scope", GraphOriginError),
    ],
)
def test_a_wrong_block_fails_at_its_level(
    change: Change, first: str, where: str, error: type[HfqError], block: Path, delta: Any, base: Any, tmp_path: Path
) -> None:
    expect(changed(block, tmp_path, change), delta, base, first, where, error)


def expect(path: Path, delta: Any, base: Any, first: str, where: str, error: type[HfqError]) -> None:
    found = verify_onnx(delta, base, path, threads=1)
    assert failed(found)[0] == first
    assert where in found.levels[first].failures[0].where
    with pytest.raises(error) as caught:
        found.raise_first()
    assert caught.value.exit_code == 3
    assert where in str(caught.value)
    assert onnx_report(delta, [found])["ok"] is False
    if first == "file":
        # What is not what it says it is does not run.
        assert {level.verdict for name, level in found.levels.items() if name != "file"} == {"not applicable"}


def test_weights_of_another_delta_fail(linear: Path, base: Any, tmp_path: Path) -> None:
    with hfq.quantize(base, "rtn-hif4", out=tmp_path / "other") as other:
        path = changed(linear, tmp_path, say("hfq.delta", other.id))
        found = verify_onnx(other, base, changed(path, tmp_path, say("hfq.recipe", "rtn-hif4")), threads=1)
    assert failed(found)[0] == "payload"
    assert ".w_codes" in found.levels["payload"].failures[0].where


def test_the_other_expert_is_refused_when_one_is_asked_for(block: Path, delta: Any, base: Any) -> None:
    found = verify_onnx(delta, base, block, role="low_noise")
    assert [failure.where for failure in found.levels["file"].failures] == ["hfq.role"]
    with pytest.raises(UsageError):
        verify_onnx(delta, base, block, threads=0)


EVERY_STAGE = Recipe.from_document({
    "schema": "hfq.recipe/1", "name": "every", "weight": {"format": "hif4"}, "activation": {"format": "hif4"},
    "route": [{"match": ["blocks.0.ffn.2"], "to": "quantize"}, {"match": ["*"], "to": "keep"}],
    "stage": [
        {"kind": "smooth", "statistic": "max"}, {"kind": "outlier_columns", "k": 64}, {"kind": "rotate", "block": 64},
        {"kind": "lowrank", "rank": 4}, {"kind": "clip", "rows": 32},
    ],
})  # fmt: skip


def test_every_op_and_timestep_bin_of_a_linear(base: Any, small_calibration: Path, tmp_path: Path) -> None:
    with hfq.quantize(base, EVERY_STAGE, small_calibration, out=tmp_path / "delta") as delta:
        scope = Scope("site", "blocks.0.ffn.2")
        graphs = export_onnx(delta, base, tmp_path / "site.onnx", scope=scope, role=ROLE).graphs
        for graph in graphs:
            found = verify_onnx(delta, base, graph.path, threads=1)
            assert found.ok, found.first_error()
            assert found.levels["in_situ"].figures["nodes"] == 3
        wrong = changed(graphs[0].path, tmp_path, lambda model: _other_signs(model, "blocks.0.ffn.2.signs"))
        assert failed(verify_onnx(delta, base, wrong, threads=1))[:2] == ["payload", "in_situ"]


def _other_signs(model: Model, name: str) -> None:
    entry = initializer(model, name)
    entry.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(entry), name))


def test_a_shared_quantizer_in_many_batches(base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_runs, "_EXPOSED_BYTES", 1)
    with hfq.quantize(base, "rtn-hif4", out=tmp_path / "delta") as delta:
        path = export_onnx(delta, base, tmp_path / "b.onnx", scope=Scope("block", "0"), role=ROLE).graphs[0].path
        shared = [entry for entry in onnx.load(path).graph.node if entry.op_type == "HiFloat4QDQ"]
        found = verify_onnx(delta, base, path, threads=1)
    assert len(shared) < 10
    assert found.ok
    assert found.levels["in_situ"].figures["nodes"] == 10 + len(shared)


@pytest.fixture(scope="module")
def parts(block: Path, delta: Any, base: Any) -> tuple[OnnxFile, Origin, dict[str, SiteNodes], Any, References]:
    file = open_onnx(block)
    origin = read_origin(file)
    inputs = sample_inputs(base.experts[ROLE].architecture, origin.scope, count=1)
    sites = locate_sites(file, origin, Level("file"))
    return file, origin, sites, inputs, References.of(delta, base, origin, inputs)


@pytest.mark.parametrize(
    ("away", "control", "quantization", "verdict"),
    [
        (0.0, 0.0, 0.1, "passed"), (5e-4, 0.0, 0.1, "passed"), (2e-2, 1e-2, 0.1, "passed"),
        (2e-2, 1e-3, 0.1, "inconclusive"), (2e-1, 1e-3, 0.1, "failed"),
    ],
)  # fmt: skip
def test_a_free_run_is_judged_beside_its_controls(
    away: float, control: float, quantization: float, verdict: str, parts: Any
) -> None:
    file, origin, sites, inputs, true = parts
    # The runtime is right; what it is compared with lies `away` from it.
    moved = true.outputs[0] / (1 + away)
    references = References([moved], [quantization], [[control]], [{}], true.module)
    level = output_level("block", origin, RunningGraph(file, 1, 1), inputs, references, Flips([]), sites)
    assert level.verdict == verdict
    assert (level.reason is not None) == (verdict == "inconclusive")
    assert level.figures["relative_error"] == pytest.approx(away, rel=1e-3, abs=1e-6)


def test_forcing_leaves_the_module_as_it_was(parts: Any) -> None:
    file, _, sites, inputs, references = parts
    errors = forced_errors(references.module, RunningGraph(file, 1, 1), inputs, sites)
    assert set(errors) == {*sites, OUTPUT}
    assert max(errors.values()) < 1e-5
    with torch.no_grad():
        assert torch.equal(references.module(**inputs[0]), references.outputs[0])


def test_errors_are_what_numpy_says() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 5, 7)).astype(np.float32)
    wide = [array.astype(np.float64) for array in (left, right)]
    found, expected = torch.from_numpy(left), torch.from_numpy(right)
    assert largest_error(found, expected) == np.abs(wide[0] - wide[1]).max() / np.abs(wide[1]).max()
    norms = np.sqrt(((wide[0] - wide[1]) ** 2).sum()) / np.sqrt((wide[1] ** 2).sum())
    assert relative_error(found, expected) == pytest.approx(norms, rel=1e-12)
    nan = found.clone()
    nan[0, 0] = float("nan")
    for measure in (largest_error, relative_error):
        assert measure(found, found) == 0
        assert measure(found, torch.zeros(5, 7)) == float("inf")
        assert measure(found, expected[:2]) == float("inf")
        assert not measure(nan, found) <= 1e9


def test_flips_are_counted_per_linear() -> None:
    kept: list[dict[str, Tensor]] = [{"a": torch.tensor([1.0, 2.0, 4.0], dtype=torch.bfloat16)}]
    flips = Flips(kept)
    flips.see("a", 0, torch.tensor([1.0, 2.5, 4.0]))
    flips.see("b", 0, torch.tensor([1.0]))
    assert (flips.counts, flips.elements) == ({"a": 1}, 3)


def test_an_inlined_graph_is_verified_by_its_values(linear: Path, delta: Any, base: Any, tmp_path: Path) -> None:
    import onnx.inliner

    model = onnx.inliner.inline_local_functions(onnx.load(linear))
    helper.set_model_props(model, {entry.key: entry.value for entry in model.metadata_props})
    onnx.save(model, tmp_path / "inlined.onnx")
    found = verify_onnx(delta, base, tmp_path / "inlined.onnx", threads=1)
    assert found.ok
    assert found.levels["ops"].verdict == "not applicable"
    assert found.levels["in_situ"].figures["sites"] == 1
    wrong = changed(tmp_path / "inlined.onnx", tmp_path, flip_code)
    assert failed(verify_onnx(delta, base, wrong, threads=1))[0] == "payload"
