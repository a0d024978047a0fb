"""Running graphs in ONNX Runtime: with inner values exposed, or one op alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper
from torch import Tensor

from hfq.schema.errors import GraphRunError

from .domain import DOMAIN, VERSION
from .onnx_file import OnnxFile

__all__ = ["PROVIDER", "RunningGraph", "RunningOp", "differing"]

PROVIDER: Final = "CPUExecutionProvider"
_FOLDED_BYTES: Final = 200_000_000
"""Above this many bytes of float32 weights constant folding is left out: while a graph loads it holds every step of
every weight's decoding, 8.6 times the weights, 12 GB for a block of a 14B model."""

_FOLDER_KEY: Final = "session.model_external_initializers_file_folder_path"


def _options(threads: int, fold: bool) -> tuple[Any, dict[str, Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.use_deterministic_compute = True
    # Planning which buffers to share takes time quadratic in the nodes: 23 s against 2 s for 80 linears, with the same
    # peak of memory, since what is freed goes back to the arena either way.
    options.enable_mem_reuse = False
    options.log_severity_level = 4  # failures come as exceptions
    return options, {} if fold else {"disabled_optimizers": ["ConstantFolding"]}


def _session(model: onnx.ModelProto, where: object, threads: int, fold: bool, folder: Path | None) -> Any:
    import onnxruntime as ort

    options, more = _options(threads, fold)
    if folder is not None:
        options.add_session_config_entry(_FOLDER_KEY, str(folder.resolve()))
    # ONNX Runtime has an exception class for each of its status codes, none of them public.
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER], **more)
    except Exception as error:
        raise GraphRunError("ONNX Runtime does not load the graph", where=where, found=error) from None


def _run(session: Any, where: object, feeds: Mapping[str, npt.NDArray[Any]], names: Sequence[str] | None) -> list[Any]:
    try:
        return list(session.run(names, dict(feeds)))
    except Exception as error:
        raise GraphRunError("ONNX Runtime does not run the graph", where=where, found=error) from None


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).view(array.shape)


class RunningGraph:
    """A graph in ONNX Runtime on the CPU.

    Args:
        file: the graph.
        quantized_weights: how many weights it holds packed.
        threads: of ONNX Runtime within an op.
    """

    def __init__(self, file: OnnxFile, quantized_weights: int, threads: int) -> None:
        self.file, self._threads = file, threads
        self.folds = 4 * quantized_weights <= _FOLDED_BYTES
        self._exposed: tuple[str, ...] = ()
        self._session: Any = None

    def run(self, inputs: Mapping[str, Tensor], exposed: Sequence[str] = ()) -> dict[str, Tensor]:
        """Run it on float32 inputs by name.

        Args:
            exposed: inner values to return beside the output; inputs of the graph are returned as they are.

        Returns:
            name -> value, `y` among them when nothing is exposed.

        Raises:
            GraphRunError
        """
        wanted = tuple(dict.fromkeys(exposed))
        inner = tuple(name for name in wanted if name not in inputs)
        if self._session is None or inner != self._exposed:
            self._load(inner)
        feeds = {name: value.detach().contiguous().numpy() for name, value in inputs.items()}
        names = list(inner) if wanted else ["y"]
        found = dict(zip(names, _run(self._session, self.file.path, feeds, names), strict=True)) if names else {}
        values = {name: _tensor(value) for name, value in found.items()}
        return values | {name: inputs[name] for name in wanted if name in inputs}

    def close(self) -> None:
        """Give the session's memory back."""
        self._session = None

    def _load(self, inner: tuple[str, ...]) -> None:
        self._session = None  # two sessions at once would hold the weights twice
        graph = self.file.model.graph
        before = len(graph.output)
        known = {entry.name for entry in graph.output}
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in known)
        folder = self.file.path.parent if self.file.is_external else None
        try:
            self._session = _session(self.file.model, self.file.path, self._threads, self.folds, folder)
        finally:
            del graph.output[before:]
        self._exposed = inner


class RunningOp:
    """One node of our domain alone, with the body that its file gives it.

    Args:
        file: the graph.
        node: of it.
        threads: as above.
    """

    def __init__(self, file: OnnxFile, node: onnx.NodeProto, threads: int) -> None:
        self._where = node.name
        body = next(function for function in file.model.functions if function.name == node.op_type)
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        self._names = [f"x{index}" for index in range(len(node.input))]
        del alone.input[:], alone.output[:]
        alone.input.extend(self._names)
        alone.output.append("y")
        kinds = [file.initializers[name].data_type for name in node.input]
        inputs = [helper.make_tensor_value_info(*entry, None) for entry in zip(self._names, kinds, strict=True)]
        output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
        model = helper.make_model(
            helper.make_graph([alone], "op", inputs, [output]),
            opset_imports=[helper.make_opsetid("", file.opset), helper.make_opsetid(DOMAIN, VERSION)],
            ir_version=file.ir_version,
            functions=[body],
        )
        self._session = _session(model, self._where, threads, True, None)

    def run(self, *inputs: Tensor) -> Tensor:
        """The op's output.

        Raises:
            GraphRunError
        """
        feeds = {name: value.contiguous().numpy() for name, value in zip(self._names, inputs, strict=True)}
        return _tensor(_run(self._session, self._where, feeds, None)[0])


def differing(left: Tensor, right: Tensor) -> int:
    """How many elements of two float32 tensors differ in their bits; NaN equals NaN, another shape is all of them."""
    if left.shape != right.shape or left.dtype != torch.float32 or right.dtype != torch.float32:
        return max(left.numel(), right.numel(), 1)
    unequal = left.contiguous().view(torch.int32) != right.contiguous().view(torch.int32)
    return int((unequal & ~(left.isnan() & right.isnan())).sum())
