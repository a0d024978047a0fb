"""Exported graphs: what is in the file, that a stock runtime runs it, and that nothing half-written is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from synthetic import tiny, write_checkpoint
from torch import Tensor

import hfq
from hfq.cli import run
from hfq.convert.architecture import Architecture
from hfq.convert.graphs import export
from hfq.convert.graphs.export import Export, _publish, export_onnx
from hfq.convert.graphs.graph_attention import GraphAttention
from hfq.convert.graphs.payload import payload
from hfq.convert.graphs.reference import plain_module, reference_module, sample_inputs
from hfq.convert.graphs.scope import MODEL, Scope
from hfq.convert.graphs.targets import exported_graphs
from hfq.convert.graphs.verify_onnx import verify_onnx
from hfq.convert.recipe import Recipe
from hfq.convert.tensor_bytes import tensor_bytes
from hfq.convert.transformer import empty_transformer
from hfq.schema.errors import HfqError, MissingPathError, OutputExistsError, UsageError, WrongRoleError

BLOCK = Scope("block", "4")
Array = npt.NDArray[Any]


def recipe(match: list[str], *stages: dict[str, Any], **changes: Any) -> Recipe:
    routes = [{"match": match, "to": "quantize"}, {"match": ["*"], "to": "keep"}]
    document = {
        "schema": "hfq.recipe/1", "name": "mine", "weight": {"format": "hif4"}, "activation": {"format": "hif4"},
        "route": routes, "stage": list(stages), **changes,
    }  # fmt: skip
    return Recipe.from_document(document)


EVERY_STAGE = recipe(
    ["blocks.4.*"],
    {"kind": "smooth", "statistic": "max"}, {"kind": "outlier_columns", "k": 64, "match": ["*.ffn.2"]},
    {"kind": "rotate", "block": 64}, {"kind": "lowrank", "rank": 4}, {"kind": "gptq"}, {"kind": "clip", "rows": 32},
)  # fmt: skip


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_graph(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    return torch.from_numpy(session(path).run(None, {name: x.numpy() for name, x in inputs.items()})[0])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    return {entry.name: entry for entry in onnx.load(path).graph.initializer}


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


@pytest.fixture(scope="module")
def base(tiny_weights: Path) -> Iterator[Any]:
    with hfq.open_checkpoint(tiny_weights) as opened:
        yield opened


@pytest.fixture(scope="module")
def every_stage(base: Any, tiny_calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    out = tmp_path_factory.mktemp("delta") / "every"
    with hfq.quantize(base, EVERY_STAGE, tiny_calibration, out=out) as delta:
        yield delta


@pytest.fixture(scope="module")
def every_graph(every_stage: Any, base: Any, tmp_path_factory: pytest.TempPathFactory) -> Export:
    out = tmp_path_factory.mktemp("graphs") / "block4.onnx"
    return export_onnx(every_stage, base, out, scope=BLOCK, role="high_noise")


@pytest.fixture(scope="module")
def plain_delta(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with hfq.quantize(base, "rtn-hif8", out=tmp_path_factory.mktemp("delta") / "hif8") as delta:
        yield delta


def test_graphs_of_a_clip_differ_in_their_headrooms_alone(every_graph: Export, every_stage: Any) -> None:
    assert [graph.bin for graph in every_graph.graphs] == [0, 1, 2]
    assert every_graph.data is not None
    texts = []
    for graph in every_graph.graphs:
        model = onnx.load(graph.path, load_external_data=False)
        for node in model.graph.node:
            if node.op_type != "HiFloat4QDQ":
                continue
            site = node.name.partition("/")[0]
            op = next(op for op in every_stage.site("high_noise", site)["ops"] if op["op"] == "clip")
            headroom = next(entry for entry in node.attribute if entry.name == "headroom")
            assert headroom.f == np.float32(op["headroom"][graph.bin]), node.name
            headroom.f = 0
        del model.metadata_props[:]
        texts.append(model.SerializeToString(deterministic=True))
        assert metadata(graph.path)["hfq.bin"] == str(graph.bin)
    assert texts[0] == texts[1] == texts[2]


def test_a_stock_runtime_computes_what_torch_computes(every_graph: Export, every_stage: Any, base: Any) -> None:
    plain = plain_module(base, "high_noise", BLOCK)
    for graph in every_graph.graphs:
        quantized = reference_module(every_stage, base, "high_noise", BLOCK, graph.bin)
        for inputs in sample_inputs(base.experts["high_noise"].architecture, BLOCK):
            with torch.no_grad():
                expected, original = quantized(**inputs), plain(**inputs)
            # A last bit that falls the other way is a whole step of a 4-bit code: the graph is far nearer to its own
            # reference than either is to the original, and no more can be said here (see `verify_onnx`).
            assert relative(run_graph(graph.path, inputs), expected) < relative(expected, original) / 4


def test_every_initializer_has_the_bits_of_the_payload(every_graph: Export, every_stage: Any, base: Any) -> None:
    found = initializers(every_graph.graphs[0].path)
    expected = dict(payload(every_stage, base, "high_noise", BLOCK))
    assert len([name for name in expected if name.endswith(".w_codes")]) == 10
    for name, tensor in expected.items():
        assert list(found[name].dims) == list(tensor.shape), name
        assert numpy_helper.to_array(found[name]).tobytes() == tensor_bytes(tensor), name
    # What is left are constants that the exporter folded, none of them a weight.
    assert all(np.prod(found[name].dims) <= 128 for name in set(found) - set(expected))


def test_packed_weights_take_four_and_a_half_bits(every_graph: Export) -> None:
    found = initializers(every_graph.graphs[0].path)
    for site, (rows, columns) in {"self_attn.q": (128, 128), "ffn.0": (512, 128), "ffn.2": (128, 448)}.items():
        codes, scale = (found[f"blocks.4.{site}.{name}"] for name in ("w_codes", "w_scale"))
        assert (list(codes.dims), list(scale.dims)) == ([rows, columns // 2], [rows, columns // 64, 4])
        assert codes.data_type == scale.data_type == onnx.TensorProto.UINT8


def test_nodes_are_named_by_site_and_nothing_private_is_left(every_graph: Export, tmp_path: Path) -> None:
    model = onnx.load(every_graph.graphs[0].path, load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    own = [node.name for node in model.graph.node if node.domain]
    kinds = ("HiFloat4QDQ", "HiFloat4Dequantize", "BlockHadamard64")
    assert sorted(own) == sorted(f"blocks.4.{site}/{kind}" for site in SITES for kind in kinds)
    assert {node.domain for node in model.graph.node} == {"", "ai.hfq"}
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 18), ("ai.hfq", 1)}
    assert model.ir_version == 9
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    assert all(function.doc_string for function in model.functions)
    raw = every_graph.graphs[0].path.read_bytes()
    for private in (b"site-packages", b"/graph_linear.py", b"pkg.torch", str(Path.home()).encode() + b"/"):
        assert private not in raw


SITES = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v",
         "cross_attn.o", "ffn.0", "ffn.2")  # fmt: skip


def test_the_file_says_where_it_comes_from(every_graph: Export, every_stage: Any) -> None:
    found = metadata(every_graph.graphs[2].path)
    assert found["hfq.delta"] == every_stage.id
    assert found["hfq.base_root"] == every_stage.root("high_noise")
    assert (found["hfq.role"], found["hfq.scope"], found["hfq.recipe"]) == ("high_noise", "block:4", "mine")
    assert found["hfq.profile"] == "ref"
    sites = json.loads(found["hfq.sites"])
    assert sorted(sites) == sorted(f"blocks.4.{site}" for site in SITES)
    model = onnx.load(every_graph.graphs[2].path, load_external_data=False)
    values = {name for node in model.graph.node for name in node.output} | {entry.name for entry in model.graph.input}
    for places in sites.values():
        assert set(places) == {"input", "qdq", "product", "output"}
        assert set(places.values()) <= values


def test_a_graph_under_another_bins_name_is_refused(
    every_graph: Export, every_stage: Any, base: Any, tmp_path: Path
) -> None:
    """People choose by the name; the edges say when which graph is right."""
    source = every_graph.graphs[0].path
    assert (
        json.loads(metadata(source)["hfq.edges"])
        == every_stage.site("high_noise", "blocks.4.ffn.0")["ops"][-2]["edges"]
    )
    assert every_graph.data is not None
    shutil.copy(every_graph.data, tmp_path)
    for name, change in (("block4.bin1.onnx", {}), ("edges.onnx", {"hfq.edges": "[900.0, 100.0]"})):
        model = onnx.load(source, load_external_data=False)
        for entry in model.metadata_props:
            entry.value = change.get(entry.key, entry.value)
        onnx.save(model, tmp_path / name)
        found = verify_onnx(every_stage, base, tmp_path / name)
        assert [failure.where for failure in found.levels["file"].failures] == (
            ["hfq.edges"] if change else ["hfq.bin"]
        )
        error = found.first_error()
        assert error is not None
        assert error.exit_code == 3


def test_a_missing_bin_is_named(every_graph: Export, tmp_path: Path) -> None:
    for graph in (every_graph.graphs[0], every_graph.graphs[2]):
        shutil.copy(graph.path, tmp_path)
    with pytest.raises(MissingPathError, match=r"block4\.bin1\.onnx"):
        exported_graphs(tmp_path / "block4.onnx")
    assert exported_graphs(tmp_path / "block4.bin2.onnx") == [tmp_path / "block4.bin2.onnx"]


def test_checker_and_shape_inference_accept_it(every_graph: Export) -> None:
    path = every_graph.graphs[0].path
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    for bodies in (True, False):
        if not bodies:
            del model.functions[:]
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        shapes = {
            value.name: [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
            for value in inferred.graph.value_info
        }
        assert shapes["blocks.4.ffn.0/output"][-1] == 512, bodies


def test_linears_with_one_input_share_one_quantizer(plain_delta: Any, base: Any, tmp_path: Path) -> None:
    done = export_onnx(plain_delta, base, tmp_path / "b.onnx", scope=BLOCK, role="low_noise")
    assert (done.nodes["ai.hfq::HiFloat8QDQ"], done.nodes["ai.hfq::HiFloat8Dequantize"]) == (7, 10)
    sites = json.loads(metadata(tmp_path / "b.onnx")["hfq.sites"])
    assert sites["blocks.4.self_attn.q"]["qdq"] == sites["blocks.4.self_attn.v"]["qdq"] == "blocks.4.self_attn.q/qdq"
    assert sites["blocks.4.self_attn.q"]["output"] != sites["blocks.4.self_attn.v"]["output"]


def test_the_same_export_gives_the_same_bytes(plain_delta: Any, base: Any, tmp_path: Path) -> None:
    scope = Scope("site", "blocks.2.ffn.0")
    for name in ("a.onnx", "b.onnx"):
        export_onnx(plain_delta, base, tmp_path / name, scope=scope, role="high_noise")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_large_weights_lie_beside_the_graph(
    plain_delta: Any, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = Scope("site", "blocks.2.ffn.0")
    inputs = sample_inputs(base.experts["high_noise"].architecture, scope)[0]
    export_onnx(plain_delta, base, tmp_path / "a.onnx", scope=scope, role="high_noise")
    monkeypatch.setattr(export, "_EMBED_BYTES", 1000)
    done = export_onnx(plain_delta, base, tmp_path / "b.onnx", scope=scope, role="high_noise")
    assert done.data == tmp_path / "b.onnx.data"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "b.onnx.data"]
    assert torch.equal(run_graph(tmp_path / "a.onnx", inputs), run_graph(tmp_path / "b.onnx", inputs))


@pytest.mark.parametrize("kind", ["i2v-image", "flf2v", "ti2v", "vace"])
def test_every_kind_of_model_is_exported_whole(kind: str, tmp_path: Path) -> None:
    """All but one linear stay in BF16, so that no code can flip and float32 agrees to its last digits."""
    changes = {"flf2v": {"image_tokens": 8}, "vace": {"vace_blocks": 1, "vace_layers": (0,)}}.get(kind, {})
    model = write_checkpoint(tmp_path / "base", tiny(kind, num_layers=1, **changes), "original-2.1", dtype="BF16")
    with hfq.open_checkpoint(model) as checkpoint:
        chosen = recipe(["blocks.0.ffn.2"], weight={"format": "hif8", "scale": "row"}, activation={"format": "hif8"})
        with hfq.quantize(checkpoint, chosen, out=tmp_path / "delta") as delta:
            export_onnx(delta, checkpoint, tmp_path / "m.onnx", scope=MODEL)
            reference = reference_module(delta, checkpoint, "single", MODEL)
            for inputs in sample_inputs(checkpoint.experts["single"].architecture, MODEL):
                with torch.no_grad():
                    expected = reference(**inputs)
                assert relative(run_graph(tmp_path / "m.onnx", inputs), expected) < 1e-5


def test_graph_attention_is_diffusers_attention_bit_for_bit() -> None:
    architecture: Architecture = tiny("i2v-image")
    torch.manual_seed(0)
    block = empty_transformer(architecture).get_submodule("blocks.0").to_empty(device="cpu")
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = sample_inputs(architecture, Scope("block", "0"), count=1, sizes={"image_tokens": 257})[0]
    rotary = inputs.pop("rotary_cos"), inputs.pop("rotary_sin")
    with torch.no_grad():
        expected = block(**inputs, rotary_emb=rotary)
        for attention in (block.attn1, block.attn2):
            attention.set_processor(GraphAttention())
        assert torch.equal(block(**inputs, rotary_emb=rotary), expected)


def test_inline_leaves_standard_ops_alone(plain_delta: Any, base: Any, tmp_path: Path) -> None:
    scope = Scope("site", "blocks.2.ffn.0")
    inputs = sample_inputs(base.experts["high_noise"].architecture, scope)[0]
    for name, inline in (("own.onnx", False), ("standard.onnx", True)):
        export_onnx(plain_delta, base, tmp_path / name, scope=scope, role="high_noise", inline=inline)
    model = onnx.load(tmp_path / "standard.onnx")
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert torch.equal(run_graph(tmp_path / "own.onnx", inputs), run_graph(tmp_path / "standard.onnx", inputs))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"scope": Scope("site", "head.head")}, UsageError, "kept"),
        ({"scope": Scope("site", "blocks.2.ffn.1")}, UsageError, "no such linear"),
        ({"scope": Scope("block", "8")}, UsageError, "0 to 7"),
        ({"role": "single"}, UsageError, "no such expert"),
        ({"role": None}, UsageError, "two experts"),
        ({"bin": 1}, UsageError, "every timestep bin"),
        ({"opset": 17}, UsageError, "18 or 23"),
        ({"out": "graph.txt"}, UsageError, ".onnx"),
        ({"out": "no/such/folder.onnx"}, UsageError, "folder"),
        ({"out": "taken.onnx"}, OutputExistsError, "already"),
        ({"out": "shared.onnx"}, OutputExistsError, "shared.bin1.onnx"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    change: dict[str, Any], error: type[HfqError], says: str, plain_delta: Any, base: Any, tmp_path: Path
) -> None:
    for name in ("taken.onnx", "shared.bin1.onnx"):
        (tmp_path / name).write_bytes(b"mine")
    arguments = {"out": "new.onnx", "scope": Scope("site", "blocks.2.ffn.0"), "role": "high_noise", **change}
    with pytest.raises(error, match=says):
        export_onnx(plain_delta, base, tmp_path / arguments.pop("out"), **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shared.bin1.onnx", "taken.onnx"]


@pytest.mark.parametrize("part", [Scope("site", "blocks.2.ffn.0"), Scope("block", "0")])
def test_another_base_is_refused_and_leaves_nothing(
    part: Scope, tiny_weights: Path, base: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A quantized linear of another base has another digest; a block that is kept is another all the same."""
    (exchanged := tmp_path_factory.mktemp("exchanged")).joinpath("high_noise_model").symlink_to(
        tiny_weights / "low_noise_model"
    )
    exchanged.joinpath("low_noise_model").symlink_to(tiny_weights / "high_noise_model")
    with (
        hfq.quantize(base, "boundary-hif8", out=tmp_path_factory.mktemp("delta") / "boundary") as delta,
        hfq.open_checkpoint(exchanged) as other,
        pytest.raises(WrongRoleError, match="low_noise"),
    ):
        export_onnx(delta, other, tmp_path / "a.onnx", scope=part, role="high_noise")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_what_it_made(
    plain_delta: Any, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "site.onnx"
    arguments = ["export", "onnx", str(plain_delta.path), "--base", str(tiny_weights), "--site", "blocks.2.ffn.0"]
    assert run([*arguments, "-o", str(out), "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert (document["delta"], document["scope"]) == (plain_delta.id, "site:blocks.2.ffn.0")
    assert document["graphs"] == [{"path": str(out), "bin": None, "size_bytes": out.stat().st_size}]
    assert document["expert"] == "high_noise"
    assert "--expert" in shown.err
    assert run([*arguments, "-o", str(out)]) == 2
    assert run([*arguments, "--block", "2", "-o", str(tmp_path / "b.onnx")]) == 2


def test_a_graph_that_appeared_while_it_was_exported_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "x.onnx").write_bytes(b"new")
    (tmp_path / "x.onnx").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        _publish([(tmp_path / "made" / "x.onnx", tmp_path / "x.onnx")])
    assert (tmp_path / "x.onnx").read_bytes() == b"mine"
