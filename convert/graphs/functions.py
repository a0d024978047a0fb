"""The body of each op, and attaching bodies to a model.

At opset 18 a body cannot branch on a string: `HiFloat4QDQ` has one body for each profile, `HiFloat8QDQ` one for each
pair of options, and a model carries one of them. Attach last: tools that convert opset versions inline functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import onnx
from onnx import helper

from hfq.formats.hif4_spec import checked_headroom, profile_named
from hfq.formats.hif8_spec import Scaling, checked_option
from hfq.schema.errors import MixedBodiesError, OpAttributeError, UnknownOpError

from . import hif4_functions, hif8_functions
from .domain import BLOCK_HADAMARD, DOMAIN, HIF4_DEQUANTIZE, HIF4_QDQ, HIF8_DEQUANTIZE, HIF8_QDQ, OPS, VERSION
from .hadamard_function import hadamard_function

__all__ = ["attach_functions", "attributes_of", "check_attributes", "function_for"]

_SCALINGS: Final[dict[str, Scaling]] = {"none": "none", "tensor": "tensor", "row": "row"}
_ATTRIBUTES: Final[dict[str, dict[str, type]]] = {
    HIF4_QDQ: {"profile": str, "headroom": float},
    HIF8_QDQ: {"scale": str, "saturate": int},
    HIF4_DEQUANTIZE: {"columns": int},
    HIF8_DEQUANTIZE: {},
    **{name: {} for name in BLOCK_HADAMARD.values()},
}


def function_for(op_type: str, attributes: Mapping[str, Any], opset: int) -> onnx.FunctionProto:
    """The body of a node with these attributes: the same bytes every time.

    Args:
        attributes: all that the op has, see `attributes_of`.
        opset: version of the standard ops, that of the model; 18 or later.

    Raises:
        UnknownOpError: the domain has no such op.
        OpAttributeError: an attribute is missing, unknown, of another type or out of range.
        UnknownProfileError, UnknownOptionError, InvalidHeadroomError: an attribute's value has no meaning.
    """
    check_attributes(op_type, attributes)
    return _build(op_type, attributes)(opset)


def attach_functions(model: onnx.ModelProto) -> None:
    """Give `model` the bodies that the nodes of its graph need, and the import of their domain, in place.

    Functions of the domain that were there are replaced. Subgraphs are not searched.

    Raises:
        MixedBodiesError: nodes of one op need different bodies.
        as `function_for`.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    bodies: dict[str, tuple[str, onnx.FunctionProto]] = {}
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        function = function_for(node.op_type, attributes_of(node), opset)
        first, body = bodies.setdefault(node.op_type, (node.name, function))
        if body != function:
            raise MixedBodiesError(
                f"nodes of {node.op_type} need different bodies in one model",
                where=node.name,
                expected=f"the attributes of {first}",
                found=attributes_of(node),
            )
    others = [function for function in model.functions if function.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend([*others, *(bodies[name][1] for name in OPS if name in bodies)])
    if bodies and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node by name: str, int and float."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for name, value in sorted(values.items())
    }


def check_attributes(op_type: str, attributes: Mapping[str, Any]) -> None:
    """Nothing, if a node of this op may carry these attributes.

    Raises:
        as `function_for`.
    """
    if op_type not in _ATTRIBUTES:
        raise UnknownOpError(f"no op of the domain {DOMAIN}", expected=", ".join(OPS), found=op_type)
    types = _ATTRIBUTES[op_type]
    right = attributes.keys() == types.keys() and all(type(attributes[name]) is kind for name, kind in types.items())
    if not right:
        expected = {name: kind.__name__ for name, kind in types.items()}
        raise OpAttributeError("other attributes than the op has", where=op_type, expected=expected, found=attributes)
    if "profile" in attributes:
        profile_named(attributes["profile"])
        checked_headroom(attributes["headroom"])
    if "scale" in attributes:
        checked_option("scale", attributes["scale"], _SCALINGS)
    for name, low, high in (("saturate", 0, 1), ("columns", 1, 2**31 - 1)):
        if name in attributes and not low <= attributes[name] <= high:
            expected_range = f"{name} in {low} ... {high}"
            raise OpAttributeError(
                "an attribute out of range", where=op_type, expected=expected_range, found=attributes[name]
            )


def _build(op_type: str, attributes: Mapping[str, Any]) -> Callable[[int], onnx.FunctionProto]:
    if op_type == HIF4_QDQ:
        return functools.partial(hif4_functions.qdq_function, attributes["profile"])
    if op_type == HIF8_QDQ:
        scale = _SCALINGS[attributes["scale"]]
        return functools.partial(hif8_functions.qdq_function, scale, bool(attributes["saturate"]))
    if op_type == HIF4_DEQUANTIZE:
        return hif4_functions.dequantize_function
    if op_type == HIF8_DEQUANTIZE:
        return hif8_functions.dequantize_function
    block = next(block for block, name in BLOCK_HADAMARD.items() if name == op_type)
    return functools.partial(hadamard_function, block)
