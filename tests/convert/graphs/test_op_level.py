"""The op-level check: it passes right bodies in two runtimes and finds every wrong one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from hfq.convert.graphs.adversarial import activation_classes, weight_classes
from hfq.convert.graphs.domain import BLOCK_HADAMARD, DOMAIN, HIF4_DEQUANTIZE, HIF4_QDQ, HIF8_DEQUANTIZE, HIF8_QDQ
from hfq.convert.graphs.functions import attributes_of, function_for
from hfq.convert.graphs.op_level import OpClassResult, check_functions, reference_evaluator_check
from hfq.formats import hif4
from hfq.formats.hif4_spec import PROFILES
from hfq.schema.errors import MissingBodyError, UnknownOpError

CALLS: list[tuple[str, dict[str, Any]]] = [
    *((HIF4_QDQ, {"profile": profile, "headroom": 0.9}) for profile in PROFILES),
    *((HIF8_QDQ, {"scale": scale, "saturate": on}) for scale in ("none", "tensor", "row") for on in (0, 1)),
    (HIF4_DEQUANTIZE, {"columns": 100}),
    (HIF8_DEQUANTIZE, {}),
    *((name, {}) for name in BLOCK_HADAMARD.values()),
]


def node(op: str, name: str = "site/op", **attributes: Any) -> onnx.NodeProto:
    inputs = ["codes", "scale"] if "Dequantize" in op else ["x", "signs"] if "Hadamard" in op else ["x"]
    return helper.make_node(op, inputs, ["y"], name=name, domain=DOMAIN, **attributes)


def body(op: str, attributes: dict[str, Any], opset: int = 18) -> onnx.FunctionProto:
    return function_for(op, attributes, opset)


def total(results: list[OpClassResult]) -> int:
    return sum(result.mismatches for result in results)


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 9), (23, 10)])
@pytest.mark.parametrize(("op", "attributes"), CALLS)
def test_own_bodies_have_no_mismatch_in_either_runtime(
    op: str, attributes: dict[str, Any], opset: int, ir_version: int
) -> None:
    given = ([body(op, attributes, opset)], [node(op, **attributes)], opset, ir_version)
    for results in (check_functions(*given), reference_evaluator_check(*given)):
        assert results
        assert [(r.elements_class, r.first) for r in results if r.mismatches or r.first] == []
        assert all(r.op == op and r.elements > 0 for r in results)
    assert sum(r.elements for r in check_functions(*given)) > 90_000


def test_each_op_with_the_same_attributes_is_run_once() -> None:
    plain = {"profile": "ref", "headroom": 1.0}
    clipped = attributes_of(node(HIF4_QDQ, profile="ref", headroom=0.9))
    nodes = [node(HIF4_QDQ, f"n{i}", **attributes) for i, attributes in enumerate([plain, clipped, plain])]
    nodes.append(helper.make_node("Relu", ["a"], ["b"]))
    results = check_functions([body(HIF4_QDQ, plain)], nodes, 18, 9)
    assert len(results) == 2 * len(activation_classes())
    assert total(results) == 0
    assert [r.attributes for r in results[:: len(activation_classes())]] == [plain, clipped]


def floats_in(function: onnx.FunctionProto) -> list[tuple[int, int, float]]:
    """Node, index and value of every fp32 number among a body's constants, tables by some of their entries."""
    found = []
    for place, one in enumerate(function.node):
        if one.op_type == "Constant" and one.attribute[0].name == "value":
            array = numpy_helper.to_array(one.attribute[0].t)
            if array.dtype == np.float32:
                entries = range(array.size) if array.size == 1 else range(0, array.size, 61)
                found += [(place, i, float(array.ravel()[i])) for i in entries]
    return found


def changed(function: onnx.FunctionProto, place: int, index: int, factor: float) -> onnx.FunctionProto:
    """The body with one number multiplied."""
    other = onnx.FunctionProto()
    other.CopyFrom(function)
    tensor = other.node[place].attribute[0].t
    array = numpy_helper.to_array(tensor).copy()
    with np.errstate(over="ignore"):
        array.ravel()[index] *= np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(array))
    return other


LOG2_E = np.float32(1.4426950408889634)  # only guesses an exponent; comparisons put the guess right


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        *((HIF4_QDQ, {"profile": profile, "headroom": 1.0}) for profile in PROFILES),
        *((HIF8_QDQ, {"scale": scale, "saturate": on}) for scale in ("none", "tensor", "row") for on in (0, 1)),
    ],
)
def test_every_number_in_a_body_matters_to_the_check(op: str, attributes: dict[str, Any]) -> None:
    """Four times or a quarter of any scalar: the classes see at least one of the two."""
    function, call = body(op, attributes), node(op, **attributes)
    unseen = []
    for place, index, value in floats_in(function):
        if value == 0 or np.float32(value) == LOG2_E or len(function.node[place].attribute[0].t.dims):
            continue
        wrong = (changed(function, place, index, factor) for factor in (4.0, 0.25))
        if not any(total(check_functions([other], [call], 18, 9)) for other in wrong):
            unseen.append(value)
    assert unseen == []


def test_one_wrong_table_entry_of_256_is_found() -> None:
    function = body(HIF4_DEQUANTIZE, {"columns": 128})
    call = node(HIF4_DEQUANTIZE, columns=128)
    entries = [entry for entry in floats_in(function) if np.isfinite(entry[2]) and entry[2] != 0]
    assert len(entries) > 20
    for place, index, _ in entries:
        results = check_functions([changed(function, place, index, 1 + 2.0**-23)], [call], 18, 9)
        (first, *_) = [r for r in results if r.mismatches]
        assert first.first is not None
        assert "scale word 0x" in first.first


def test_a_half_instead_of_the_number_below_it_is_found_at_the_rounding_boundaries() -> None:
    """The classic mistake: floor(4m + 1/2) in fp32, wrong for one number."""
    attributes = {"profile": "ref", "headroom": 1.0}
    function = body(HIF4_QDQ, attributes)
    below = 0.5 - 2.0**-25
    (place,) = (place for place, _, value in floats_in(function) if value == below)
    results = check_functions([changed(function, place, 0, 0.5 / below)], [node(HIF4_QDQ, **attributes)], 18, 9)
    wrong = {result.elements_class: result for result in results if result.mismatches}
    assert "rounding boundaries" in wrong
    assert wrong["rounding boundaries"].first is not None
    assert "expected 0x" in wrong["rounding boundaries"].first


@pytest.mark.parametrize("declared", PROFILES)
@pytest.mark.parametrize("carried", PROFILES)
def test_the_body_of_another_profile_is_found(declared: str, carried: str) -> None:
    function = body(HIF4_QDQ, {"profile": carried, "headroom": 1.0})
    results = check_functions([function], [node(HIF4_QDQ, profile=declared, headroom=1.0)], 18, 9)
    assert (total(results) == 0) == (declared == carried)


def test_a_body_that_loses_the_sign_of_zero_is_found() -> None:
    """The sign of a negative that rounds to zero, and nothing else."""
    function = body(HIF4_QDQ, {"profile": "ref", "headroom": 1.0})
    function.node[-1].input[0] = "lost"
    zero = helper.make_node("Constant", [], ["nought"], value=numpy_helper.from_array(np.float32(0)))
    kept = helper.make_node("Equal", [function.node[-2].output[0], "nought"], ["is_zero"])
    lost = helper.make_node("Where", ["is_zero", "nought", function.node[-2].output[0]], ["lost"])
    nodes = [*function.node[:-1], zero, kept, lost, function.node[-1]]
    del function.node[:]
    function.node.extend(nodes)
    results = check_functions([function], [node(HIF4_QDQ, profile="ref", headroom=1.0)], 18, 9)
    wrong = [result for result in results if result.mismatches]
    assert wrong
    assert all(r.first is not None and "expected 0x80000000 (-0), found 0x00000000 (0)" in r.first for r in wrong)


def test_a_body_that_does_not_run_is_wrong_in_every_element() -> None:
    function = body(HIF8_DEQUANTIZE, {})
    function.node[-1].op_type = "NoSuchOp"
    for check in (check_functions, reference_evaluator_check):
        results = check([function], [node(HIF8_DEQUANTIZE)], 18, 9)
        assert results
        assert all(r.mismatches == r.elements and r.first for r in results)


def test_a_result_of_another_shape_is_wrong_in_every_element() -> None:
    function = body(HIF4_DEQUANTIZE, {"columns": 100})
    function.node[-1].op_type, function.node[-1].input[:] = "Identity", [function.node[-1].input[0]]
    results = check_functions([function], [node(HIF4_DEQUANTIZE, columns=100)], 18, 9)
    assert all(r.mismatches == r.elements and "128" in str(r.first) for r in results)


def test_a_missing_body_and_an_unknown_op_are_errors() -> None:
    with pytest.raises(MissingBodyError, match="site/op"):
        check_functions([], [node(HIF8_DEQUANTIZE)], 18, 9)
    with pytest.raises(UnknownOpError):
        check_functions([], [node("HiFloat5")], 18, 9)


def test_classes_hold_what_their_names_say() -> None:
    classes = activation_classes()
    assert all(x.dtype == torch.float32 and 20_000 < x.numel() < 60_000 for x in classes.values())
    assert [name for name, x in classes.items() if not x.isfinite().all()] == ["non-finite"]
    assert classes["non-finite"].isnan().any()
    assert classes["non-finite"].isinf().any()
    zeros = classes["zeros"]
    assert (torch.signbit(zeros) & (zeros == 0)).any()
    subnormals = classes["subnormals"]
    assert (subnormals.abs() < 2.0**-126).all()
    assert (subnormals != 0).any()
    assert not torch.equal(activation_classes(seed=1)["normal"], classes["normal"])
    assert all(torch.equal(a.nan_to_num(), classes[n].nan_to_num()) for n, a in activation_classes().items())


def test_weight_classes_cover_every_byte() -> None:
    classes = weight_classes()
    fields = {name: hif4.unpack_scale(words) for name, (_, words) in classes.items()}
    assert fields["all scale bytes"][0].unique().numel() == 256
    assert fields["all lv2 flags"][1].unique().numel() == 256
    lv3 = fields["all lv3 flags"][2]
    assert (lv3 & 255).unique().numel() == 256
    assert (lv3 >> 8).unique().numel() == 256
    codes = classes["all codes"][0]
    assert all(codes[:, place].unique().numel() == 256 for place in range(32))
    assert (fields["NaN scale"][0] == 255).all()
