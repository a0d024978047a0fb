"""Files in the Hub's cache are named by their digest: a blob that holds something else is found, and named."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from made import SMALL, write_base
from synthetic import tiny, write_checkpoint

import hfq
from hfq.cli import run
from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.hub_cache import blob_digest
from hfq.convert.safetensors_file import SafetensorsFile
from hfq.convert.transformer import build_transformer
from hfq.schema.errors import BlobDigestError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def into_cache(folder: Path, hub: Path) -> Path:
    """The folder as the Hub's client would have downloaded it: blobs and links to them. Returns the snapshot."""
    repository = hub / "models--Somebody--Wan"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        large = path.suffix == ".safetensors"
        name = hashlib.sha256(data) if large else hashlib.sha1(b"blob %d\0" % len(data) + data)
        blob = repository / "blobs" / name.hexdigest()
        blob.write_bytes(data)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    write_base(tmp_path / "plain", dtype="BF16")
    return into_cache(tmp_path / "plain", tmp_path / "hub")


def zero_tensors(link: Path, count: int = 3) -> Path:
    """Zero the last tensors of a blob in place; its size stays. Returns the blob."""
    blob = link.resolve()
    with SafetensorsFile(blob) as file:
        begin = sorted(file.tensors.values(), key=lambda entry: entry.begin)[-count].begin
    with open(blob, "r+b") as data:
        data.seek(begin)
        data.write(bytes(blob.stat().st_size - begin))
    return blob


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*(str(argument) for argument in arguments), "--json"])
    return code, json.loads(capsys.readouterr().out).get("error", {})


LOW = "low_noise_model/diffusion_pytorch_model.safetensors"


def test_a_sound_cache_is_read_as_any_folder(snapshot: Path, tmp_path: Path) -> None:
    assert blob_digest(snapshot / LOW) == (snapshot / LOW).resolve().name
    assert blob_digest(tmp_path / "plain" / LOW) is None
    with open_checkpoint(snapshot) as cached, open_checkpoint(tmp_path / "plain") as plain:
        for role in ("high_noise", "low_noise"):
            scan = cached.experts[role].scan()
            assert scan.run() == plain.experts[role].scan().run()
            assert scan.witnesses[0].sha256 == (snapshot / scan.witnesses[0].name).resolve().name
            unhashed = cached.experts[role].scan(hash_files=False)
            assert unhashed.run() == scan.identity
            assert unhashed.witnesses == ()


def test_a_blob_that_is_not_what_its_name_says(
    snapshot: Path, small_delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hfq.open_checkpoint(snapshot) as checkpoint:
        hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / "before").close()
    blob = zero_tensors(snapshot / LOW)
    wrong = hashlib.sha256(blob.read_bytes()).hexdigest()
    for command in (
        ("inspect", snapshot),
        ("inspect", snapshot, "--no-file-hashes"),
        ("inspect", snapshot, "--trust-witness"),
        ("inspect", blob, "--role", "low_noise"),
        ("convert", snapshot, "--recipe", "rtn-hif4", "-o", tmp_path / "delta"),
        ("convert", snapshot, "--recipe", "rtn-hif4", "-o", tmp_path / "delta", "--no-file-hashes"),
        ("verify", small_delta, "--base", snapshot),
        ("verify", tmp_path / "before", "--base", snapshot, "--trust-witness"),
    ):
        code, error = failure(capsys, *command)
        assert (code, error["code"]) == (3, "blob-digest"), (command, error)
        for part in (str(blob), blob.name, wrong):
            assert part in json.dumps(error)
    assert not (tmp_path / "delta").exists()


def test_a_delta_of_the_damaged_weights_does_not_make_the_blob_right(snapshot: Path, tmp_path: Path) -> None:
    zero_tensors(snapshot / LOW)
    write_base(tmp_path / "copy", dtype="BF16")
    (tmp_path / "copy" / LOW).write_bytes((snapshot / LOW).read_bytes())
    with hfq.open_checkpoint(tmp_path / "copy") as checkpoint:
        hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / "delta").close()
    with hfq.open_checkpoint(snapshot) as checkpoint:
        with pytest.raises(BlobDigestError):
            hfq.verify(tmp_path / "delta", checkpoint)
        with pytest.raises(BlobDigestError):
            build_transformer(checkpoint.experts["low_noise"])


def test_noise_in_a_blob_is_named_as_such_and_not_by_the_nan_in_it(snapshot: Path) -> None:
    blob = (snapshot / LOW).resolve()
    with open(blob, "r+b") as data:
        data.seek(-4096, os.SEEK_END)
        data.write(b"\xff" * 4096)
    with open_checkpoint(snapshot) as checkpoint:
        expert = checkpoint.experts["low_noise"]
        for read in (lambda: expert.scan().run(), lambda: list(expert.scan()), lambda: expert.scan().each(lambda _: 1)):
            with pytest.raises(BlobDigestError):
                read()


@pytest.mark.parametrize("name", ["config.json", "model_index.json", "transformer/config.json"])
def test_a_small_file_is_compared_with_its_git_hash(name: str, tmp_path: Path) -> None:
    layout = "original-2.1" if name == "config.json" else "diffusers"
    write_checkpoint(tmp_path / "plain", tiny(), layout)
    snapshot = into_cache(tmp_path / "plain", tmp_path / "hub")
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.architecture == tiny()
    blob = (snapshot / name).resolve()
    blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(BlobDigestError, match=blob.name):
        open_checkpoint(snapshot)


def test_a_name_that_is_no_digest_says_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    write_checkpoint(folder, SMALL, "original-2.1", stem="0" * 64)
    with open_checkpoint(folder / f"{'0' * 64}.safetensors", role="single") as checkpoint:
        assert checkpoint.experts["single"].scan().run()
    os.rename(folder / f"{'0' * 64}.safetensors", folder / ("0" * 64))  # not below models--OWNER--NAME
    with open_checkpoint(folder / ("0" * 64), role="single") as checkpoint:
        assert checkpoint.experts["single"].scan().run()
