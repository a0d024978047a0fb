"""Types and shapes of the ops where a graph carries no bodies yet."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from hfq.convert.graphs.domain import (
    BLOCK_HADAMARD,
    DOMAIN,
    HIF4_DEQUANTIZE,
    HIF4_QDQ,
    HIF8_DEQUANTIZE,
    HIF8_QDQ,
    OPS,
    VERSION,
    register_schemas,
)

HIF4 = {"profile": "ref", "headroom": 1.0}
HIF8 = {"scale": "row", "saturate": 0}


def inferred(
    op: str, inputs: dict[str, tuple[int, list[Any]]], attributes: dict[str, Any], *, strict: bool = True
) -> tuple[int, list[int | str]]:
    """Element type and shape that shape inference finds for the op's output."""
    register_schemas()
    node = helper.make_node(op, list(inputs), ["inner"], domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node, helper.make_node("Identity", ["inner"], ["y"])],
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info("y")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    done = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=strict)
    (found,) = (value.type.tensor_type for value in done.graph.value_info if value.name == "inner")
    return found.elem_type, [dim.dim_param or dim.dim_value for dim in found.shape.dim]


@pytest.mark.parametrize(("op", "attributes"), [(HIF4_QDQ, HIF4), (HIF8_QDQ, HIF8)])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_quantize_dequantize_keeps_type_and_shape(op: str, attributes: dict[str, Any], kind: int) -> None:
    assert inferred(op, {"x": (kind, ["batch", "tokens", 100])}, attributes) == (kind, ["batch", "tokens", 100])


@pytest.mark.parametrize("op", BLOCK_HADAMARD.values())
def test_a_rotation_keeps_the_shape(op: str) -> None:
    inputs: dict[str, tuple[int, list[Any]]] = {
        "x": (TensorProto.FLOAT, ["b", "s", 512]),
        "signs": (TensorProto.FLOAT, [512]),
    }
    assert inferred(op, inputs, {}) == (TensorProto.FLOAT, ["b", "s", 512])


def test_packed_weights_have_the_shape_that_their_codes_say() -> None:
    inputs: dict[str, tuple[int, list[Any]]] = {
        "codes": (TensorProto.UINT8, [384, 64]),
        "scale": (TensorProto.UINT8, [384, 2, 4]),
    }
    assert inferred(HIF4_DEQUANTIZE, inputs, {"columns": 100}) == (TensorProto.FLOAT, [384, 100])
    inputs["scale"] = (TensorProto.FLOAT, [384, 1])
    assert inferred(HIF8_DEQUANTIZE, inputs, {}) == (TensorProto.FLOAT, [384, 64])


def test_a_type_that_an_op_does_not_take_is_an_error() -> None:
    with pytest.raises(onnx.shape_inference.InferenceError):
        inferred(HIF4_QDQ, {"x": (TensorProto.DOUBLE, [1, 64])}, HIF4)


def test_registering_twice_changes_nothing() -> None:
    register_schemas()
    before = {op: str(onnx.defs.get_schema(op, VERSION, DOMAIN)) for op in OPS}
    register_schemas()
    assert {op: str(onnx.defs.get_schema(op, VERSION, DOMAIN)) for op in OPS} == before
    assert all(onnx.defs.get_schema(op, VERSION, DOMAIN).doc for op in OPS)
