"""Opening a graph: what is read is what stands there, and what it says of itself has the right form or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hfq.convert.graphs.onnx_file import open_onnx
from hfq.convert.graphs.origin import Places, read_origin
from hfq.schema.errors import GraphMetadataError, GraphVersionError, MissingPathError, UnreadableFileError

BF16 = (1.0, -0.0, 3.140625, 2.0**-130)
METADATA = {
    "hfq.version": "0.1.0", "hfq.delta": "a" * 64, "hfq.base_root": "b" * 64, "hfq.role": "single",
    "hfq.scope": "site:blocks.0.ffn.0", "hfq.profile": "ref", "hfq.recipe": "mine", "hfq.bin": "2",
    "hfq.sites": json.dumps({"blocks.0.ffn.0": {"input": "x", "qdq": "q", "product": "p", "output": "y"}}),
}  # fmt: skip


def little_graph() -> onnx.ModelProto:
    """`y = x + float(w)`, and constants of every type that exports have."""
    typed = helper.make_tensor("typed", TensorProto.INT32, [2], [-1, 7])
    values = [
        helper.make_tensor("w", TensorProto.BFLOAT16, [4], BF16),
        numpy_helper.from_array(np.array([[0, 255]], np.uint8), "bytes"),
        numpy_helper.from_array(np.array(1.5, np.float32), "scalar"),
        numpy_helper.from_array(np.array([2**40], np.int64), "long"),
        numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty"),
        typed,
    ]
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "wide"], ["y"]),
    ]
    place = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "hfq", place[:1], place[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, METADATA)
    return model


def saved(folder: Path, change: Callable[[onnx.ModelProto], object] = lambda model: None) -> Path:
    model = little_graph()
    change(model)
    path = folder / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("external", [False, True])
def test_initializers_are_read_bit_for_bit(external: bool, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(little_graph(), path, save_as_external_data=external, location="weights", size_threshold=0)
    file = open_onnx(path)
    assert file.is_external == external
    assert file.data_bytes == ((tmp_path / "weights").stat().st_size if external else 0)
    assert torch.equal(file.read("w").view(torch.int16), torch.tensor(BF16, dtype=torch.bfloat16).view(torch.int16))
    assert file.read("bytes").tolist() == [[0, 255]]
    assert (file.read("scalar").shape, float(file.read("scalar"))) == ((), 1.5)
    assert file.read("long").tolist() == [2**40]
    assert file.read("typed").tolist() == [-1, 7]
    assert file.read("empty").shape == (0, 3)
    assert (file.opset, file.ir_version, file.size_bytes) == (18, 9, path.stat().st_size)


def test_metadata_are_read(tmp_path: Path) -> None:
    origin = read_origin(open_onnx(saved(tmp_path)))
    assert (origin.delta, origin.base_root, origin.role, origin.bin) == ("a" * 64, "b" * 64, "single", 2)
    assert (str(origin.scope), origin.profile, origin.recipe) == ("site:blocks.0.ffn.0", "ref", "mine")
    assert origin.sites == {"blocks.0.ffn.0": Places("x", "q", "p", "y")}


@pytest.mark.parametrize("key", [key for key in METADATA if key != "hfq.bin"])
def test_a_graph_that_does_not_say_what_it_is_is_refused(key: str, tmp_path: Path) -> None:
    rest = {name: value for name, value in METADATA.items() if name != key}
    with pytest.raises(GraphMetadataError, match=key):
        read_origin(open_onnx(saved(tmp_path, lambda model: helper.set_model_props(model, rest))))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hfq.delta", "A" * 64), ("hfq.delta", "a" * 63), ("hfq.base_root", "b" * 64 + "\n"), ("hfq.role", "middle"),
        ("hfq.scope", "block:-1"), ("hfq.scope", ""), ("hfq.bin", "3"), ("hfq.bin", "02"), ("hfq.sites", "[]"),
        ("hfq.sites", "{"), ("hfq.sites", '{"a": 1}'), ("hfq.sites", '{"a": {"input": "x"}}'),
        ("hfq.sites", '{"a": {"input": "", "qdq": "q", "product": "p", "output": "y"}}'),
    ],
)  # fmt: skip
def test_metadata_of_another_form_are_refused(key: str, value: str, tmp_path: Path) -> None:
    changed = {**METADATA, key: value}
    with pytest.raises(GraphMetadataError, match=key) as caught:
        read_origin(open_onnx(saved(tmp_path, lambda model: helper.set_model_props(model, changed))))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("ir", "opset"), [(8, 18), (12, 18), (9, 17), (11, 24)])
def test_other_versions_are_refused(ir: int, opset: int, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.ir_version, model.opset_import[0].version = ir, opset

    with pytest.raises(GraphVersionError):
        open_onnx(saved(tmp_path, change))


def test_no_file_is_another_failure_than_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError) as caught:
        open_onnx(tmp_path / "none.onnx")
    assert caught.value.exit_code == 2
    with pytest.raises(UnreadableFileError):
        open_onnx(tmp_path)
