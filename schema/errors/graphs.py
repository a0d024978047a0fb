"""Failures of ONNX graphs."""

from __future__ import annotations

from .general import HfqError, MalformedFileError

__all__ = [
    "ExternalDataError",
    "GraphMetadataError",
    "GraphNumericsError",
    "GraphOriginError",
    "GraphPayloadError",
    "GraphRunError",
    "GraphVersionError",
    "MalformedGraphError",
    "MissingBodyError",
    "MixedBodiesError",
    "OpAttributeError",
    "UnknownOpError",
]


class UnknownOpError(MalformedFileError):
    """A node of an ONNX graph names an op that its domain does not have."""

    code = "unknown-op"


class OpAttributeError(MalformedFileError):
    """A node of an ONNX graph lacks an attribute of its op, or has one that is unknown or out of range."""

    code = "op-attribute"


class MissingBodyError(MalformedFileError):
    """An ONNX file calls an op and does not carry its function body."""

    code = "missing-body"


class MixedBodiesError(MalformedFileError):
    """Nodes of one op in one ONNX model need different function bodies."""

    code = "mixed-bodies"


class MalformedGraphError(MalformedFileError):
    """An ONNX file that is no graph as `hfq export` makes them: no protobuf, refused by the checker, odd parts."""

    code = "malformed-graph"


class ExternalDataError(MalformedFileError):
    """Weights of an ONNX graph that lie outside its folder, behind a link, or not where the graph says."""

    code = "external-data"


class GraphVersionError(MalformedFileError):
    """An ONNX graph of an IR or opset version that this release does not read."""

    code = "graph-version"


class GraphMetadataError(MalformedFileError):
    """An ONNX graph that does not say, or says in a wrong form, which delta it was made from."""

    code = "graph-metadata"


class GraphRunError(MalformedFileError):
    """An ONNX graph that a runtime does not load or run."""

    code = "graph-run"


class GraphOriginError(HfqError):
    """An ONNX graph of another delta, base, expert or part of a model."""

    code = "graph-origin"
    exit_code = 3


class GraphPayloadError(HfqError):
    """An ONNX graph whose weights or attributes are not the delta's."""

    code = "graph-payload"
    exit_code = 3


class GraphNumericsError(HfqError):
    """An ONNX graph that computes something else than the delta's model."""

    code = "graph-numerics"
    exit_code = 3
