"""Function bodies, node by node.

A body is deterministic: values are numbered in the order in which they are made, and equal constants are one node.
Every node rounds its own result to its type and nothing else is rounded; bodies rely on that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from .domain import DOMAIN

__all__ = ["Body", "half_up"]

LOG2_E: Final = 1.4426950408889634
BELOW_HALF: Final = 0.5 - 2.0**-25


class Body:
    """The nodes of one function so far. Values are named by strings; every method returns the name it made."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A standard op with one output."""
        return self._append(helper.make_node(op_type, inputs, [output or f"v{len(self._nodes)}"], **attributes))

    def constant(self, array: npt.NDArray[Any]) -> str:
        """A tensor; asked for twice, one node."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def fp32(self, value: float) -> str:
        """An fp32 scalar."""
        return self.constant(np.array(value, np.float32))

    def int32(self, value: int) -> str:
        """An int32 scalar."""
        return self.constant(np.array(value, np.int32))

    def int64s(self, *values: int) -> str:
        """An int64 vector: a shape, or axes."""
        return self.constant(np.array(values, np.int64))

    def attribute(self, name: str, kind: onnx.AttributeProto.AttributeType) -> str:
        """A scalar that holds the calling node's attribute, FLOAT or INT."""
        stored = "value_float" if kind == onnx.AttributeProto.FLOAT else "value_int"
        node = helper.make_node("Constant", [], [f"v{len(self._nodes)}"])
        node.attribute.append(onnx.AttributeProto(name=stored, ref_attr_name=name, type=kind))
        return self._append(node)

    def cast(self, x: str, to: int) -> str:
        """`x` as another type."""
        return self.op("Cast", x, to=to)

    def as_fp32(self, x: str) -> str:
        """`x` as fp32; exact from float16, bfloat16, bool and small integers."""
        return self.cast(x, onnx.TensorProto.FLOAT)

    def clip(self, x: str, low: float, high: float) -> str:
        """fp32 `x` in [low, high]."""
        return self.op("Clip", x, self.fp32(low), self.fp32(high))

    def exponent(self, x: str, lowest: int, highest: int) -> tuple[str, str]:
        """i = e - lowest, int32, and 2^e, with e = floor(log2 x); exact for fp32 x in [2^lowest, 2^(highest + 1)).

        A logarithm guesses; two comparisons with the exact power put a guess that is one off right. The guess is
        clipped as an integer, so that no garbage of a NaN reaches a table.
        """
        last = highest - lowest
        table = self.constant(np.ldexp(np.float32(1), np.arange(lowest, highest + 1)).astype(np.float32))
        log2 = self.op("Floor", self.op("Mul", self.op("Log", x), self.fp32(LOG2_E)))
        guess = self._index(self.cast(self.op("Sub", log2, self.fp32(lowest)), onnx.TensorProto.INT32), last)
        power = self.op("Gather", table, guess)
        low = self.cast(self.op("Less", x, power), onnx.TensorProto.INT32)
        # x / power is 2 or more exactly when the guess is too low: the power of two divides exactly
        high = self.cast(self.op("GreaterOrEqual", self.op("Div", x, power), self.fp32(2)), onnx.TensorProto.INT32)
        index = self._index(self.op("Add", self.op("Sub", guess, low), high), last)
        return index, self.op("Gather", table, index)

    def function(
        self,
        name: str,
        inputs: Sequence[str],
        doc: str,
        *,
        opset: int,
        attributes: Sequence[str] = (),
        fixed: Sequence[onnx.AttributeProto] = (),
    ) -> onnx.FunctionProto:
        """These nodes as the function `name` with the output `y`.

        Args:
            attributes: those that the body reads by reference.
            fixed: those that chose the body, with the values they chose it by.
        """
        return helper.make_function(
            DOMAIN,
            name,
            inputs,
            ["y"],
            self._nodes,
            [helper.make_opsetid("", opset)],
            attributes=list(attributes),
            attribute_protos=list(fixed),
            doc_string=doc,
        )

    def _index(self, index: str, last: int) -> str:
        return self.op("Clip", index, self.int32(0), self.int32(last))

    def _append(self, node: onnx.NodeProto) -> str:
        # ONNX Runtime 1.18 fuses slices into nodes named after the first one, and refuses two of the same name.
        node.name = str(node.output[0])
        self._nodes.append(node)
        return str(node.output[0])


def half_up(body: Body, x: str) -> str:
    """floor(x + 1/2), exact for fp32 x in [0, 2^22).

    The sum is rounded. With 1/2 it would be one for the number below 1/2; with the number below 1/2 it is right there,
    and everywhere else the rounding makes up for the difference.
    """
    return body.op("Floor", body.op("Add", x, body.fp32(BELOW_HALF)))
