"""Hostile ONNX files: refused before anything of them runs, and without reading a byte outside their folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hfq.convert.graphs.domain import DOMAIN
from hfq.convert.graphs.functions import attach_functions
from hfq.convert.graphs.onnx_file import open_onnx
from hfq.schema.errors import (
    ExternalDataError,
    GraphMetadataError,
    GraphVersionError,
    HfqError,
    MalformedGraphError,
    MissingBodyError,
    UnknownOpError,
)

Change = Callable[[onnx.ModelProto], object]
SECRET = b"0123456789abcdef"


def honest() -> onnx.ModelProto:
    place = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    nodes = [
        helper.make_node("HiFloat4QDQ", ["x"], ["q"], "quantize", domain=DOMAIN, profile="ref", headroom=1.0),
        helper.make_node("Add", ["q", "w"], ["y"], "add"),
    ]
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "hfq", place[:1], place[1:], [weight]), opset_imports=imports, ir_version=9
    )
    attach_functions(model)
    return model


def saved(folder: Path, change: Change) -> Path:
    model = honest()
    change(model)
    inside = folder / "inside"
    inside.mkdir()
    (folder / "secret").write_bytes(SECRET)
    (inside / "weights").write_bytes(SECRET)
    os.symlink(folder / "secret", inside / "link")
    os.mkfifo(inside / "fifo")
    (inside / "graph.onnx").write_bytes(model.SerializeToString())
    return inside / "graph.onnx"


def external(location: str, *, offset: str = "0", length: str = "16", extra: str | None = None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        _point(model.graph.initializer[0], location, offset, length, extra)

    return change


def _point(tensor: TensorProto, location: str, offset: str, length: str, extra: str | None = None) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length), (extra, "1")):
        if key is not None:
            tensor.external_data.add(key=key, value=value)


def test_the_honest_twins_are_opened(tmp_path: Path) -> None:
    path = saved(tmp_path, external("weights"))
    assert open_onnx(path).read("w").numpy().tobytes() == SECRET


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/hostname", "a/../../secret", "..\\secret", "C:secret", "", ".", "..", "link", "fifo", "none",
     "weights\x00", "weights\n"],
)  # fmt: skip
def test_weights_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(ExternalDataError) as caught:
        open_onnx(saved(tmp_path, external(location)))
    assert caught.value.exit_code == 1
    assert "w" in str(caught.value.where)


@pytest.mark.parametrize(
    "change",
    [
        external("weights", offset="1"), external("weights", length="8"), external("weights", length="17"),
        external("weights", offset="-16"), external("weights", offset="9" * 40), external("weights", offset="0x0"),
        external("weights", extra="location"), external("weights", extra="checksum"),
    ],
)  # fmt: skip
def test_places_that_are_none_are_refused(change: Change, tmp_path: Path) -> None:
    with pytest.raises(ExternalDataError):
        open_onnx(saved(tmp_path, change))


def _constant_outside(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.arange(4, dtype=np.float32), "c")
    _point(tensor, "../secret", "0", "16")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], "constant", value=tensor))


def _body_outside(model: onnx.ModelProto) -> None:
    tensor = next(a.t for node in model.functions[0].node for a in node.attribute if a.HasField("t"))
    _point(tensor, "../secret", "0", "16")


@pytest.mark.parametrize("change", [_constant_outside, _body_outside])
def test_constants_of_nodes_and_bodies_stay_inside(change: Change, tmp_path: Path) -> None:
    with pytest.raises(ExternalDataError):
        open_onnx(saved(tmp_path, change))


def _dims(*dims: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain, model.graph.node[1].op_type = "com.microsoft", "Gelu"


def _unknown(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Shell"


def _bodiless(model: onnx.ModelProto) -> None:
    del model.functions[:]


def _recursive(model: onnx.ModelProto) -> None:
    model.functions[0].node.append(helper.make_node("HiFloat4QDQ", ["x"], ["z"], domain=DOMAIN))


def _foreign_function(model: onnx.ModelProto) -> None:
    model.functions[0].domain = ""


def _subgraph(model: onnx.ModelProto) -> None:
    """A branch that is right in itself, so that nothing but this package's rule refuses it."""
    branches = {}
    for name in ("then_branch", "else_branch"):
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])
        branches[name] = helper.make_graph([helper.make_node("Neg", ["q"], [name], name)], name, [], [result])
    condition = helper.make_node("Constant", [], ["c"], "c", value=numpy_helper.from_array(np.array(True)))
    chosen = helper.make_node("If", ["c"], ["chosen"], "if", **branches)
    model.graph.node.insert(1, chosen)
    model.graph.node.insert(1, condition)
    model.graph.node[3].input[0] = "chosen"
    onnx.checker.check_model(model, full_check=True)


def _hidden_bytes(model: onnx.ModelProto) -> None:
    """More bytes than elements: the checker only minds too few."""
    model.graph.initializer[0].raw_data += SECRET
    onnx.checker.check_model(model, full_check=True)


def _sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def _training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def _twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _text(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.STRING, [1], [b"x"]))


def _dangling(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nothing"


def _domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def _keys(model: onnx.ModelProto) -> None:
    for _ in range(2):
        model.metadata_props.add(key="hfq.delta", value="a" * 64)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_dims(1 << 40, 1 << 20), MalformedGraphError), (_dims(-4), MalformedGraphError),
        (_dims(5), MalformedGraphError), (_hidden_bytes, MalformedGraphError),
        (_foreign, UnknownOpError), (_unknown, UnknownOpError), (_bodiless, MissingBodyError),
        (_recursive, UnknownOpError), (_foreign_function, UnknownOpError), (_subgraph, MalformedGraphError),
        (_sparse, MalformedGraphError), (_training, MalformedGraphError), (_twice, MalformedGraphError),
        (_text, MalformedGraphError), (_dangling, MalformedGraphError), (_domain, GraphVersionError),
        (_keys, GraphMetadataError),
    ],
)  # fmt: skip
def test_parts_that_no_export_makes_are_refused(change: Change, error: type[HfqError], tmp_path: Path) -> None:
    with pytest.raises(error) as caught:
        open_onnx(saved(tmp_path, change))
    assert caught.value.exit_code == 1


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = honest().SerializeToString()
    path = tmp_path / "graph.onnx"
    for size in {0, 1, 2, 100, *range(0, len(data), 397), len(data) - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(HfqError) as caught:
            open_onnx(path)
        assert caught.value.exit_code == 1, size


@pytest.mark.parametrize("data", [b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(64), b"{}", b"\xff" * 512])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(data)
    with pytest.raises(HfqError) as caught:
        open_onnx(path)
    assert caught.value.exit_code == 1
