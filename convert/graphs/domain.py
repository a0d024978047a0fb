"""The ops of an exported graph: names, attributes, types and shapes.

Each op also has a body of standard ops (`functions`), which a file carries with it. The schemas here are for tools that
meet a node before its body is attached: the exporter, shape inference, the checker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import onnx
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceContext

__all__ = [
    "BLOCK_HADAMARD",
    "DOMAIN",
    "HIF4_DEQUANTIZE",
    "HIF4_QDQ",
    "HIF8_DEQUANTIZE",
    "HIF8_QDQ",
    "OPS",
    "VERSION",
    "register_schemas",
]

DOMAIN: Final = "ai.hfq"
VERSION: Final = 1

HIF4_QDQ: Final = "HiFloat4QDQ"
HIF8_QDQ: Final = "HiFloat8QDQ"
HIF4_DEQUANTIZE: Final = "HiFloat4Dequantize"
HIF8_DEQUANTIZE: Final = "HiFloat8Dequantize"
BLOCK_HADAMARD: Final = {64: "BlockHadamard64", 128: "BlockHadamard128", 256: "BlockHadamard256"}
OPS: Final = (HIF4_QDQ, HIF8_QDQ, HIF4_DEQUANTIZE, HIF8_DEQUANTIZE, *BLOCK_HADAMARD.values())

_FLOATS: Final = ("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "float32, float16 or bfloat16")
_STRING: Final = OpSchema.AttrType.STRING
_INT: Final = OpSchema.AttrType.INT
_FLOAT: Final = OpSchema.AttrType.FLOAT


def register_schemas() -> None:
    """Make the ops known to `onnx.defs`, each with shape inference; a second call changes nothing."""
    for schema in _schemas():
        if not onnx.defs.has(schema.name, DOMAIN):
            onnx.defs.register_schema(schema)


def _schemas() -> list[OpSchema]:
    parameter, attribute = OpSchema.FormalParameter, OpSchema.Attribute
    x, y = parameter("x", "T", "rank 1 or more"), parameter("y", "T", "the shape and type of x")
    values = parameter("y", "tensor(float)", "values [N, K]")
    schemas = [
        _schema(
            HIF4_QDQ,
            "HiFloat4 and back in groups of 64 along the last axis; a short last group counts as zeros. "
            "NaN makes its group NaN, infinity saturates.",
            _same_as_first,
            inputs=[x],
            outputs=[y],
            type_constraints=[_FLOATS],
            attributes=[
                attribute("profile", _STRING, "whose roundings: ref, amct, cann or pto"),
                attribute("headroom", _FLOAT, "factor of the group's peak before its scale is chosen"),
            ],
        ),
        _schema(
            HIF8_QDQ,
            "HiFloat8 and back, under a power-of-two scale of its own or none.",
            _same_as_first,
            inputs=[x],
            outputs=[y],
            type_constraints=[_FLOATS],
            attributes=[
                attribute("scale", _STRING, "none, tensor or row (the last axis)"),
                attribute("saturate", _INT, "1: overflow goes to 2^15 and NaN to zero; 0: to infinity and NaN"),
            ],
        ),
        _schema(
            HIF4_DEQUANTIZE,
            "The values of packed HiFloat4 codes.",
            _hif4_columns,
            inputs=[
                parameter("codes", "tensor(uint8)", "[N, 32 G], the even element in the low nibble"),
                parameter("scale", "tensor(uint8)", "[N, G, 4]: E6M2, lv2, lv3 low, lv3 high"),
            ],
            outputs=[values],
            attributes=[attribute("columns", _INT, "K, at most 64 G")],
        ),
        _schema(
            HIF8_DEQUANTIZE,
            "The values of HiFloat8 codes, times their scale.",
            _float_as_first,
            inputs=[
                parameter("codes", "tensor(uint8)", "[N, K]"),
                parameter("scale", "tensor(float)", "[N, 1] or []"),
            ],
            outputs=[values],
        ),
    ]
    schemas += [
        _schema(
            name,
            f"Signs, then the orthogonal Sylvester matrix on each block of {block} channels of the last axis.",
            _same_as_first,
            inputs=[parameter("x", "tensor(float)", "[..., K]"), parameter("signs", "tensor(float)", "[K], +1 or -1")],
            outputs=[parameter("y", "tensor(float)", "[..., K]")],
        )
        for block, name in BLOCK_HADAMARD.items()
    ]
    return schemas


def _schema(
    name: str,
    doc: str,
    infer: Callable[[InferenceContext], None],
    *,
    inputs: list[OpSchema.FormalParameter],
    outputs: list[OpSchema.FormalParameter],
    type_constraints: list[tuple[str, list[str], str]] | None = None,
    attributes: list[OpSchema.Attribute] | None = None,
) -> OpSchema:
    schema = OpSchema(
        name,
        DOMAIN,
        VERSION,
        doc,
        inputs=inputs,
        outputs=outputs,
        type_constraints=type_constraints or [],
        attributes=attributes or [],
    )
    schema.set_type_and_shape_inference_function(infer)
    return schema


def _same_as_first(context: InferenceContext) -> None:
    found = context.get_input_type(0)
    if found is not None:
        context.set_output_type(0, found)


def _float_as_first(context: InferenceContext) -> None:
    _set_float(context, _dimensions(context.get_input_type(0)))


def _hif4_columns(context: InferenceContext) -> None:
    dimensions = _dimensions(context.get_input_type(0))
    columns = context.get_attribute("columns")
    if dimensions is not None and len(dimensions) == 2:
        last = onnx.TensorShapeProto.Dimension()
        if columns is not None:
            last.dim_value = columns.i
        dimensions = [dimensions[0], last]
    _set_float(context, dimensions)


def _dimensions(found: onnx.TypeProto | None) -> list[onnx.TensorShapeProto.Dimension] | None:
    if found is None or not found.tensor_type.HasField("shape"):
        return None
    return list(found.tensor_type.shape.dim)


def _set_float(context: InferenceContext, dimensions: list[onnx.TensorShapeProto.Dimension] | None) -> None:
    result = onnx.TypeProto()
    result.tensor_type.elem_type = onnx.TensorProto.FLOAT
    if dimensions is not None:
        result.tensor_type.shape.dim.extend(dimensions)
    context.set_output_type(0, result)
