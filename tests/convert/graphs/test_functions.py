"""The function bodies in ONNX Runtime, bit for bit against this package's formats and against plain Python."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hfq.convert.graphs.adversarial import activation_classes, hif8_weight_classes, weight_classes
from hfq.convert.graphs.domain import BLOCK_HADAMARD, DOMAIN, HIF4_DEQUANTIZE, HIF4_QDQ, HIF8_DEQUANTIZE, HIF8_QDQ, OPS
from hfq.convert.graphs.functions import attach_functions, attributes_of, function_for
from hfq.convert.hadamard import rotate, rotation_signs
from hfq.formats import hif4, hif8
from hfq.formats.errors import FormatError
from hfq.formats.hif4_reference import decode_group, encode_group
from hfq.formats.hif4_spec import PROFILES
from hfq.formats.hif8_reference import decode, encode
from hfq.schema.errors import MixedBodiesError, OpAttributeError, UnknownOpError

HEADROOMS = (0.5, 0.9, 1.0, 1.1, 2.0)
SCALINGS = ("none", "tensor", "row")
TYPES = {TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16}
EXAMPLES: dict[str, dict[str, Any]] = {
    HIF4_QDQ: {"profile": "ref", "headroom": 1.0},
    HIF8_QDQ: {"scale": "none", "saturate": 0},
    HIF4_DEQUANTIZE: {"columns": 100},
    HIF8_DEQUANTIZE: {},
    **{name: {} for name in BLOCK_HADAMARD.values()},
}
Array = npt.NDArray[Any]


def model_of(
    op: str,
    attributes: dict[str, Any],
    feeds: dict[str, Array],
    *,
    opset: int = 18,
    through: int | None = None,
    constant: bool = False,
) -> onnx.ModelProto:
    """One node with its body; `through` casts x to another type before it and y back, `constant` stores the inputs."""
    names = list(feeds)
    nodes = []
    if through is not None:
        nodes.append(helper.make_node("Cast", ["x"], ["x_cast"], to=through))
    inputs = ["x_cast" if through is not None and name == "x" else name for name in names]
    inner = "y" if through is None else "y_cast"
    nodes.append(helper.make_node(op, inputs, [inner], name=f"a/{op}", domain=DOMAIN, **attributes))
    if through is not None:
        nodes.append(helper.make_node("Cast", ["y_cast"], ["y"], to=TensorProto.FLOAT))
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), None) for n, a in feeds.items()]
    graph = helper.make_graph(
        nodes,
        "test",
        [] if constant else infos,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in feeds.items()] if constant else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9 if opset < 21 else 10)
    attach_functions(model)
    return model


def session_of(model: onnx.ModelProto, *, optimized: bool = True, saved: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    if saved is not None:
        options.optimized_model_filepath = str(saved)
        options.graph_optimization_level = level.ORT_ENABLE_BASIC
        options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(op: str, attributes: dict[str, Any], feeds: dict[str, Array], **how: Any) -> Array:
    optimized = how.pop("optimized", True)
    session = session_of(model_of(op, attributes, feeds, **how), optimized=optimized)
    return np.asarray(session.run(None, {} if how.get("constant") else feeds)[0])


def assert_same_bits(found: Array, expected: torch.Tensor | Array) -> None:
    right = np.asarray(expected.numpy() if isinstance(expected, torch.Tensor) else expected)
    assert found.dtype == right.dtype == np.float32
    assert found.shape == right.shape
    wrong = (found.view(np.uint32) != right.view(np.uint32)) & ~(np.isnan(found) & np.isnan(right))
    assert not wrong.any(), (int(wrong.sum()), found[wrong][:3], right[wrong][:3])


def whole_set() -> torch.Tensor:
    """Every class of two groups a row, one below the other."""
    return torch.cat([x for x in activation_classes().values() if x.shape[1] == 128])


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("profile", PROFILES)
def test_hif4_under_every_profile_and_headroom(profile: str, optimized: bool) -> None:
    x = whole_set()
    for headroom in HEADROOMS:
        attributes = {"profile": profile, "headroom": headroom}
        found = run(HIF4_QDQ, attributes, {"x": x.numpy()}, optimized=optimized)
        assert_same_bits(found, hif4.qdq(x, profile=profile, headroom=headroom))


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize(("scale", "saturate"), list(itertools.product(SCALINGS, (0, 1))))
def test_hif8_under_every_option(scale: Any, saturate: int, optimized: bool) -> None:
    attributes = {"scale": scale, "saturate": saturate}
    for x in (whole_set(), *activation_classes().values()):  # one tensor scale is that of the largest class
        found = run(HIF8_QDQ, attributes, {"x": x.numpy()}, optimized=optimized)
        assert_same_bits(found, hif8.qdq(x, scale=scale, saturate=bool(saturate)))


@pytest.mark.parametrize("saturate", [0, 1])
def test_hif8_on_every_upper_half_of_a_pattern(saturate: int) -> None:
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    x = np.concatenate([(upper | np.uint32(low)).view(np.float32) for low in (0, 1, 0xFFFF)]).reshape(-1, 256)
    with np.errstate(invalid="ignore"):
        codes = [encode(float(value), saturate=bool(saturate)) for value in x.ravel()]
    values = np.array([decode(code) for code in range(256)], np.float32)
    expected = values[np.array(codes)].reshape(x.shape)
    assert_same_bits(run(HIF8_QDQ, {"scale": "none", "saturate": saturate}, {"x": x}), expected)


def test_hif8_scales_at_the_ends_of_fp32() -> None:
    """amax around 15 * 2^k for every k, at the clamp below 2^-126, at zero, and where scaling back overflows."""
    exponents = np.arange(-149, 128, dtype=np.float64)
    amax = np.concatenate([np.exp2(exponents) * f for f in (1.0, 1.5, 1.875, 1.9375, 2 - 2.0**-23)])
    x = np.zeros((len(amax) + 1, 8), np.float32)
    x[:-1] = (amax[:, None] * np.array([1, -0.9, 0.5, 1e-3, -1e-7, 0, -0.0, 0.26])).astype(np.float32)
    for scale in ("row", "tensor"):
        for rows in (x, x[:40], x[-1:]):
            found = run(HIF8_QDQ, {"scale": scale, "saturate": 0}, {"x": rows})
            assert_same_bits(found, hif8.qdq(torch.from_numpy(rows), scale=scale))  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    bits=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=64),
    profile=st.sampled_from(sorted(PROFILES)),
)
def test_hif4_against_plain_python_on_any_patterns(bits: list[int], profile: str) -> None:
    x = np.array(bits, np.uint32).view(np.float32)
    group = encode_group([float(v) for v in x], profile=profile, headroom=1.1)
    found = run(HIF4_QDQ, {"profile": profile, "headroom": 1.1}, {"x": x})
    expected = np.array(decode_group(group)[: len(x)], np.float64).astype(np.float32)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("profile", PROFILES)
def test_hif4_boundaries_against_plain_python(profile: str) -> None:
    classes = activation_classes(seed=1)
    names = ("rounding boundaries", "flag thresholds", "scale boundaries", "zeros", "non-finite", "ties of quarters")
    x = torch.cat([classes[name][:20] for name in names]).view(-1, 64)
    expected = [decode_group(encode_group(row, profile=profile, headroom=0.9)) for row in x.tolist()]
    found = run(HIF4_QDQ, {"profile": profile, "headroom": 0.9}, {"x": x.numpy()})
    assert_same_bits(found, np.array(expected, np.float64).astype(np.float32))


@pytest.mark.parametrize("kind", TYPES)
def test_half_precision_in_and_out(kind: int) -> None:
    """A model of float16 or bfloat16 activations: rounded once on the way out, where the format needs it at all."""
    dtype = TYPES[kind]
    x = whole_set().to(dtype)
    wide = {"x": x.float().numpy()}
    for profile in PROFILES:
        found = run(HIF4_QDQ, {"profile": profile, "headroom": 1.0}, wide, through=kind)
        assert_same_bits(found, hif4.qdq(x, profile=profile).float())
    for scale, saturate in itertools.product(SCALINGS, (0, 1)):
        found = run(HIF8_QDQ, {"scale": scale, "saturate": saturate}, wide, through=kind)
        assert_same_bits(found, hif8.qdq(x, scale=scale, saturate=bool(saturate)).float())  # type: ignore[arg-type]


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (128,),
        (1,),
        (63,),
        (0,),
        (3, 65),
        (5, 0),
        (0, 64),
        (0, 100),
        (2, 3, 200),
        (2, 0, 64),
        (2, 3, 2, 64),
        (1, 1, 1, 7),
    ],
)
def test_ranks_short_groups_and_empty_tensors(shape: tuple[int, ...], optimized: bool) -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 3)
    feeds = {"x": x.numpy()}
    assert_same_bits(run(HIF4_QDQ, EXAMPLES[HIF4_QDQ], feeds, optimized=optimized), hif4.qdq(x))
    for scale in SCALINGS:
        found = run(HIF8_QDQ, {"scale": scale, "saturate": 0}, feeds, optimized=optimized)
        assert_same_bits(found, hif8.qdq(x, scale=scale))  # type: ignore[arg-type]


def test_constant_folding_computes_the_same(tmp_path: Path) -> None:
    x = whole_set()[::7].contiguous()
    hif8_expected = hif8.qdq(x, scale="row")
    cases = [({"profile": p, "headroom": 1.1}, HIF4_QDQ, hif4.qdq(x, profile=p, headroom=1.1)) for p in PROFILES]
    for attributes, op, expected in [*cases, ({"scale": "row", "saturate": 0}, HIF8_QDQ, hif8_expected)]:
        saved = tmp_path / "folded.onnx"
        session = session_of(model_of(op, attributes, {"x": x.numpy()}, constant=True), saved=saved)
        assert_same_bits(np.asarray(session.run(None, {})[0]), expected)
        assert not onnx.load(saved).graph.node, "the runtime did not fold the op; the test has lost its object"


def butterflies(x: Array, block: int) -> Array:
    """H_b x / sqrt(b) of vectors [n, b], pair by pair in numpy fp32."""
    x = x.copy()
    stride = 1
    while stride < block:
        for low in (i for i in range(block) if not i & stride):
            a, b = x[:, low].copy(), x[:, low + stride].copy()
            x[:, low], x[:, low + stride] = a + b, a - b
        stride *= 2
    return x * np.float32(1 / np.sqrt(block))


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("block", BLOCK_HADAMARD)
def test_hadamard_is_the_rotation_of_this_package(block: int, optimized: bool) -> None:
    x = whole_set().view(-1, 256)
    signs = rotation_signs(3, 256)
    feeds = {"x": x.numpy(), "signs": signs.numpy()}
    found = run(BLOCK_HADAMARD[block], {}, feeds, optimized=optimized)
    assert_same_bits(found, rotate(x, signs, block))
    with np.errstate(all="ignore"):
        expected = butterflies((x.numpy() * signs.numpy()).reshape(-1, block), block).reshape(x.shape)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("shape", [(256,), (0, 256), (2, 3, 512), (2, 1, 3, 256)])
def test_hadamard_of_any_rank(shape: tuple[int, ...]) -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    signs = rotation_signs(1, shape[-1])
    for block, name in BLOCK_HADAMARD.items():
        found = run(name, {}, {"x": x.numpy(), "signs": signs.numpy()})
        assert_same_bits(found, rotate(x, signs, block))


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("columns", [128, 127, 70, 65])
def test_packed_hif4_decodes_to_the_same_bits(columns: int, optimized: bool) -> None:
    for codes, words in weight_classes().values():
        weight = hif4.Hif4Tensor(
            codes.view(-1, 64), words.view(torch.int32).view(-1, 2).view(torch.uint32), (256, columns), "ref"
        )
        scale = weight.scale.numpy().view(np.uint8).reshape(256, 2, 4)
        feeds = {"codes": weight.codes.numpy(), "scale": scale}
        found = run(HIF4_DEQUANTIZE, {"columns": columns}, feeds, optimized=optimized)
        assert_same_bits(found, weight.dequantize(torch.float32))


def test_packed_hif4_without_rows() -> None:
    feeds = {"codes": np.zeros((0, 64), np.uint8), "scale": np.zeros((0, 2, 4), np.uint8)}
    assert run(HIF4_DEQUANTIZE, {"columns": 100}, feeds).shape == (0, 100)


@pytest.mark.parametrize("optimized", [True, False])
def test_hif8_codes_decode_to_the_same_bits(optimized: bool) -> None:
    for codes, scale in hif8_weight_classes().values():
        weight = hif8.Hif8Tensor(codes, scale, "row" if scale.ndim else "tensor")
        feeds = {"codes": codes.numpy(), "scale": scale.numpy()}
        assert_same_bits(run(HIF8_DEQUANTIZE, {}, feeds, optimized=optimized), weight.dequantize(torch.float32))


@pytest.mark.parametrize("op", OPS)
def test_a_body_is_the_same_bytes_every_time_and_says_what_it_does(op: str) -> None:
    first, second = (function_for(op, EXAMPLES[op], 18) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert first.domain == DOMAIN
    assert len(first.doc_string) > 40


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("opset", [18, 23])
def test_bodies_are_standard_ops_of_opset_18_without_a_cast_that_rounds(op: str, opset: int) -> None:
    """Older runtimes truncate in a Cast to bfloat16; CastLike at the end only meets values that are exact in it."""
    function = function_for(op, EXAMPLES[op], opset)
    assert [(entry.domain, entry.version) for entry in function.opset_import] == [("", opset)]
    for node in function.node:
        assert node.domain == ""
        assert onnx.defs.get_schema(node.op_type, 18).since_version <= 18
        if node.op_type == "Cast":
            assert attributes_of(node)["to"] in (TensorProto.FLOAT, TensorProto.INT32)


@pytest.mark.parametrize("opset", [18, 23])
def test_the_checker_accepts_a_model_with_its_bodies(opset: int) -> None:
    for op, attributes in EXAMPLES.items():
        names = {"x": np.float32, "signs": np.float32} if "Hadamard" in op else {"x": np.float32}
        if "Dequantize" in op:
            names = {"codes": np.uint8, "scale": np.uint8 if "4" in op else np.float32}
        ranks = {"x": 2, "signs": 1, "codes": 2, "scale": 3 if "4" in op else 2}
        model = model_of(op, attributes, {n: np.zeros((0,), t) for n, t in names.items()}, opset=opset)
        for value in (*model.graph.input, *model.graph.output):
            for i in range(ranks.get(value.name, 2)):
                value.type.tensor_type.shape.dim.add().dim_param = f"{value.name}{i}"
        onnx.checker.check_model(model, full_check=True)


def two_nodes(first: dict[str, Any], second: dict[str, Any], op: str = HIF4_QDQ) -> onnx.ModelProto:
    nodes = [
        helper.make_node(op, ["x"], ["m"], name="one", domain=DOMAIN, **first),
        helper.make_node(op, ["m"], ["y"], name="two", domain=DOMAIN, **second),
    ]
    infos = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64])] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "test", *infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_nodes_of_one_body_may_differ_in_headroom() -> None:
    model = two_nodes({"profile": "ref", "headroom": 0.5}, {"profile": "ref", "headroom": 2.0})
    attach_functions(model)
    attach_functions(model)
    assert [function.name for function in model.functions] == [HIF4_QDQ]
    assert [(e.domain, e.version) for e in model.opset_import] == [("", 18), (DOMAIN, 1)]
    x = activation_classes()["heavy tail"].view(-1, 64)
    found = np.asarray(session_of(model).run(None, {"x": x.numpy()})[0])
    assert_same_bits(found, hif4.qdq(hif4.qdq(x, headroom=0.5), headroom=2.0))


def test_nodes_that_need_different_bodies_are_refused_by_name() -> None:
    with pytest.raises(MixedBodiesError, match="two"):
        attach_functions(two_nodes({"profile": "ref", "headroom": 1.0}, {"profile": "pto", "headroom": 1.0}))
    with pytest.raises(MixedBodiesError, match="two"):
        attach_functions(two_nodes({"scale": "row", "saturate": 0}, {"scale": "row", "saturate": 1}, HIF8_QDQ))


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        (HIF4_QDQ, {"profile": "ref"}),
        (HIF4_QDQ, {"profile": "ref", "headroom": 1}),
        (HIF4_QDQ, {"profile": "ref", "headroom": 1.0, "more": 1}),
        (HIF8_QDQ, {"scale": "none", "saturate": 2}),
        (HIF4_DEQUANTIZE, {"columns": 0}),
        (BLOCK_HADAMARD[64], {"block": 64}),
    ],
)
def test_attributes_that_an_op_does_not_have_are_refused(op: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(OpAttributeError):
        function_for(op, attributes, 18)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        (HIF4_QDQ, {"profile": "other", "headroom": 1.0}),
        (HIF4_QDQ, {"profile": "ref", "headroom": float("nan")}),
        (HIF8_QDQ, {"scale": "column", "saturate": 0}),
    ],
)
def test_attribute_values_without_meaning_are_refused(op: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        function_for(op, attributes, 18)


def test_an_unknown_op_is_refused() -> None:
    with pytest.raises(UnknownOpError, match="HiFloat5"):
        function_for("HiFloat5", {}, 18)
