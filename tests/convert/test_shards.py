"""Shards, indexes and folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic import (
    roles_of,
    tiny,
    write_checkpoint,
    write_file,
    write_sharded,
)

from hfq.convert.checkpoint import open_checkpoint
from hfq.schema.errors import (
    DuplicateKeyError,
    IndexMismatchError,
    MalformedFileError,
    MissingPathError,
    UnknownLayoutError,
    UnsupportedModelError,
    UsageError,
)


def test_shards_need_no_index(tmp_path: Path) -> None:
    with open_checkpoint(write_sharded(tmp_path, index=False)) as checkpoint:
        assert len(checkpoint.experts["single"].files) == 4


def test_files_of_a_bf16_revision(tmp_path: Path) -> None:
    root = write_sharded(tmp_path, index=False, suffix="-bf16", dtype="BF16")
    assert (root / "diffusion_pytorch_model-00001-of-00004-bf16.safetensors").exists()
    assert list(roles_of(root)) == ["single"]
    # The index of the main revision, left beside them, names other files: it does not count.
    weights = {"x": "diffusion_pytorch_model-00001-of-00004.safetensors"}
    (root / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert list(roles_of(root)) == ["single"]


def test_an_index_can_be_named(tmp_path: Path) -> None:
    root = write_sharded(tmp_path)
    assert list(roles_of(root / "diffusion_pytorch_model.safetensors.index.json")) == ["single"]
    # With a second set of files in the folder this is the only way.
    for file in write_sharded(tmp_path / "b", index=False, suffix="-bf16", dtype="BF16").glob("*.safetensors"):
        file.rename(root / file.name)
    assert list(roles_of(root)) == ["single"]
    index = root / "diffusion_pytorch_model.safetensors.index.json"
    with open_checkpoint(index) as checkpoint:
        assert checkpoint.experts["single"].info("head.head.weight").dtype == "F32"
    index.unlink()
    with pytest.raises(UsageError, match="several checkpoints"):
        open_checkpoint(root)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    for index in (True, False):
        root = write_sharded(tmp_path / str(index), index=index)
        (root / "diffusion_pytorch_model-00003-of-00004.safetensors").unlink()
        with pytest.raises(MissingPathError, match="00003-of" if index else "without number 3"):
            open_checkpoint(root)


def test_one_shard_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one shard of several.*give the folder"):
        open_checkpoint(write_sharded(tmp_path) / "diffusion_pytorch_model-00001-of-00004.safetensors")


def edit_index(root: Path, change: Any) -> None:
    path = root / "diffusion_pytorch_model.safetensors.index.json"
    document = json.loads(path.read_text())
    change(document["weight_map"])
    path.write_text(json.dumps(document))


def test_an_index_that_contradicts_the_shards(tmp_path: Path) -> None:
    last = "diffusion_pytorch_model-00004-of-00004.safetensors"
    changes = {
        "blocks.0.modulation": lambda weights: weights.update({"blocks.0.modulation": last}),
        "extra.weight": lambda weights: weights.update({"extra.weight": last}),
        "head.modulation": lambda weights: weights.pop("head.modulation"),
    }
    for name, change in changes.items():
        root = write_sharded(tmp_path / name)
        edit_index(root, change)
        with pytest.raises(IndexMismatchError, match=name.replace(".", r"\.")):
            open_checkpoint(root)
    root = write_sharded(tmp_path / "left")
    edit_index(root, lambda weights: [weights.pop(name) for name in list(weights) if weights[name] == last])
    with pytest.raises(IndexMismatchError, match="does not name"):
        open_checkpoint(root)


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "config.json", "x\n.safetensors"],
)
def test_an_index_cannot_leave_the_folder(file: str, tmp_path: Path) -> None:
    root = write_sharded(tmp_path)
    edit_index(root, lambda weights: weights.update({"blocks.0.modulation": file}))
    with pytest.raises(MalformedFileError, match="leaves the folder"):
        open_checkpoint(root)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{", '{"a":1,"a":1}'])
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    root = write_sharded(tmp_path)
    (root / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(MalformedFileError):
        open_checkpoint(root)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    root = write_sharded(tmp_path, index=False)
    name, shape = "blocks.0.modulation", (1, 6, 64)
    extra = [(name, "F32", shape), ("zzz", "F32", (1,))]
    write_file(root / "diffusion_pytorch_model-00004-of-00004.safetensors", extra, None)
    with pytest.raises(DuplicateKeyError, match=r"blocks\.0\.modulation.*also in"):
        open_checkpoint(root)


def test_a_flat_release_folder_with_everything_else_in_it(tmp_path: Path) -> None:
    root = write_sharded(tmp_path)
    for name in (
        "Wan2.1_VAE.pth",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "README.md",
        "a_lora.safetensors",
        "._x.safetensors",
    ):
        (root / name).write_bytes(b"x")
    (root / "google" / "umt5-xxl").mkdir(parents=True)
    assert list(roles_of(root)) == ["single"]


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UnknownLayoutError, match="no checkpoint in this folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModelError, match="pickles"):
        open_checkpoint(tmp_path)
    (tmp_path / "ptq_state.json").write_text("{}")
    with pytest.raises(UsageError, match="a delta"):
        open_checkpoint(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("nothing", "link"):
        with pytest.raises(MissingPathError) as caught:
            open_checkpoint(tmp_path / name)
        assert caught.value.exit_code == 2


def test_pipelines_that_are_not_supported_or_not_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny(), "diffusers-pair")
    path = tmp_path / "model_index.json"
    good = json.loads(path.read_text())
    for change, error in [
        ({"_class_name": "WanAnimatePipeline"}, UnsupportedModelError),
        ({"_class_name": "FluxPipeline"}, UnsupportedModelError),
        ({"transformer": None, "transformer_2": None}, UnknownLayoutError),
    ]:
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(error):
            open_checkpoint(tmp_path)
    for text in ("[]", "{", "nothing"):
        path.write_text(text)
        with pytest.raises(MalformedFileError):
            open_checkpoint(tmp_path)
    path.write_text(json.dumps(good))
    shutil.rmtree(tmp_path / "transformer_2")
    with pytest.raises(MissingPathError, match="transformer_2"):
        open_checkpoint(tmp_path)
