"""Tracing a part of a transformer to an ONNX graph without its weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from hfq.convert.architecture import Architecture
from hfq.convert.delta import Delta
from hfq.convert.site_ops import read_ops
from hfq.schema.errors import MissingDependencyError

from .graph_attention import GraphAttention
from .graph_linear import GraphLinear
from .graph_modules import empty_graph, linears_of, tensor_names
from .scope import TEXT_WITH_IMAGE, Axis, Scope, graph_inputs
from .torch_ops import torch_ops

__all__ = ["Traced", "require_export_extra", "trace"]

_SIZES: Final = {"batch": 2, "tokens": 24, "text": 10, "frames": 3, "height": 4, "width": 5, "image_tokens": 7}


def require_export_extra() -> None:
    """Check that the packages which export a graph are installed.

    Raises:
        MissingDependencyError
    """
    try:
        import diffusers  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "exporting a graph needs optional packages", found=error, todo="install them: pip install 'hfq[export]'"
        ) from None


@dataclass
class Traced:
    """A graph as torch's exporter makes it, not optimized.

    Attributes:
        model: an onnx_ir model; initializers that stand for weights have no value.
        initializers: name in the graph -> name in the file, of those.
        modules: name of a module inside the part -> original Wan name, of those that hold weights.
    """

    model: Any
    initializers: dict[str, str]
    modules: dict[str, str]


def trace(delta: Delta, architecture: Architecture, role: str, scope: Scope, opset: int) -> Traced:
    """Trace a part with placeholders for the quantization ops.

    Raises:
        UsageError, UnsupportedModelError, MissingDependencyError
    """
    require_export_extra()
    from torch._subclasses import FakeTensorMode

    module = empty_graph(architecture, scope)
    names = {local: canonical for canonical, local in tensor_names(module, scope).items()}
    modules = {local.rpartition(".")[0]: canonical.rpartition(".")[0] for local, canonical in names.items()}
    places = linears_of(module, scope, delta.quantized(role))
    mode = FakeTensorMode()
    for site, local in places.items():
        for leaf in ("weight", "bias"):
            del names[f"{local}.{leaf}"]
        linear = _graph_linear(delta, role, site, module.get_submodule(local), mode)
        names |= {f"{local}.{leaf}": f"{site}.{leaf}" for leaf, _ in linear.named_buffers()}
        _put(module, local, linear)
    _use_graph_attention(module)
    _make_fake(module, mode)
    names |= {name: name.removeprefix("part.") for name, _ in module.named_buffers() if name not in names}
    with mode:
        inputs, axes = _example(architecture, scope)
    with _quiet():
        program = torch.onnx.export(
            module,
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=axes,
            opset_version=opset,
            custom_translation_table=torch_ops().translations,
            input_names=list(inputs),
            output_names=["y"],
            optimize=False,  # it would read the values of weights, which are not there
            verbose=False,
        )
    assert program is not None
    return Traced(program.model, names, modules)


def _graph_linear(delta: Delta, role: str, site: str, linear: nn.Module, mode: Any) -> GraphLinear:
    assert isinstance(linear, nn.Linear)
    entry, sizes = delta.site(role, site), (linear.out_features, linear.in_features)
    ops = read_ops(entry["ops"], delta.state_outline(role, site), sizes, f"{role} {site}")
    with mode:
        return GraphLinear(site, sizes, ops, entry["weight"], torch_ops()).eval()


def _put(module: nn.Module, local: str, replacement: nn.Module) -> None:
    parent, _, leaf = local.rpartition(".")
    setattr(module.get_submodule(parent), leaf, replacement)


def _use_graph_attention(module: nn.Module) -> None:
    for part in module.modules():
        attention: Any = part
        if hasattr(part, "set_processor") and hasattr(part, "add_k_proj"):
            attention.set_processor(GraphAttention())


def _make_fake(module: nn.Module, mode: Any) -> None:
    """Give every parameter and buffer a float32 tensor without memory."""
    from torch._subclasses import FakeTensor

    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            with mode:
                empty = torch.empty(parameter.shape, dtype=torch.float32)
            part.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            if not isinstance(buffer, FakeTensor):
                part.register_buffer(name, mode.from_tensor(buffer))


def _example(architecture: Architecture, scope: Scope) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inputs to trace with, and their dynamic axes for torch."""
    sizes = dict(_SIZES)
    least: dict[str, int] = {}
    if architecture.image_dim is not None and scope.kind == "block":
        sizes["text"], least["text"] = TEXT_WITH_IMAGE + 9, TEXT_WITH_IMAGE + 1
    if scope.kind == "model":
        sizes["tokens"] = sizes["frames"] * sizes["height"] * sizes["width"]
    dims: dict[str, Any] = {}

    def dynamic(axis: Axis) -> Any:
        if scope.kind == "model" and axis.name == "tokens":
            return torch.export.Dim.DYNAMIC  # frames * height * width, which torch finds out itself
        dim = dims.setdefault(axis.name, torch.export.Dim(axis.name, min=least.get(axis.name)))
        return dim if axis.multiple == 1 else axis.multiple * dim

    inputs, axes = {}, {}
    for entry in graph_inputs(architecture, scope):
        inputs[entry.name] = torch.empty(entry.shape(sizes))
        axes[entry.name] = {place: dynamic(axis) for place, axis in enumerate(entry.axes) if isinstance(axis, Axis)}
    return inputs, axes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's talk about packages that it does not find and names that it does not use helps nobody."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
