"""Reading and writing safetensors files, checked against the safetensors library."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfq.convert.bf16 import to_bf16
from hfq.convert.safetensors_file import SafetensorsFile
from hfq.convert.safetensors_writer import SafetensorsWriter, TensorPlan, write_safetensors
from hfq.convert.tensor_bytes import TORCH_DTYPES
from hfq.schema.errors import TruncatedFileError, UnreadableFileError, UnsupportedDtypeError, UsageError


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = {f"of/{name}": torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
            for name, dtype in TORCH_DTYPES.items()}  # fmt: skip
    made |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "ünï 名": torch.randn(7, generator=generator),
             "transposed": torch.arange(12.0).reshape(3, 4).T}  # fmt: skip
    return made


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous(), b.contiguous())


def test_what_is_written_is_read_by_us_and_by_the_library(tmp_path: Path) -> None:
    tensors = some_tensors()
    digest = write_safetensors(tmp_path / "a.safetensors", tensors, {"format": "pt", "b": "ä"})
    assert digest == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    loaded = safetensors.torch.load_file(tmp_path / "a.safetensors")
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        assert set(file.tensors) == set(tensors) == set(loaded)
        assert file.metadata == {"format": "pt", "b": "ä"}
        for name, tensor in tensors.items():
            assert same(file.read(name), tensor)
            assert same(loaded[name], tensor)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"x": "y"})
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        assert file.metadata == {"x": "y"}
        assert file.size_bytes == os.path.getsize(tmp_path / "a.safetensors")
        assert all(same(file.read(name), tensor) for name, tensor in tensors.items())
        ends = [entry.end for entry in file.tensors.values()]
        assert ends == sorted(ends)
        assert ends[-1] == file.size_bytes


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = some_tensors()
    backwards = dict(reversed(tensors.items()))
    first = write_safetensors(tmp_path / "a", tensors, {"a": "1", "b": "2"})
    assert write_safetensors(tmp_path / "b", backwards, {"b": "2", "a": "1"}) == first
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert write_safetensors(tmp_path / "c", {**tensors, "scalar": torch.tensor(2.25)}, {"a": "1", "b": "2"}) != first
    assert write_safetensors(tmp_path / "d", tensors) != first


def test_an_empty_file_of_no_tensors(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", {})
    with SafetensorsFile(tmp_path / "a") as file:
        assert file.tensors == {}
    assert safetensors.torch.load_file(tmp_path / "a") == {}


def write_planned(path: Path, plans: list[TensorPlan], values: dict[str, Tensor]) -> None:
    with SafetensorsWriter(path, plans) as writer:
        for name, tensor in values.items():
            writer.write(name, tensor)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")
    for name in ("__metadata__", "", "a\nb", "\ud800"):
        with pytest.raises(UsageError):
            write_safetensors(tmp_path / "a", {name: torch.zeros(1)})
    with pytest.raises(UsageError):
        write_safetensors(tmp_path / "a", {"x": torch.zeros(2, dtype=torch.complex64)})
    plans = [TensorPlan("x", torch.float32, (2,)), TensorPlan("y", torch.float32, (2,))]
    for values in ({}, {"x": torch.zeros(3)}, {"y": torch.zeros(2)}, {"x": torch.zeros(2)},
                   {"x": torch.zeros(2, dtype=torch.int32)}):  # fmt: skip
        with pytest.raises(UsageError):
            write_planned(tmp_path / "a", plans, values)
    with pytest.raises(KeyboardInterrupt), SafetensorsWriter(tmp_path / "a", plans):
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]


def test_a_planned_file_is_written_in_the_plans_order(tmp_path: Path) -> None:
    plans = [TensorPlan("small", torch.uint8, (3,)), TensorPlan("large", torch.float64, (2,))]
    with SafetensorsWriter(tmp_path / "a", plans) as writer:
        writer.write("small", torch.tensor([1, 2, 3], dtype=torch.uint8))
        writer.write("large", torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert writer.sha256 == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert writer.size_bytes == os.path.getsize(tmp_path / "a")
    with SafetensorsFile(tmp_path / "a") as file:
        assert list(file.tensors) == ["small", "large"]
        assert file.read("large").tolist() == [0.5, 0.25]


def test_a_dtype_without_a_tensor_type_is_listed_and_not_read(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "a")
    with SafetensorsFile(tmp_path / "a") as file:
        assert file.tensors["x"].dtype == "F8_E4M3"
        with pytest.raises(UnsupportedDtypeError, match="F8_E4M3"):
            file.read("x")


def test_a_file_that_shrinks_or_is_closed_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", {"x": torch.zeros(100)})
    file = SafetensorsFile(tmp_path / "a")
    file.check_unchanged()
    os.truncate(tmp_path / "a", file.size_bytes - 1)
    with pytest.raises(TruncatedFileError, match="shorter"):
        file.read("x")
    with pytest.raises(UnreadableFileError, match="changed"):
        file.check_unchanged()
    file.close()
    file.close()
    with pytest.raises(UnreadableFileError, match="closed"):
        file.read("x")


def test_reading_does_not_follow_a_replaced_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", {"x": torch.zeros(3)})
    with SafetensorsFile(tmp_path / "a") as file:
        write_safetensors(tmp_path / "a", {"x": torch.ones(3)})
        assert file.read("x").tolist() == [0, 0, 0]


def reference_bf16(bits: int) -> int:
    """Nearest, ties to even, from the definition: compare the two neighbours as exact numbers."""
    exponent, mantissa = bits >> 23 & 0xFF, bits & 0x7FFFFF
    if exponent == 0xFF and mantissa:
        return 0x7FC0
    low = bits >> 16
    rest = bits & 0xFFFF
    up = rest > 0x8000 or (rest == 0x8000 and low & 1)
    return low + 1 if up else low


EDGES = [
    0, 0x80000000, 1, 0x8000, 0x8001, 0x18000, 0x7FFF, 0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x7F800000, 0xFF800000,
    0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0x007FFFFF, 0x00800000, 0x3F808000, 0x3F818000,
]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from(EDGES), min_size=1, max_size=200))
def test_rounding_to_bf16_is_to_nearest_even(bits: list[int]) -> None:
    source = torch.tensor(bits, dtype=torch.int64).to(torch.uint32).view(torch.float32)
    found = to_bf16(source).view(torch.uint16).tolist()
    assert found == [reference_bf16(value) for value in bits]


def test_rounding_agrees_with_torch_wherever_torch_is_one_thing() -> None:
    generator = torch.Generator().manual_seed(5)
    bits = torch.randint(-(2**31), 2**31, (300_001,), generator=generator, dtype=torch.int64).to(torch.int32)
    source = bits.view(torch.float32)
    number = ~source.isnan()
    assert torch.equal(to_bf16(source)[number], source.bfloat16()[number])
    assert (to_bf16(source)[~number].view(torch.int16) == 0x7FC0).all()


def test_every_f16_value_is_rounded_once() -> None:
    source = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    number = ~source.isnan()
    assert torch.equal(to_bf16(source)[number], source.float().bfloat16()[number])
    assert (to_bf16(source)[~number].view(torch.int16) == 0x7FC0).all()


def test_bf16_keeps_its_bits_and_other_dtypes_are_refused() -> None:
    source = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    assert torch.equal(to_bf16(source).view(torch.uint16), source.view(torch.uint16))
    assert to_bf16(torch.zeros(0)).shape == (0,)
    assert to_bf16(torch.tensor(1.0)).shape == ()
    assert to_bf16(torch.arange(6.0).reshape(2, 3).T).tolist() == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(UnsupportedDtypeError):
        to_bf16(torch.zeros(2, dtype=torch.float64))
