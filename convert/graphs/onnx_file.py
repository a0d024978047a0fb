"""Opening an ONNX file from anywhere: nothing of it is run, read outside its folder, or believed before it is checked.

A graph of `hfq export` needs little of what ONNX allows. What it does not need is refused: subgraphs, sparse tensors,
training, foreign domains, functions that call functions, weights beyond the folder or behind a link.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, numpy_helper
from torch import Tensor

from hfq.schema.documents import read_bytes
from hfq.schema.errors import (
    ExternalDataError,
    GraphMetadataError,
    GraphVersionError,
    MalformedGraphError,
    MissingBodyError,
    UnknownOpError,
)

from .domain import DOMAIN, OPS, VERSION

__all__ = ["MAX_GRAPH_BYTES", "OnnxFile", "open_onnx"]

MAX_GRAPH_BYTES: Final = (1 << 31) - 1
"""A protobuf message ends there; larger weights lie beside the graph."""

_IR: Final = range(9, 12)
_OPSETS: Final = range(18, 24)
_STANDARD: Final = ("", "ai.onnx")
_MAX_NODES: Final = 200_000
_MAX_METADATA: Final = 64
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_DTYPES: Final[dict[int, tuple[torch.dtype, str]]] = {
    TensorProto.FLOAT: (torch.float32, "float_data"),
    TensorProto.BFLOAT16: (torch.bfloat16, "int32_data"),
    TensorProto.UINT8: (torch.uint8, "int32_data"),
    TensorProto.INT32: (torch.int32, "int32_data"),
    TensorProto.INT64: (torch.int64, "int64_data"),
    TensorProto.BOOL: (torch.bool, "int32_data"),
}
"""Tensor types of exported graphs: in torch, and where a tensor without raw bytes keeps its numbers."""

_NESTED: Final = (
    AttributeProto.GRAPH,
    AttributeProto.GRAPHS,
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.SPARSE_TENSORS,
    AttributeProto.TENSORS,
    AttributeProto.TYPE_PROTO,
    AttributeProto.TYPE_PROTOS,
)


@dataclass(frozen=True)
class _Span:
    """Bytes of a file beside the graph."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class OnnxFile:
    """A graph that was opened and checked.

    Attributes:
        path: of the .onnx file.
        model: the proto; weights beside the file are not read into it.
        size_bytes: of the .onnx file.
        data_bytes: of the files of weights beside it.
        opset, ir_version: of the file.
        metadata: key -> value, as they stand there.
        initializers: name -> proto.
    """

    path: Path
    model: onnx.ModelProto
    size_bytes: int
    data_bytes: int
    opset: int
    ir_version: int
    metadata: Mapping[str, str]
    initializers: Mapping[str, TensorProto]
    _spans: Mapping[str, _Span]

    @property
    def is_external(self) -> bool:
        """Whether weights lie beside the file."""
        return bool(self._spans)

    def outline(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of an initializer, without its values."""
        tensor = self.initializers[name]
        return _DTYPES[tensor.data_type][0], tuple(tensor.dims)

    def read(self, name: str) -> Tensor:
        """The values of an initializer, read anew.

        Raises:
            ExternalDataError: the file beside the graph was changed meanwhile.
        """
        tensor = self.initializers[name]
        dtype, shape = self.outline(name)
        if name in self._spans:
            data = _pread(self._spans[name], f"{self.path}: {name}")
        elif tensor.HasField("raw_data"):
            data = bytearray(tensor.raw_data)
        else:
            data = bytearray(numpy_helper.to_array(tensor).tobytes())
        return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)


def open_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Open an ONNX graph that may be hostile.

    Raises:
        MissingPathError, UnreadableFileError, TooLargeError
        MalformedGraphError: not a protobuf, refused by `onnx.checker`, or with parts that no export makes.
        GraphVersionError: an IR version or opset that is not read.
        ExternalDataError: weights that are not regular files in the folder of the graph, or not whole.
        UnknownOpError, MissingBodyError: a node of a foreign domain, or one of ours without its function.
        GraphMetadataError: a key twice, or without end.
    """
    location = Path(path)
    data = read_bytes(location, MAX_GRAPH_BYTES)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise MalformedGraphError("not an ONNX file, or a truncated one", where=location) from None
    size_bytes = len(data)
    del data
    opset = _check_versions(model, location)
    _check_parts(model, location)
    initializers: dict[str, TensorProto] = {}
    spans: dict[str, _Span] = {}
    files: dict[Path, int] = {}
    for tensor in model.graph.initializer:
        where = f"{location}: {tensor.name}"
        if not tensor.name or tensor.name in initializers:
            raise MalformedGraphError("an initializer without a name of its own", where=where)
        initializers[tensor.name] = tensor
        size = _size_of(tensor, where)
        if tensor.data_location == TensorProto.EXTERNAL:
            spans[tensor.name] = _span(tensor, location, size, files, where)
        else:
            _check_embedded(tensor, size, where)
    for tensor in _attribute_tensors(model):
        where = f"{location}: constant {tensor.name}"
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ExternalDataError("a constant of a node outside the file", where=where)
        _check_embedded(tensor, _size_of(tensor, where), where)
    metadata = _metadata(model, location)
    _run_checker(model, location, bool(spans))
    return OnnxFile(
        location, model, size_bytes, sum(files.values()), opset, model.ir_version, metadata, initializers, spans
    )


def _check_versions(model: onnx.ModelProto, path: Path) -> int:
    if model.ir_version not in _IR:
        raise GraphVersionError(
            "an ONNX IR version that is not read",
            where=path,
            expected=f"{_IR[0]} to {_IR[-1]}",
            found=model.ir_version if model.HasField("ir_version") else "none: is this an ONNX file?",
        )
    found: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain in _STANDARD else entry.domain
        if domain in found or domain not in ("", DOMAIN):
            raise GraphVersionError("a domain that no export imports, or twice", where=path, found=entry.domain)
        found[domain] = entry.version
    opset = found.get("", 0)
    if opset not in _OPSETS or found.get(DOMAIN, VERSION) != VERSION:
        raise GraphVersionError(
            "an opset that is not read",
            where=path,
            expected=f"{_OPSETS[0]} to {_OPSETS[-1]}, and version {VERSION} of {DOMAIN}",
            found=f"{opset}, and {found.get(DOMAIN, 'none')}",
        )
    return opset


def _check_parts(model: onnx.ModelProto, path: Path) -> None:
    """Nodes and functions, before anything looks at tensors."""
    if model.training_info or model.graph.sparse_initializer or model.graph.quantization_annotation:
        raise MalformedGraphError("a part that no export makes", where=path, found="training or sparse tensors")
    if sum(len(function.node) for function in model.functions) + len(model.graph.node) > _MAX_NODES:
        raise MalformedGraphError("more nodes than any export makes", where=path, expected=f"at most {_MAX_NODES}")
    bodies: set[str] = set()
    for function in model.functions:
        if function.domain != DOMAIN or function.name not in OPS or function.name in bodies:
            name = f"{function.domain}::{function.name}"
            raise UnknownOpError("a function that no export makes", where=path, expected=DOMAIN, found=name)
        bodies.add(function.name)
        for node in function.node:
            if node.domain not in _STANDARD:
                found = f"{node.domain}::{node.op_type}"
                raise UnknownOpError("a function of other than standard ops", where=function.name, found=found)
            _check_attributes(node, f"{path}: {function.name}")
    for node in model.graph.node:
        where = f"{path}: {node.name}"
        if node.domain not in (*_STANDARD, DOMAIN) or (node.domain == DOMAIN and node.op_type not in OPS):
            expected, found = f"standard ops and {DOMAIN}", f"{node.domain}::{node.op_type}"
            raise UnknownOpError("an op that no export uses", where=where, expected=expected, found=found)
        if node.domain == DOMAIN and node.op_type not in bodies:
            raise MissingBodyError("an op without its function", where=where, found=node.op_type)
        _check_attributes(node, where)


def _check_attributes(node: onnx.NodeProto, where: str) -> None:
    for attribute in node.attribute:
        if attribute.type in _NESTED:
            raise MalformedGraphError("an attribute that no export makes", where=where, found=attribute.name)


def _attribute_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    functions: Iterable[Any] = model.functions
    for node in (*model.graph.node, *(node for function in functions for node in function.node)):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _size_of(tensor: TensorProto, where: str) -> int:
    """Bytes that a tensor's dimensions ask for."""
    if tensor.data_type not in _DTYPES:
        raise MalformedGraphError("a tensor type that no export makes", where=where, found=tensor.data_type)
    if any(extent < 0 for extent in tensor.dims) or tensor.HasField("segment"):
        raise MalformedGraphError("dimensions that no tensor has", where=where, found=list(tensor.dims)[:8])
    size: int = math.prod(tensor.dims) * _DTYPES[tensor.data_type][0].itemsize
    return size


def _check_embedded(tensor: TensorProto, size: int, where: str) -> None:
    if tensor.external_data:
        raise ExternalDataError("values inside the file and outside of it", where=where)
    dtype, field = _DTYPES[tensor.data_type]
    raw = tensor.HasField("raw_data")
    found = len(tensor.raw_data) if raw else len(getattr(tensor, field)) * dtype.itemsize
    if found != size:
        what = "not the values that the dimensions ask for"
        raise MalformedGraphError(what, where=where, expected=f"{size} bytes", found=f"{found} bytes")


def _span(tensor: TensorProto, path: Path, size: int, files: dict[Path, int], where: str) -> _Span:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    known = {"location", "offset", "length"}
    if len(entries) != len(tensor.external_data) or not {"location"} <= set(entries) <= known:
        raise ExternalDataError("not a place of weights", where=where, expected=sorted(known), found=sorted(entries))
    name = entries["location"]
    # One plain name: no folder, no drive, no way up, nothing that a terminal or C would cut short.
    if name in ("", ".", "..") or any(ch in "/\\:" or not ch.isprintable() for ch in name):
        expected = "the name of a file in the folder of the graph"
        raise ExternalDataError("weights outside the folder of the graph", where=where, expected=expected, found=name)
    if tensor.HasField("raw_data"):
        raise ExternalDataError("values inside the file and outside of it", where=where)
    numbers = [entries.get("offset", "0"), entries.get("length", str(size))]
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        raise ExternalDataError("not an offset and a length", where=where, found=", ".join(numbers))
    offset, length = (int(number) for number in numbers)
    beside = path.parent / name
    if beside not in files:
        files[beside] = _regular_size(beside, where)
    if length != size or offset + length > files[beside]:
        raise ExternalDataError(
            "weights that are not whole",
            where=where,
            expected=f"{size} bytes within {files[beside]} of {name}",
            found=f"{length} bytes from {offset} on",
        )
    return _Span(beside, offset, length)


def _regular_size(path: Path, where: str) -> int:
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        todo = "move a graph and its file of weights together"
        raise ExternalDataError("the file of weights is not there", where=where, expected=path, todo=todo) from None
    if not stat.S_ISREG(status.st_mode):
        raise ExternalDataError("the file of weights is no regular file", where=where, found=path)
    return status.st_size


def _pread(span: _Span, where: str) -> bytearray:
    try:
        descriptor = os.open(span.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            file.seek(span.offset)
            data = bytearray(file.read(span.length))
    except OSError as error:
        raise ExternalDataError("weights cannot be read", where=where, found=error.strerror) from None
    if len(data) != span.length:
        raise ExternalDataError("weights that are not whole", where=where, expected=span.length, found=len(data))
    return data


def _run_checker(model: onnx.ModelProto, path: Path, external: bool) -> None:
    # Whatever a made-up graph makes the checker raise is a finding about the graph.
    try:
        onnx.checker.check_model(str(path) if external else model, full_check=True)
    except Exception as error:
        raise MalformedGraphError("refused by onnx.checker", where=path, found=error) from None


def _metadata(model: onnx.ModelProto, path: Path) -> dict[str, str]:
    found = {entry.key: entry.value for entry in model.metadata_props}
    if len(found) != len(model.metadata_props) or len(found) > _MAX_METADATA:
        raise GraphMetadataError("a key twice, or keys without end", where=path, found=len(model.metadata_props))
    return found
