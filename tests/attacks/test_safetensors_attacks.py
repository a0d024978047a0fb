"""Hostile safetensors files. Each must end in its own error, at once and without taking memory."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfq.convert.safetensors_file import SafetensorsFile
from hfq.schema.errors import (
    DuplicateKeyError,
    HfqError,
    MalformedFileError,
    MissingPathError,
    ShapeMismatchError,
    TooLargeError,
    TrailingBytesError,
    TruncatedFileError,
    UnreadableFileError,
    UnsupportedDtypeError,
    UnsupportedModelError,
)


def entry(begin: int = 0, end: int = 8, dtype: Any = "F32", shape: Any = (2,), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape,
            "data_offsets": [begin, end], **more}  # fmt: skip


def packed(header: Any, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


X = entry()
GOOD = packed({"x": X})

# Attack -> file, error, words of the message.
ATTACKS: dict[str, tuple[bytes, type[HfqError], str]] = {
    "empty file": (b"", TruncatedFileError, "header length"),
    "seven bytes": (bytes(7), TruncatedFileError, "header length"),
    "length only": (struct.pack("<Q", 2), TruncatedFileError, "inside its header"),
    "header cut": (GOOD[:20], TruncatedFileError, "inside its header"),
    "data cut by one byte": (GOOD[:-1], TruncatedFileError, "inside its tensors"),
    "no data": (packed({"x": X}, b""), TruncatedFileError, "inside its tensors"),
    "header length one too many": (packed({"x": X}, b"", length=len(json.dumps({"x": X})) + 1), TruncatedFileError, ""),
    "one byte more": (GOOD + b"\0", TrailingBytesError, "after the last"),
    "a program behind the tensors": (GOOD + b"#!/bin/sh\n" * 100, TrailingBytesError, "after the last"),
    "data without tensors": (packed({}), TrailingBytesError, "after the last"),
    "header over the limit": (packed({"x": X}, length=100_000_001), TooLargeError, "header too large"),
    "header of 2**63": (packed({"x": X}, length=2**63), TooLargeError, "header too large"),
    "header of 2**64 - 1": (packed({"x": X}, length=2**64 - 1), TooLargeError, "header too large"),
    "header of a million objects": (packed(b"{" + b'"a":{},' * 1_000_000 + b"}"), TooLargeError, "too many parts"),
    "header of a million lists": (packed(b'{"a":' + b"[" * 1_000_000), TooLargeError, "too many parts"),
    "header of five million numbers": (packed(b'{"a":[' + b"1," * 5_000_000 + b"1]}"), TooLargeError, "too many parts"),
    "deep lists": (packed(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), MalformedFileError, "deep"),
    "deep objects": (packed(b'{"a":' * 90_000 + b"1" + b"}" * 90_000), MalformedFileError, "deep"),
    "no JSON": (packed(b"{nothing}"), MalformedFileError, "not JSON"),
    "not an object": (packed([1]), MalformedFileError, "not a JSON object"),
    "space before the object": (packed(b' {"x":1}'), MalformedFileError, "not a JSON object"),
    "empty header": (packed(b""), MalformedFileError, "not a JSON object"),
    "zeros": (bytes(4096), MalformedFileError, "not a JSON object"),
    "not UTF-8": (packed(b'{"\xff\xfe": 1}'), MalformedFileError, "UTF-8"),
    "two documents": (packed(json.dumps({"x": X}).encode() + b"{}"), TrailingBytesError, "goes on after its end"),
    "JSON cut": (packed(json.dumps({"x": X}).encode()[:-1]), TruncatedFileError, "ends too early"),
    "NaN": (packed(b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'), MalformedFileError, "number"),
    "a number of 10,000 digits": (packed(b'{"x":' + b"9" * 10_000 + b"}"), MalformedFileError, "not JSON"),
    "a name twice": (packed(b'{"x":%b,"x":%b}' % ((json.dumps(X).encode(),) * 2)), DuplicateKeyError, "twice"),
    "a name twice, once escaped": (
        packed(b'{"x":%b,"\\u0078":%b}' % ((json.dumps(X).encode(),) * 2)), DuplicateKeyError, "twice",
    ),
    "dtype twice": (
        packed(b'{"x":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), DuplicateKeyError, "twice",
    ),
    "metadata twice": (packed(b'{"__metadata__":{},"__metadata__":{}}', b""), DuplicateKeyError, "twice"),
    "overlap": (packed({"x": X, "y": entry(4, 12)}, bytes(12)), MalformedFileError, "overlaps x"),
    "the same bytes twice": (packed({"x": X, "y": X}), MalformedFileError, "overlaps x"),
    "one inside the other": (packed({"x": X, "y": entry(2, 6, shape=(1,))}), MalformedFileError, "overlaps x"),
    "hole between": (packed({"x": X, "y": entry(12, 20)}, bytes(20)), MalformedFileError, "unused bytes"),
    "hole before": (packed({"x": entry(4, 12)}, bytes(12)), MalformedFileError, "unused bytes"),
    "offsets backwards": (packed({"x": entry(8, 0)}), MalformedFileError, "data_offsets"),
    "offsets negative": (packed({"x": entry(-8, 0)}), MalformedFileError, "data_offsets"),
    "offsets not whole": (packed({"x": entry(0, 8.0)}), MalformedFileError, "data_offsets"),  # type: ignore[arg-type]
    "offsets of 2**70": (packed({"x": entry(2**70, 2**70 + 8)}), MalformedFileError, "data_offsets"),
    "three offsets": (packed({"x": {**X, "data_offsets": [0, 8, 8]}}), MalformedFileError, "data_offsets"),
    "offsets are text": (packed({"x": {**X, "data_offsets": "08"}}), MalformedFileError, "data_offsets"),
    "offsets far outside": (packed({"x": entry(0, 2**40, "U8", (2**40,))}), TruncatedFileError, "inside its tensors"),
    "shape too small": (packed({"x": entry(shape=(1,))}), ShapeMismatchError, "4 bytes, found 8"),
    "shape too large": (packed({"x": entry(shape=(3,))}), ShapeMismatchError, "12 bytes, found 8"),
    "shape wraps 64 bits": (packed({"x": entry(shape=(2**40, 2**40))}), ShapeMismatchError, "found 8"),
    "half a byte": (packed({"x": entry(0, 1, "F4", (1,))}, b"0"), ShapeMismatchError, "0.5 bytes"),
    "shape negative": (packed({"x": entry(shape=(-2,))}), MalformedFileError, "shape"),
    "shapes negative, product right": (packed({"x": entry(shape=(-1, -2))}), MalformedFileError, "shape"),
    "shape not whole": (packed({"x": entry(shape=(2.0,))}), MalformedFileError, "shape"),
    "shape of truth values": (packed({"x": entry(0, 4, shape=(True,))}), MalformedFileError, "shape"),
    "shape is text": (packed({"x": entry(shape="2")}), MalformedFileError, "shape"),
    "shape is null": (packed({"x": entry(shape=None)}), MalformedFileError, "shape"),
    "shape of 1,000 dimensions": (packed({"x": entry(shape=(1,) * 999 + (2,))}), MalformedFileError, "shape"),
    "unknown dtype": (packed({"x": entry(dtype="F31")}), UnsupportedDtypeError, "unknown dtype"),
    "dtype in small letters": (packed({"x": entry(dtype="f32")}), UnsupportedDtypeError, "unknown dtype"),
    "dtype is a list": (packed({"x": entry(dtype=["F32"])}), UnsupportedDtypeError, "unknown dtype"),
    "an unknown field": (packed({"x": entry(code="import os")}), MalformedFileError, "not a tensor entry"),
    "a missing field": (packed({"x": {"dtype": "F32", "shape": [2]}}), MalformedFileError, "not a tensor entry"),
    "entry is null": (packed({"x": None}), MalformedFileError, "not a tensor entry"),
    "metadata is a list": (packed({"__metadata__": []}, b""), MalformedFileError, "__metadata__"),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}}, b""), MalformedFileError, "__metadata__"),
    "empty name": (packed({"": X}), MalformedFileError, "name"),
    "name of 2,000 letters": (packed({"x" * 2000: X}), MalformedFileError, "name"),
    "name with a line feed": (packed({"x\ny": X}), MalformedFileError, "name"),
    "name with a tab": (packed({"x\ty": X}), MalformedFileError, "name"),
    "name with an escape sequence": (packed({"\x1b[2Jx": X}), MalformedFileError, "name"),
    "name with half a character": (packed(b'{"\\ud800":%b}' % json.dumps(X).encode()), MalformedFileError, "name"),
    "name that turns the line round": (packed({"\u202ex": X}), MalformedFileError, "name"),
    "a pickle": (b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.", UnsupportedModelError, "pickle"),
    "a pickle of protocol 4": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.", UnsupportedModelError, "pickle"),
    "a zip of pickles": (b"PK\x03\x04" + bytes(100), UnsupportedModelError, "pickle"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(100), UnsupportedModelError, "GGUF"),
    "a web page": (b"<!DOCTYPE html><html>Not found</html>", TooLargeError, "not a safetensors file"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", TooLargeError, "not a safe"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(attack: str, tmp_path: Path) -> None:
    data, error, words = ATTACKS[attack]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(HfqError) as caught:
        SafetensorsFile(path)
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 2_000
    assert caught.value.exit_code == 1


def test_the_file_that_the_attacks_start_from_is_good(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(GOOD)
    (tmp_path / "b").write_bytes(packed(json.dumps({"x": X}).encode() + b"   "))
    for name in ("a", "b"):
        with SafetensorsFile(tmp_path / name) as file:
            assert file.read("x").tolist() == [0, 0]


def test_a_safetensors_file_whose_length_looks_like_another_format(tmp_path: Path) -> None:
    header = json.dumps({"x": X}).encode()
    (tmp_path / "a").write_bytes(packed(header + b" " * (0x0280 - len(header))))
    assert (tmp_path / "a").read_bytes().startswith(b"\x80\x02")
    with SafetensorsFile(tmp_path / "a") as file:
        assert list(file.tensors) == ["x"]


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.ckpt", "pytorch_model.bin", "model.gguf"])
def test_other_formats_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(50))
    with pytest.raises(UnsupportedModelError, match="safetensors"):
        SafetensorsFile(tmp_path / name)


def test_things_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_bytes(GOOD)
    for name, error, words in [
        ("fifo", UnreadableFileError, "not a regular file"),
        ("folder", UnreadableFileError, "not a regular file"),
        ("dangling", MissingPathError, "symbolic link to nothing"),
        ("circle", UnreadableFileError, "circle"),
        ("nothing", MissingPathError, "no such file"),
        ("file/inside", MissingPathError, "no such file"),
        ("n" * 300, UnreadableFileError, "cannot be opened"),
    ]:
        with pytest.raises(error, match=words):
            SafetensorsFile(tmp_path / name)
    with pytest.raises(UnreadableFileError, match="not a regular file"):
        SafetensorsFile("/dev/zero")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(GOOD)
    (tmp_path / "a").chmod(0)
    with pytest.raises(UnreadableFileError, match="cannot be opened"):
        SafetensorsFile(tmp_path / "a")


@pytest.mark.parametrize("attack", [name for name in ATTACKS if "million" in name or "deep" in name])
def test_a_large_header_takes_little_memory(attack: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(ATTACKS[attack][0])
    tracemalloc.start()
    with pytest.raises(HfqError):
        SafetensorsFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * path.stat().st_size + 4_000_000


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255), st.integers(0, len(GOOD)))
def test_a_damaged_file_is_an_error_or_still_one_whole_file(tmp_path_factory: pytest.TempPathFactory, place: int,
                                                            change: int, length: int) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "damaged"
    data = bytearray(GOOD)
    data[place] ^= change
    for damaged in (bytes(data), bytes(data[:length]), bytes(data) + bytes(data[:length])):
        path.write_bytes(damaged)
        with contextlib.suppress(HfqError), SafetensorsFile(path) as file:
            assert sum(found.size_bytes for found in file.tensors.values()) + file.header_bytes == len(damaged)


def test_descriptors_are_closed_when_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(GOOD[:-1])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(TruncatedFileError):
            SafetensorsFile(tmp_path / "a")
    assert len(os.listdir("/proc/self/fd")) == before
