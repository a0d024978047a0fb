"""One base, one bf16 root: whatever layout, sharding and dtype; and another root for anything else."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import TORCH, stored_dtype, tiny, value, write_checkpoint, write_expert, write_file
from torch import Tensor

from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.identity import Identity, TensorDigest
from hfq.convert.progress import Silent
from hfq.schema.errors import TruncatedFileError, UnreadableFileError

KINDS = ("t2v", "i2v", "i2v-image", "flf2v", "ti2v", "vace")

# How the same weights can lie on a disk: (layout, options). All of two experts.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "original F32": ("original-2.2", {"dtype": "F32"}),
    "original F32, 6 shards": ("original-2.2", {"dtype": "F32", "shards": 6}),
    "original BF16": ("original-2.2", {"dtype": "BF16"}),
    "bf16 revision": ("original-2.2", {"dtype": "BF16", "shards": 6, "suffix": "-bf16", "index": False}),
    "diffusers F32": ("diffusers-pair", {"dtype": "F32", "shards": 12}),
    "diffusers BF16, 5 shards": ("diffusers-pair", {"dtype": "BF16", "shards": 5}),
    "diffusers mixed": ("diffusers-pair", {"dtype": "mixed", "shards": 3}),
    "single files": ("comfyui-pair", {"dtype": "BF16"}),
    "single files, prefix": ("comfyui-pair", {"dtype": "BF16", "prefix": "model.diffusion_model."}),
    "single files, short prefix": ("comfyui-pair", {"dtype": "F32", "prefix": "diffusion_model."}),
}


def identities(model: Any, **options: Any) -> dict[str, Identity]:
    with open_checkpoint(model, **options) as checkpoint:
        return {role: expert.identity() for role, expert in checkpoint.experts.items()}


def expected_identity(role: str, kind: str, dtype: str, representable: bool) -> Identity:
    """Digests and roots from the definition, without the code under test."""
    lines_bf16, lines_exact, tensors = [], [], {}
    for name, shape in tiny(kind).tensors().items():
        values = value(0, role, name, shape, representable=representable)
        kept = stored_dtype(dtype, name)
        stored = (values.bfloat16().float() if dtype == "mixed" else values).to(TORCH[kept])
        rounded = stored.float().bfloat16()
        digests = [hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
                   for tensor in (stored, rounded)]  # fmt: skip
        shown = ",".join(map(str, shape))
        lines_exact.append(f"{name}\t{kept}\t{shown}\t{digests[0]}")
        lines_bf16.append(f"{name}\t{shown}\t{digests[1]}")
        tensors[name] = TensorDigest(kept, shape, *digests)
    roots = [hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() for lines in (lines_bf16, lines_exact)]
    return Identity(roots[0], roots[1], tensors)


@pytest.mark.parametrize("representable", [True, False], ids=["values of BF16", "values that are rounded"])
def test_one_root_in_every_form(representable: bool, tmp_path: Path) -> None:
    exact_roots: dict[str, set[str]] = {}
    for number, (form, (layout, options)) in enumerate(FORMS.items()):
        model = write_checkpoint(tmp_path / str(number), tiny(), layout, representable=representable, **options)
        found = identities(model)
        assert list(found) == ["high_noise", "low_noise"], form
        for role, identity in found.items():
            assert identity == expected_identity(role, "t2v", options["dtype"], representable), form
        assert found["high_noise"].bf16_root == expected_identity("high_noise", "t2v", "F32", representable).bf16_root
        assert found["high_noise"].bf16_root != found["low_noise"].bf16_root
        exact_roots.setdefault(options["dtype"], set()).add(found["high_noise"].exact_root)
    # The exact root tells dtypes apart and nothing else.
    assert {dtype: len(roots) for dtype, roots in exact_roots.items()} == {"F32": 1, "BF16": 1, "mixed": 1}
    assert len(set.union(*exact_roots.values())) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_one_root_for_every_kind(kind: str, tmp_path: Path) -> None:
    expected = expected_identity("single", kind, "F32", False)
    for layout, dtype in (("original-2.1", "F32"), ("diffusers", "BF16"), ("comfyui", "mixed")):
        model = write_checkpoint(tmp_path / layout, tiny(kind), layout, dtype=dtype)
        found = identities(model, role="single")["single"]
        assert found.bf16_root == expected.bf16_root
        assert list(found.tensors) == sorted(tiny(kind).tensors())


def test_the_real_diffusers_copy_has_the_root_of_the_original(tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    write_checkpoint(tmp_path / "diffusers", tiny(), "diffusers")
    write_checkpoint(tmp_path / "original", tiny(), "original-2.1")
    model = WanTransformer3DModel.from_pretrained(tmp_path / "diffusers" / "transformer", torch_dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    found = identities(tmp_path / "saved")["single"]
    assert {entry.dtype for entry in found.tensors.values()} == {"F32", "BF16"}
    assert found.bf16_root == identities(tmp_path / "original")["single"].bf16_root


def test_an_f16_copy_is_another_base(tmp_path: Path) -> None:
    write_expert(tmp_path / "a", tiny().tensors(), dtype="BF16")
    write_expert(tmp_path / "b", tiny().tensors(), dtype="F16")
    a, b = identities(tmp_path / "a")["single"], identities(tmp_path / "b")["single"]
    assert a.bf16_root != b.bf16_root
    for name, entry in b.tensors.items():
        values = value(0, "single", name, entry.shape).half()
        rounded = values.float().bfloat16()
        assert entry.exact == hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()
        assert entry.bf16 == hashlib.sha256(rounded.view(torch.uint8).numpy().tobytes()).hexdigest()


def flip(bit: int, dtype: torch.dtype) -> Any:
    def change(name: str, values: Tensor) -> Tensor:
        if name != "blocks.1.ffn.2.weight":
            return values
        values = values.to(dtype).clone()
        integers = values.view({2: torch.int16, 4: torch.int32}[dtype.itemsize])
        integers[5, 7] ^= 1 << bit
        return values

    return change


@pytest.mark.parametrize("bit", range(15))
def test_one_flipped_bit_of_a_bf16_value_is_another_base(bit: int, tmp_path: Path) -> None:
    write_expert(tmp_path / "a", tiny().tensors(), dtype="BF16")
    write_expert(tmp_path / "b", tiny().tensors(), dtype="BF16", change=flip(bit, torch.bfloat16))
    a, b = identities(tmp_path / "a")["single"], identities(tmp_path / "b")["single"]
    assert a.bf16_root != b.bf16_root
    assert a.exact_root != b.exact_root
    assert [name for name in a.tensors if a.tensors[name] != b.tensors[name]] == ["blocks.1.ffn.2.weight"]


def test_a_flipped_bit_below_bf16_changes_the_exact_root_alone(tmp_path: Path) -> None:
    write_expert(tmp_path / "a", tiny().tensors(), representable=True)
    write_expert(tmp_path / "b", tiny().tensors(), representable=True, change=flip(3, torch.float32))
    a, b = identities(tmp_path / "a")["single"], identities(tmp_path / "b")["single"]
    assert a.bf16_root == b.bf16_root
    assert a.exact_root != b.exact_root


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("blocks.0.norm3.weight", "blocks.0.norm3.bias"),
        ("blocks.0.norm3.weight", "blocks.1.norm3.weight"),
        ("blocks.0.self_attn.q.weight", "blocks.0.self_attn.k.weight"),
        ("blocks.0.self_attn.norm_q.weight", "blocks.0.cross_attn.norm_q.weight"),
        ("blocks.0.ffn.2.bias", "blocks.0.self_attn.o.bias"),
        ("blocks.0.modulation", "blocks.2.modulation"),
    ],
)
def test_swapped_tensors_of_one_shape_are_another_base(one: str, other: str, tmp_path: Path) -> None:
    shapes = tiny().tensors()
    assert shapes[one] == shapes[other]

    def swap(name: str, values: Tensor) -> Tensor:
        partner = {one: other, other: one}.get(name)
        return values if partner is None else value(0, "single", partner, shapes[partner])

    write_expert(tmp_path / "a", shapes)
    write_expert(tmp_path / "b", shapes, change=swap)
    a, b = identities(tmp_path / "a")["single"], identities(tmp_path / "b")["single"]
    assert a.bf16_root != b.bf16_root
    assert {entry.bf16 for entry in a.tensors.values()} == {entry.bf16 for entry in b.tensors.values()}


def test_special_values_have_one_root_in_every_dtype_that_holds_them(tmp_path: Path) -> None:
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 2.0**-133, -(2.0**-133)])

    def change(name: str, values: Tensor) -> Tensor:
        if name == "blocks.0.norm3.bias":
            values = values.clone()
            values[: special.numel()] = special
        return values

    roots = set()
    for dtype in ("F32", "BF16", "mixed"):
        write_expert(tmp_path / dtype, tiny().tensors(), dtype=dtype, change=change)
        roots.add(identities(tmp_path / dtype)["single"].bf16_root)
    assert len(roots) == 1


# --- the pass -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "mixed"])
def test_the_pass_gives_tensors_digests_and_file_hashes(dtype: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny(), "original-2.2", dtype=dtype, shards=3)
    with open_checkpoint(tmp_path) as checkpoint:
        expert = checkpoint.experts["low_noise"]
        scan = expert.scan()
        with pytest.raises(RuntimeError):
            _ = scan.identity
        order = []
        for tensor in scan:
            order.append(tensor.name)
            assert torch.equal(tensor.bf16, expert.read_bf16(tensor.name))
            assert tensor.bf16.dtype == torch.bfloat16
            assert tensor.shape == tuple(tensor.bf16.shape) == expert.info(tensor.name).shape
            assert tensor.dtype == expert.info(tensor.name).dtype
        assert scan.finished
        assert sorted(order) == list(expert.names)
        stored = [(expert.files.index(info.file), info.stored_name) for info in map(expert.info, order)]
        assert stored == sorted(stored)  # the writer of this test stores in the order of names
        assert scan.identity == expert.identity() == expected_identity("low_noise", "t2v", dtype, False)
        assert [witness.name for witness in scan.witnesses] == [
            f"low_noise_model/diffusion_pytorch_model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
        ]
        for witness in scan.witnesses:
            data = (tmp_path / witness.name).read_bytes()
            assert (witness.size_bytes, witness.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            assert witness.trusted is False
        assert expert.scan(hash_files=False).run() == scan.identity


def test_file_hashes_include_what_is_not_the_transformer(tmp_path: Path) -> None:
    prefix = "model.diffusion_model."
    plan = [("vae.first", "F32", (7,)), *((prefix + name, "BF16", shape) for name, shape in tiny().tensors().items()),
            ("vae.last", "F16", (3,))]  # fmt: skip
    shapes = {name: shape for name, _, shape in plan}
    write_file(tmp_path / "low_noise.safetensors", plan, lambda name: torch.full(shapes[name], 0.5))
    with open_checkpoint(tmp_path / "low_noise.safetensors") as checkpoint:
        scan = checkpoint.experts["low_noise"].scan()
        assert {tensor.name for tensor in scan} == set(tiny().tensors())
    data = (tmp_path / "low_noise.safetensors").read_bytes()
    assert [(witness.name, witness.sha256) for witness in scan.witnesses] == [
        ("low_noise.safetensors", hashlib.sha256(data).hexdigest())
    ]


def test_each_byte_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_expert(tmp_path, tiny().tensors(), shards=2)
    ranges: list[tuple[int, int]] = []
    real = os.preadv

    def counting(descriptor: int, buffers: Any, offset: int, *flags: int) -> int:
        count = real(descriptor, buffers, offset, *flags)
        ranges.append((offset, count))
        return count

    with open_checkpoint(tmp_path) as checkpoint:
        expert = checkpoint.experts["single"]
        monkeypatch.setattr(os, "preadv", counting)
        expert.scan().run()
    assert sum(count for _, count in ranges) == sum(file.stat().st_size for file in expert.files)


class Recorder(Silent):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, label: str, total: int, unit: str) -> None:
        self.calls += [(label, unit), total]

    def advance(self, amount: int = 1) -> None:
        self.calls.append(-amount)

    def finish(self) -> None:
        self.calls.append("end")


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors(), shards=2)
    recorder = Recorder()
    with open_checkpoint(tmp_path) as checkpoint:
        checkpoint.experts["single"].scan(recorder).run()
    assert recorder.calls[0] == ("reading single", "B")
    assert recorder.calls[-1] == "end"
    assert sum(call for call in recorder.calls if isinstance(call, int)) == 0


def test_a_pass_over_a_file_that_changes_is_an_error(tmp_path: Path) -> None:
    (file,) = write_expert(tmp_path, tiny().tensors())
    with open_checkpoint(tmp_path) as checkpoint:
        scan = checkpoint.experts["single"].scan()
        next(scan)
        os.truncate(file, file.stat().st_size - 1)
        with pytest.raises(TruncatedFileError):
            scan.run()
    write_expert(tmp_path, tiny().tensors())
    with open_checkpoint(tmp_path) as checkpoint:
        scan = checkpoint.experts["single"].scan()
        next(scan)
        with open(file, "r+b") as handle:
            handle.write(b"\0")
        os.utime(file, ns=(1, 1))
        with pytest.raises(UnreadableFileError, match="changed"):
            scan.run()
        assert not scan.finished


def test_a_pass_can_be_given_up(tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors())
    with open_checkpoint(tmp_path) as checkpoint:
        scan = checkpoint.experts["single"].scan()
        next(scan)
        scan.close()
        assert list(scan) == []
        with pytest.raises(RuntimeError):
            scan.run()


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_memory_does_not_grow_with_the_model(dtype: str, tmp_path: Path) -> None:
    """12 blocks of 21 MB in F32; the pass may hold two rounded tensors of 4.7 MB and its chunks."""
    made = tiny(dim=768, ffn_dim=3072, num_layers=12)
    write_expert(tmp_path, made.tensors(), dtype=dtype, seed=None)
    with open_checkpoint(tmp_path) as checkpoint:
        expert = checkpoint.experts["single"]
        largest = 2 * max(torch.Size(shape).numel() for shape in made.tensors().values())
        peak = peak_of(lambda: expert.scan().run())
    assert peak < 2 * largest + 16_000_000


def peak_of(work: Any) -> int:
    """Peak growth of resident memory in bytes: torch's tensors do not show up in tracemalloc."""
    import threading

    page = os.sysconf("SC_PAGESIZE")

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * page

    before, peak, stop = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, resident())

    tracemalloc.start()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
        python_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return max(peak - before, python_peak)
