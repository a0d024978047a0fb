"""A file beside the mark of its own unfinished download is not taken for a whole one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from synthetic import tiny, write_expert, write_sharded

from hfq.cli import run
from hfq.convert.checkpoint import open_checkpoint
from hfq.schema.errors import UnfinishedDownloadError

SHARD = "diffusion_pytorch_model-00002-of-00004.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
MARKS = (
    ".incomplete", ".aria2", ".part", ".crdownload", ".!qB", ".download", ".partial", ".opdownload", ".filepart",
    ".!ut", ".xltd", ".st", ".ytdl", ".a1b2c3d4.partial", ".0123456789abcdef.incomplete",
)  # fmt: skip


@pytest.mark.parametrize("name", [SHARD, INDEX, "config.json"])
@pytest.mark.parametrize("mark", MARKS)
def test_a_marked_file_is_refused(mark: str, name: str, tmp_path: Path) -> None:
    root = write_sharded(tmp_path)
    (root / f"{name}{mark}").write_bytes(b"")
    with pytest.raises(UnfinishedDownloadError) as caught:
        open_checkpoint(root)
    assert str(root / name) in str(caught.value)
    assert f"{name}{mark}" in str(caught.value)
    assert caught.value.exit_code == 1
    (root / f"{name}{mark}").unlink()
    open_checkpoint(root).close()


def test_inspect_names_the_file_and_its_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sharded(tmp_path)
    (root / f"{SHARD}.aria2").write_bytes(b"\0")
    for more in ([], ["--no-hash"]):
        assert run(["inspect", str(root), *more, "--json"]) == 1
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["code"] == "unfinished-download"
        assert f"{SHARD}.aria2" in error["message"]


def test_a_folder_as_a_mark_and_a_single_file(tmp_path: Path) -> None:
    (file,) = write_expert(tmp_path, tiny().tensors(), stem="wan_low_noise")
    (tmp_path / f"{file.name}.download").mkdir()  # as Safari does
    with pytest.raises(UnfinishedDownloadError):
        open_checkpoint(file)


def test_marks_of_other_files_do_not_matter(tmp_path: Path) -> None:
    (file,) = write_expert(tmp_path, tiny().tensors(), stem="wan_low_noise")
    for name in ("wan_high_noise.safetensors.part", "umt5.pth.aria2", "wan_low_noise.safetensors.txt", "wan_low.part",
                 "wan_low_noise.safetensors.sha256", "wan_low_noise.part"):  # fmt: skip
        (tmp_path / name).write_bytes(b"")
    open_checkpoint(file).close()


@pytest.mark.parametrize("below", [".", "low_noise_model"])
def test_what_the_hubs_client_has_not_finished_in_a_local_folder(below: str, tmp_path: Path) -> None:
    (file,) = write_expert(tmp_path / below, tiny().tensors())
    waiting = tmp_path / ".cache/huggingface/download" / below
    waiting.mkdir(parents=True)
    mark = waiting / "Xq3kVn0o9s2yq9zGm8mYwYv0b1A=.0a1b.incomplete"
    mark.write_bytes(b"")
    with pytest.raises(UnfinishedDownloadError, match=r"0a1b\.incomplete"):
        open_checkpoint(file.parent)
    # The client writes down what it has finished; what is left then is of an earlier attempt, or of another file.
    done = waiting / f"{file.name}.metadata"
    done.write_text(f"{'0' * 40}\n{'a' * 64}\n{file.stat().st_mtime + 2}\n")
    open_checkpoint(file.parent).close()
    os.utime(file, (2e9, 2e9))  # and somebody has written to it since
    with pytest.raises(UnfinishedDownloadError):
        open_checkpoint(file.parent)


def test_a_link_into_a_folder_where_its_file_is_marked(tmp_path: Path) -> None:
    (file,) = write_expert(tmp_path / "store", tiny().tensors(), stem="data")
    link = tmp_path / "models" / "wan_low_noise.safetensors"
    link.parent.mkdir()
    link.symlink_to(file)
    open_checkpoint(link).close()
    (file.parent / f"{file.name}.aria2").write_bytes(b"")
    with pytest.raises(UnfinishedDownloadError):
        open_checkpoint(link)


def test_a_blob_that_is_what_its_name_says_is_whole_whatever_an_earlier_attempt_left(tmp_path: Path) -> None:
    (file,) = write_expert(tmp_path / "x", tiny().tensors())
    blobs = tmp_path / "models--A--B" / "blobs"
    blobs.mkdir(parents=True)
    blob = file.rename(blobs / hashlib.sha256(file.read_bytes()).hexdigest())
    link = tmp_path / "models--A--B" / "snapshots" / "0" / "wan_low_noise.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    (blobs / f"{blob.name}.12345678.incomplete").write_bytes(b"")
    with open_checkpoint(link) as checkpoint:
        assert checkpoint.experts["low_noise"].scan().run()
