"""The function bodies of a file, run on their own and compared with this package's arithmetic bit for bit.

A whole model says little about its ops: an error of one ulp moves codes and drowns in the next layer. Here each body
gets the adversarial classes and must return the same bits, -0 included; NaN equals NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from hfq.convert.hadamard import rotate, rotation_signs
from hfq.formats import hif4, hif8
from hfq.formats.hif4 import Hif4Tensor
from hfq.formats.hif4_spec import GROUP
from hfq.formats.hif8 import Hif8Tensor
from hfq.schema.errors import MissingBodyError

from .adversarial import activation_classes, hif8_weight_classes, weight_classes
from .domain import BLOCK_HADAMARD, DOMAIN, HIF4_DEQUANTIZE, HIF4_QDQ, HIF8_DEQUANTIZE, HIF8_QDQ, VERSION
from .functions import attributes_of, check_attributes

__all__ = ["OpClassResult", "check_functions", "reference_evaluator_check"]

_WIDEST_BLOCK: Final = max(BLOCK_HADAMARD)
_SAMPLE_ROWS: Final = 24

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Array]


@dataclasses.dataclass(frozen=True)
class OpClassResult:
    """One op with one set of attributes on one class of inputs."""

    op: str
    attributes: Mapping[str, Any]
    elements_class: str
    elements: int
    mismatches: int
    first: str | None  # the first mismatch, or why the body gave no result; then every element counts as one


@dataclasses.dataclass(frozen=True)
class _Case:
    """Inputs of one op by name, what it must return, and in words what element i of that comes from."""

    elements_class: str
    feeds: Mapping[str, Array]
    expected: npt.NDArray[np.float32]
    source: Callable[[int], str]


def check_functions(
    functions: Sequence[onnx.FunctionProto],
    nodes: Sequence[onnx.NodeProto],
    opset: int,
    ir_version: int,
    *,
    threads: int = 1,
) -> list[OpClassResult]:
    """Run bodies in ONNX Runtime on the CPU, once for each op and set of attributes among `nodes`, over every class.

    Args:
        functions: as they stand in the file; bodies that no node calls are not run.
        nodes: of the file; those of other domains are passed over.
        opset, ir_version: of the file.
        threads: of ONNX Runtime within an op.

    Returns:
        One result per op, attributes and class, in the order of the nodes. A body that fails to load or to run is a
        mismatch in every element.

    Raises:
        UnknownOpError, OpAttributeError, UnknownProfileError, UnknownOptionError, InvalidHeadroomError: a node that
            no reference can be computed for.
        MissingBodyError: an op without a body among `functions`.
    """

    def session(model: onnx.ModelProto) -> Run:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # a failure becomes a result, not a line on stderr
        running = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda feeds: np.asarray(running.run(None, dict(feeds))[0])

    return _check(functions, nodes, opset, ir_version, session, rows=None)


def reference_evaluator_check(
    functions: Sequence[onnx.FunctionProto], nodes: Sequence[onnx.NodeProto], opset: int, ir_version: int
) -> list[OpClassResult]:
    """As `check_functions` in `onnx.reference.ReferenceEvaluator`, on the last rows of every class.

    A second runtime, written in numpy: agreement of both says that the body does not lean on one of them.
    """

    def session(model: onnx.ModelProto) -> Run:
        evaluator = ReferenceEvaluator(model)

        def run(feeds: Mapping[str, Array]) -> Array:
            with np.errstate(all="ignore"):
                outputs: Any = evaluator.run(None, dict(feeds))
            return np.asarray(outputs[0])

        return run

    return _check(functions, nodes, opset, ir_version, session, rows=_SAMPLE_ROWS)


def _check(
    functions: Sequence[onnx.FunctionProto],
    nodes: Sequence[onnx.NodeProto],
    opset: int,
    ir_version: int,
    session: Callable[[onnx.ModelProto], Run],
    rows: int | None,
) -> list[OpClassResult]:
    bodies = {function.name: function for function in functions if function.domain == DOMAIN}
    results: list[OpClassResult] = []
    seen: list[tuple[str, dict[str, Any]]] = []
    for node in nodes:
        call = (node.op_type, attributes_of(node))
        if node.domain != DOMAIN or call in seen:
            continue
        seen.append(call)
        check_attributes(*call)
        if node.op_type not in bodies:
            raise MissingBodyError(f"no body for {node.op_type}", where=node.name, expected="a function in the file")
        run: Run | None = None
        for case in _cases(*call, rows):
            found: Array | str
            # Whatever a body from a file does wrong is a finding about the file.
            try:
                run = run or session(_model(*call, bodies[node.op_type], case, opset, ir_version))
                found = run(case.feeds)
            except Exception as error:
                found = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            results.append(_compared(*call, case, found))
    return results


def _model(
    op: str, attributes: Mapping[str, Any], body: onnx.FunctionProto, case: _Case, opset: int, ir_version: int
) -> onnx.ModelProto:
    """The op alone, its inputs without shapes."""
    node = helper.make_node(op, list(case.feeds), ["y"], domain=DOMAIN, **attributes)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in case.feeds.items()
    ]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    return helper.make_model(
        helper.make_graph([node], "op", inputs, [output]),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=ir_version,
        functions=[body],
    )


def _compared(op: str, attributes: Mapping[str, Any], case: _Case, found: Array | str) -> OpClassResult:
    expected = case.expected
    elements = expected.size
    if not isinstance(found, str) and (found.shape != expected.shape or found.dtype != np.float32):
        found = f"expected float32 {list(expected.shape)}, found {found.dtype} {list(found.shape)}"
    if isinstance(found, str):
        return OpClassResult(op, dict(attributes), case.elements_class, elements, elements, found)
    left, right = expected.ravel(), np.ascontiguousarray(found).ravel()
    wrong = (_bits(left) != _bits(right)) & ~(np.isnan(left) & np.isnan(right))
    first = None
    if wrong.any():
        i = int(np.argmax(wrong))
        first = (
            f"element {i}: {case.source(i)}, expected 0x{_bits(left)[i]:08x} ({left[i]:.9g}), "
            f"found 0x{_bits(right)[i]:08x} ({right[i]:.9g})"
        )
    return OpClassResult(op, dict(attributes), case.elements_class, elements, int(wrong.sum()), first)


def _cases(op: str, attributes: Mapping[str, Any], rows: int | None) -> Iterator[_Case]:
    last = slice(None) if rows is None else slice(-rows, None)
    if op == HIF4_DEQUANTIZE:
        return _hif4_decoding(int(attributes["columns"]), last)
    if op == HIF8_DEQUANTIZE:
        return _hif8_decoding(last)
    if op in BLOCK_HADAMARD.values():
        return _rotations(next(block for block, name in BLOCK_HADAMARD.items() if name == op), last)
    return _activations(op, attributes, last)


def _activations(op: str, attributes: Mapping[str, Any], last: slice) -> Iterator[_Case]:
    for name, values in activation_classes().items():
        x = values[last]
        if op == HIF4_QDQ:
            expected = hif4.qdq(x, profile=attributes["profile"], headroom=attributes["headroom"])
        else:
            assert op == HIF8_QDQ
            expected = hif8.qdq(x, scale=attributes["scale"], saturate=bool(attributes["saturate"]))
        yield _Case(name, {"x": x.numpy()}, expected.numpy(), _input(x.numpy()))


def _rotations(block: int, last: slice) -> Iterator[_Case]:
    signs = rotation_signs(0, _WIDEST_BLOCK)
    for name, values in activation_classes().items():
        whole = values.numel() // _WIDEST_BLOCK * _WIDEST_BLOCK
        x = values.reshape(-1)[:whole].view(-1, _WIDEST_BLOCK)[last]
        yield _Case(name, {"x": x.numpy(), "signs": signs.numpy()}, rotate(x, signs, block).numpy(), _input(x.numpy()))


def _hif4_decoding(columns: int, last: slice) -> Iterator[_Case]:
    per_row = -(-columns // GROUP)
    for name, (codes, words) in weight_classes().items():
        groups = len(words[last]) if last.start else len(words)
        rows = -(-groups // per_row)
        place = torch.arange(rows * per_row) % len(words)  # the last row starts again at the first group
        row_codes = codes[place].view(rows, -1)
        row_words = words.view(torch.int32)[place].view(rows, per_row)
        weight = Hif4Tensor(row_codes, row_words.view(torch.uint32), (rows, columns), "ref")
        feeds = {
            "codes": row_codes.numpy(),
            "scale": row_words.numpy().astype("<i4", copy=False).view(np.uint8).reshape(rows, per_row, 4),
        }
        yield _Case(name, feeds, weight.dequantize(torch.float32).numpy(), _hif4_code(weight))


def _hif8_decoding(last: slice) -> Iterator[_Case]:
    for name, (all_codes, all_scales) in hif8_weight_classes().items():
        codes, scale = all_codes[last], all_scales[last] if all_scales.ndim else all_scales
        expected = Hif8Tensor(codes, scale, "row" if scale.ndim else "tensor").dequantize(torch.float32)
        yield _Case(name, {"codes": codes.numpy(), "scale": scale.numpy()}, expected.numpy(), _hif8_code(codes, scale))


def _hif4_code(weight: Hif4Tensor) -> Callable[[int], str]:
    codes, words = hif4.unpack_codes(weight.codes).numpy(), weight.scale.numpy()

    def source(i: int) -> str:
        row, column = divmod(i, weight.shape[1])
        return f"code {codes[row, column]:x} under scale word 0x{words[row, column // GROUP]:08x}"

    return source


def _hif8_code(codes: Tensor, scale: Tensor) -> Callable[[int], str]:
    def source(i: int) -> str:
        row, column = divmod(i, codes.shape[1])
        return f"code {int(codes[row, column]):02x} times {float(scale[row, 0] if scale.ndim else scale):.9g}"

    return source


def _input(x: Array) -> Callable[[int], str]:
    """An element's own input; of a group or block the others matter too, and its place names them."""
    return lambda i: f"input 0x{_bits(x.ravel())[i]:08x} ({x.ravel()[i]:.9g})"


def _bits(values: Array) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)
