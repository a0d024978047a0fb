"""The third level: initializers and attributes are the delta's, and the file's own bodies decode the weights right."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
import torch
from torch import Tensor

from hfq.convert.apply import base_mismatch
from hfq.convert.checkpoint import Checkpoint
from hfq.convert.delta import Delta
from hfq.convert.progress import Progress
from hfq.convert.tensor_bytes import tensor_bytes
from hfq.formats.hif4 import Hif4Tensor

from .domain import DOMAIN
from .functions import attributes_of
from .levels import Level
from .onnx_file import OnnxFile
from .origin import Origin
from .payload import payload
from .running import RunningOp, differing
from .site_nodes import SiteNodes
from .site_reference import ReferenceSite

__all__ = ["check_payload"]

_CONSTANT_ELEMENTS: Final = 1 << 15
"""Constants that the exporter folds are shapes, scalars, and vectors as long as a model is wide; weights are longer."""

_DECODED_ELEMENTS: Final = 1 << 24


def check_payload(
    file: OnnxFile,
    origin: Origin,
    sites: Mapping[str, SiteNodes],
    delta: Delta,
    base: Checkpoint,
    threads: int,
    progress: Progress,
) -> Level:
    """Compare all tensors of the graph with what the delta makes of its base, and decode its packed weights.

    Raises:
        WrongBaseError, WrongRoleError, DigestMismatchError: the base itself is not the delta's.
        GraphRunError
    """
    level = Level("payload", {"initializers": 0, "bytes": 0, "constants": 0, "decoded": 0, "decoded_weights": 0})
    users = _users(file)
    progress.start("payload", len(file.initializers) + len(sites), "tensors")
    expected = set()
    try:
        for name, tensor in payload(delta, base, origin.role, origin.scope):
            _check_base(delta, base, origin.role, name)
            expected.add(name)
            _compare(file, name, tensor, users.get(name, name), level)
            progress.advance()
        _check_rest(file, expected, users, level)
        for site, nodes in sites.items():
            reference = ReferenceSite(delta, base, origin.role, site, origin.bin)
            _check_attributes(nodes, reference, origin, level)
            if nodes.decoder is not None and not level.failures:
                _decode(file, nodes.decoder, reference, threads, level)
            progress.advance()
    finally:
        progress.finish()
    return level


def _users(file: OnnxFile) -> dict[str, str]:
    """Initializer -> what to call it in a message: the first node that reads it, and its own name."""
    found: dict[str, str] = {}
    for node in file.model.graph.node:
        for name in node.input:
            if name in file.initializers:
                found.setdefault(name, f"{node.name}: {name}")
    return found


def _check_base(delta: Delta, base: Checkpoint, role: str, name: str) -> None:
    """What is kept is the graph's word and the base's; the delta's digest says whether the base is the right one."""
    named = delta.base_tensors(role).get(name)
    if named is None:
        return
    found = hashlib.sha256(tensor_bytes(base.experts[role].read_bf16(name))).hexdigest()
    if found != named["bf16"]:
        raise base_mismatch(delta, role, name, found)


def _compare(file: OnnxFile, name: str, expected: Tensor, where: str, level: Level) -> None:
    if name not in file.initializers:
        level.fail(name, "a tensor of the delta's model that the graph lacks")
        return
    level.figures["initializers"] += 1
    level.figures["bytes"] += expected.numel() * expected.element_size()
    dtype, shape = file.outline(name)
    if (dtype, shape) != (expected.dtype, tuple(expected.shape)):
        level.fail(where, "another type or shape", _outline(expected.dtype, expected.shape), _outline(dtype, shape))
        return
    wanted = np.frombuffer(tensor_bytes(expected), np.uint8)
    found = np.frombuffer(tensor_bytes(file.read(name)), np.uint8)
    size = expected.element_size()
    wrong = (wanted != found).reshape(-1, size).any(axis=1)
    if wrong.any():
        first = int(wrong.argmax())
        place = [int(index) for index in np.unravel_index(first, expected.shape)] if expected.ndim else []
        bits = [f"0x{data[first * size : (first + 1) * size][::-1].tobytes().hex()}" for data in (wanted, found)]
        what = f"{int(wrong.sum())} of {wrong.size} elements differ, the first at {place}"
        level.fail(where, what, *bits)


def _outline(dtype: torch.dtype, shape: Any) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _check_rest(file: OnnxFile, expected: set[str], users: Mapping[str, str], level: Level) -> None:
    """What the exporter adds are constants of the computation, too few for a weight."""
    for name in file.initializers:
        if name in expected:
            continue
        level.figures["constants"] += 1
        _, shape = file.outline(name)
        if int(np.prod(shape, dtype=object)) > _CONSTANT_ELEMENTS or name.startswith(("blocks.", "vace_blocks.")):
            level.fail(users.get(name, name), "a tensor that the delta's model does not have", found=list(shape))


def _check_attributes(nodes: SiteNodes, reference: ReferenceSite, origin: Origin, level: Level) -> None:
    """Profile, headroom of the bin, scale and saturation of the quantizer; columns of the weight."""
    headrooms = reference.headrooms
    if origin.bin is None and len(set(headrooms)) > 1:
        expected, found = "one graph per timestep bin", "one for all"
        level.fail(nodes.quantizer.name, "the delta's headrooms differ from bin to bin", expected, found)
        return
    if not nodes.is_open:
        return
    activation = reference.linear.activation
    if activation["format"] == "hif4":
        headroom = float(np.float32(headrooms[(origin.bin or 0) if len(headrooms) > 1 else 0]))
        _same(nodes.quantizer, DOMAIN, "HiFloat4QDQ", {"profile": activation["profile"], "headroom": headroom}, level)
    elif activation["format"] == "hif8":
        options = {"scale": activation["scale"], "saturate": int(activation["saturate"])}
        _same(nodes.quantizer, DOMAIN, "HiFloat8QDQ", options, level)
    else:
        _same(nodes.quantizer, "", "Cast", {"to": onnx.TensorProto.FLOAT}, level)
    assert nodes.decoder is not None
    weight = reference.restored.weight
    if isinstance(weight, Hif4Tensor):
        _same(nodes.decoder, DOMAIN, "HiFloat4Dequantize", {"columns": int(weight.shape[1])}, level)
    else:
        _same(nodes.decoder, DOMAIN, "HiFloat8Dequantize", {}, level)


def _same(node: onnx.NodeProto, domain: str, op_type: str, attributes: dict[str, Any], level: Level) -> None:
    if (node.domain, node.op_type) != (domain, op_type):
        level.fail(node.name, "another op than the delta's format", op_type, node.op_type)
    elif (found := attributes_of(node)) != attributes:
        level.fail(node.name, "other attributes than the delta's", attributes, found)


def _decode(file: OnnxFile, node: onnx.NodeProto, reference: ReferenceSite, threads: int, level: Level) -> None:
    """The node's body on the file's codes, some rows at a time: a row's values depend on that row alone."""
    codes, scale = (file.read(name) for name in node.input)
    expected = reference.restored.weight.dequantize(torch.float32)
    running = RunningOp(file, node, threads)
    rows = max(1, _DECODED_ELEMENTS // max(1, expected.shape[1]))
    for start in range(0, expected.shape[0], rows):
        part = slice(start, start + rows)
        found = running.run(codes[part], scale[part] if scale.ndim else scale)
        wrong = differing(found, expected[part])
        if wrong:
            what = "the body decodes the packed weight to other values"
            level.fail(node.name, what, "0 elements that differ", f"{wrong} of {expected[part].numel()}")
            return
    level.figures["decoded"] += 1
    level.figures["decoded_weights"] += expected.numel()
