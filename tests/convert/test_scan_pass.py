"""The threads of a pass: the same digests and results for any number of them, and the same error."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import HANG_S
from synthetic import tiny, write_checkpoint, write_expert

from hfq.convert import scan_parts, scan_pass
from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.scan import ScannedTensor
from hfq.convert.threads import StoppedError, check_stopped, thread_count
from hfq.schema.errors import TruncatedFileError

THREADS = (1, 2, 4)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks a tensor, as in a file of gigabytes."""
    for module in (scan_pass, scan_parts):
        monkeypatch.setattr(module, "CHUNK_BYTES", 4096)
        monkeypatch.setattr(module, "FED_BYTES", 2048)


@pytest.fixture(params=THREADS)
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("hfq-pass")}


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "mixed"])
def test_digests_and_values_are_those_of_one_tensor_after_another(dtype: str, threads: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny(), "original-2.2", dtype=dtype, shards=3)
    with open_checkpoint(tmp_path) as checkpoint:
        expert = checkpoint.experts["low_noise"]
        one_by_one = expert.scan()
        expected = [(t.name, t.dtype, t.shape, t.exact_sha256, t.bf16_sha256, t.bf16.clone()) for t in one_by_one]
        scan = expert.scan()

        def look(tensor: ScannedTensor) -> tuple[Any, ...]:
            values = tensor.bf16.clone()
            return tensor.name, tensor.dtype, tensor.shape, tensor.exact_sha256, tensor.bf16_sha256, values

        found = scan.each(look)
        assert [entry[:-1] for entry in found] == [entry[:-1] for entry in expected]
        assert all(torch.equal(a[-1], b[-1]) for a, b in zip(found, expected, strict=True))
        assert scan.identity == one_by_one.identity == expert.scan().run()
        assert scan.witnesses == one_by_one.witnesses
        for witness in scan.witnesses:
            assert witness.sha256 == hashlib.sha256((tmp_path / witness.name).read_bytes()).hexdigest()
    assert not names_of_threads()


def test_without_file_hashes_the_digests_are_the_same(threads: int, tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors(), dtype="F32", shards=2)
    with open_checkpoint(tmp_path) as checkpoint:
        expert = checkpoint.experts["single"]
        hashed, bare = expert.scan(), expert.scan(hash_files=False)
        assert hashed.run() == bare.run()
        assert hashed.witnesses
        assert not bare.witnesses
        worked = expert.scan(hash_files=False)
        assert worked.each(lambda tensor: tensor.exact_sha256) == [tensor.exact_sha256 for tensor in expert.scan()]


def test_tensors_of_one_file_are_hashed_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors(), dtype="F32")
    # Nobody gets past the barrier alone, and the chunks of one tensor fill all buffers.
    barrier, met = threading.Barrier(2, timeout=HANG_S), set[str]()
    digest_chunk = scan_parts.TensorPass.digest_chunk

    def wait(tensor: scan_parts.TensorPass, chunk: scan_parts.Chunk) -> None:
        if tensor.left > 4 and len(met) < 2 and tensor.name not in met:
            met.add(tensor.name)
            barrier.wait()
        digest_chunk(tensor, chunk)

    monkeypatch.setattr(scan_parts.TensorPass, "digest_chunk", wait)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with open_checkpoint(tmp_path) as checkpoint:
            checkpoint.experts["single"].scan(hash_files=False).run()
    finally:
        torch.set_num_threads(before)
    assert len(met) == 2


class Rows:
    """Keeps what it is fed with."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape, self.parts = name, shape, list[torch.Tensor]()

    def feed(self, rows: torch.Tensor) -> None:
        assert rows.shape[1:] == self.shape[1:]
        self.parts.append(rows.clone())

    def end(self, tensor: ScannedTensor) -> tuple[Any, ...]:
        assert (tensor.name, tensor.shape, tensor.bf16.numel()) == (self.name, self.shape, 0)
        return tensor.name, tensor.exact_sha256, tensor.bf16_sha256, torch.cat(self.parts).reshape(self.shape)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("trusted", [False, True])
def test_rows_are_fed_in_order(dtype: str, trusted: bool, threads: int, tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors(), dtype=dtype, shards=2)
    with open_checkpoint(tmp_path) as checkpoint:
        expert = checkpoint.experts["single"]
        expected = {tensor.name: tensor for tensor in expert.scan()}
        divided: list[str] = []

        def begin(name: str, shape: tuple[int, ...]) -> Rows | None:
            # Every third tensor goes the whole way, beside those that are fed.
            if len(expected) and list(expected).index(name) % 3 == 0:
                return None
            divided.append(name)
            return Rows(name, shape)

        def whole(tensor: ScannedTensor) -> tuple[Any, ...]:
            return tensor.name, tensor.exact_sha256, tensor.bf16_sha256, tensor.bf16.clone()

        scan = expert.scan(trust_witness=trusted)
        found = scan.each(whole, begin=begin)
        assert len(divided) > 10
        assert [entry[0] for entry in found] == list(expected)
        for name, exact, bf16, values in found:
            assert (exact, bf16) == (expected[name].exact_sha256, expected[name].bf16_sha256)
            assert torch.equal(values, expected[name].bf16)
        assert scan.identity == expert.identity()


def test_an_error_of_rows_ends_the_pass(threads: int, tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors(), shards=2)

    class Bad(Rows):
        def feed(self, rows: torch.Tensor) -> None:
            if self.name.startswith("blocks.1."):
                raise ValueError(self.name)

        def end(self, tensor: ScannedTensor) -> tuple[Any, ...]:
            return ()

    with open_checkpoint(tmp_path) as checkpoint:
        order = [tensor.name for tensor in checkpoint.experts["single"].scan()]
        first = next(name for name in order if name.startswith("blocks.1."))
        with pytest.raises(ValueError, match=first):
            checkpoint.experts["single"].scan().each(lambda _: None, begin=Bad)
    assert not names_of_threads()


def test_work_is_done_side_by_side_on_single_threads(tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors())
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        # Nobody gets past the barrier alone.
        barrier, first = threading.Barrier(3, timeout=HANG_S), iter(range(3))
        inside: list[int] = []

        def work(_: ScannedTensor) -> None:
            if next(first, None) is not None:
                barrier.wait()
            inside.append(torch.get_num_threads())

        with open_checkpoint(tmp_path) as checkpoint:
            checkpoint.experts["single"].scan().each(work)
    finally:
        torch.set_num_threads(before)
    assert set(inside) == {1}


def test_works_that_need_memory_wait_for_each_other(tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors())
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    lock, running, most = threading.Lock(), 0, 0
    # The first two meet: neither gets past the barrier alone.
    barrier, first = threading.Barrier(2, timeout=HANG_S), iter(range(2))

    def work(_: ScannedTensor) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            meets = next(first, None) is not None
        if meets:
            barrier.wait()
        with lock:
            running -= 1

    try:
        with open_checkpoint(tmp_path) as checkpoint:
            checkpoint.experts["single"].scan().each(work, cost=lambda _: 10, memory_bytes=29)
            assert most == 2
            most = 0
            checkpoint.experts["single"].scan().each(work, cost=lambda _: 100, memory_bytes=29)
            assert most == 1  # what is larger than the memory runs alone
    finally:
        torch.set_num_threads(before)


def test_the_first_error_in_file_order_is_raised(threads: int, tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors(), shards=3)
    with open_checkpoint(tmp_path) as checkpoint:
        expert = checkpoint.experts["single"]
        order = [tensor.name for tensor in expert.scan()]
        bad = {order[7], order[9], order[40], order[-1]}
        seen: list[str] = []

        def work(tensor: ScannedTensor) -> None:
            seen.append(tensor.name)
            if tensor.name in bad:
                time.sleep(0.05 if tensor.name == order[7] else 0)
                raise ValueError(tensor.name)

        scan = expert.scan()
        with pytest.raises(ValueError, match=order[7]):
            scan.each(work)
        assert set(order[:8]) <= set(seen)  # what comes before the error has been done
        assert not scan.finished
        with pytest.raises(RuntimeError):
            scan.run()
    assert not names_of_threads()


def test_a_file_that_shrinks_is_an_error(threads: int, tmp_path: Path) -> None:
    first, second = write_expert(tmp_path, tiny().tensors(), shards=2)
    with open_checkpoint(tmp_path) as checkpoint:
        os.truncate(second, second.stat().st_size - 1)
        with pytest.raises(TruncatedFileError, match=second.name):
            checkpoint.experts["single"].scan().run()
        os.truncate(first, first.stat().st_size // 2)
        with pytest.raises(TruncatedFileError, match=first.name):
            checkpoint.experts["single"].scan().each(lambda _: None)
    assert not names_of_threads()


def test_an_interruption_ends_long_work(tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors())
    stopped: list[bool] = []
    started = threading.Event()

    class Interrupting:
        def start(self, label: str, total: int, unit: str) -> None: ...
        def note(self, text: str) -> None: ...
        def finish(self) -> None: ...
        def advance(self, amount: int = 1) -> None:
            started.wait(HANG_S)
            raise KeyboardInterrupt  # what Ctrl-C does in the main thread

    def work(_: ScannedTensor) -> None:
        started.set()
        deadline = time.monotonic() + HANG_S
        try:
            while time.monotonic() < deadline:
                check_stopped()
                time.sleep(0.001)
        except StoppedError:
            stopped.append(True)
            raise

    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(KeyboardInterrupt):
        checkpoint.experts["single"].scan(Interrupting()).each(work)
    assert stopped
    assert not names_of_threads()
    check_stopped()  # outside a pass there is nothing to stop


def test_other_errors_do_not_hide_an_interruption(threads: int, tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors())

    def work(tensor: ScannedTensor) -> None:
        raise KeyboardInterrupt if tensor.name.startswith("blocks.1") else ValueError

    with open_checkpoint(tmp_path) as checkpoint, pytest.raises((KeyboardInterrupt, ValueError)) as caught:
        checkpoint.experts["single"].scan().each(work)
    assert caught.type is ValueError or threads > 1


def test_a_pass_is_gone_through_once(tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors())
    with open_checkpoint(tmp_path) as checkpoint:
        scan = checkpoint.experts["single"].scan()
        next(scan)
        with pytest.raises(RuntimeError, match="begun"):
            scan.each(lambda _: None)


def test_inspect_needs_no_torch_and_obeys_the_environment(tmp_path: Path) -> None:
    write_expert(tmp_path, tiny().tensors(), dtype="F32")
    program = (
        "import sys; from hfq.cli import run; from hfq.convert.threads import thread_count;"
        "code = run(['inspect', sys.argv[1], '--json']);"
        "print('torch' in sys.modules, thread_count(), file=sys.stderr); sys.exit(code)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stderr.splitlines()[-1] == "False 3"
    assert thread_count() == torch.get_num_threads()


def test_a_thread_that_gets_no_memory_is_waited_for_by_nobody(
    threads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_expert(tmp_path, tiny().tensors(), dtype="F32")
    take, taken = scan_parts.Buffers.take, iter(range(3))

    def refuse(buffers: scan_parts.Buffers) -> Any:
        if next(taken, None) is None:
            raise MemoryError("no more")
        return take(buffers)

    monkeypatch.setattr(scan_parts.Buffers, "take", refuse)
    raised: list[BaseException] = []

    def scan() -> None:
        with open_checkpoint(tmp_path) as checkpoint:
            try:
                checkpoint.experts["single"].scan().each(lambda _: None)
            except MemoryError as error:
                raised.append(error)

    outside = threading.Thread(target=scan, daemon=True)
    outside.start()
    outside.join(HANG_S)
    assert [str(error) for error in raised] == ["no more"]
    assert not names_of_threads()
