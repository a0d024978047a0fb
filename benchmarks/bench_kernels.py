"""Rows of the kernels: every work of the two formats against its eager twin, its peers and two limits, in one run.

Bytes moved are those of the operands and of the result, each counted once: what has to cross the memory bus at least.
`copy_` copies half as many between buffers that are there, so that it moves the same. `fill_` writes one value into new
memory of the result's size, which no call can do without that returns a new tensor. SHA-256 is of the operands' bytes,
on as many threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from bench_peers import Inputs, Peer, fitted
from timing import Candidate, paired, ratio, spread, system_share
from torch import Tensor

from hfq.formats import Hif4Tensor, Hif8Tensor, _compiled, hif4, hif8
from hfq.formats.rounding import round_to_bf16

__all__ = ["MORE", "WORKS", "Work", "eager", "measure", "measure_sizes"]

LIMITS: Final = ("copy_", "fill_", "sha256")


@dataclasses.dataclass(frozen=True)
class Work:
    """One work of ours.

    Attributes:
        label: in words.
        operands: what it reads.
        run: does it once.
    """

    label: str
    operands: Callable[[Inputs], tuple[Any, ...]]
    run: Callable[..., Any]


def _works(name: str, label: str, quantize: Callable[..., Any], qdq: Callable[..., Any]) -> dict[str, Work]:
    return {
        f"{name}.quantize": Work(f"{label} quantize, BF16 to codes", lambda i: (i.x,), quantize),
        f"{name}.dequantize": Work(
            f"{label} dequantize, codes to BF16", lambda i: (quantize(i.x),), lambda stored: stored.dequantize()
        ),
        f"{name}.qdq": Work(f"{label} quantize-dequantize, BF16 to BF16", lambda i: (i.x,), qdq),
        f"{name}.weight": Work(
            f"{label} weight, F32 rounded to BF16, over mask, to codes",
            lambda i: (i.source, i.mask),
            lambda source, mask: quantize(source, through=torch.bfloat16, divisor=mask),
        ),
        f"{name}.activation": Work(
            f"{label} activation, BF16 times mask, to BF16",
            lambda i: (i.x, i.mask),
            lambda x, mask: qdq(x, factor=mask),
        ),
    }


def _row_quantize(x: Tensor, **options: Any) -> Hif8Tensor:
    return hif8.quantize(x, scale="row", **options)


def _row_qdq(x: Tensor, **options: Any) -> Tensor:
    return hif8.qdq(x, scale="row", **options)


WORKS: Final[dict[str, Work]] = {
    **_works("hif4", "HiF4", hif4.quantize, hif4.qdq),
    **_works("hif8", "HiF8", hif8.quantize, hif8.qdq),
    **_works("hif8-row", "HiF8, row scales:", _row_quantize, _row_qdq),
}
"""The works that peers are asked for."""


def _under(inputs: Inputs) -> tuple[Any, ...]:
    return inputs.x, hif4.quantize(inputs.x).scale


def _dequantize_times(stored: Hif4Tensor | Hif8Tensor, mask: Tensor) -> Tensor:
    return stored.dequantize(factor=mask)


def _profile(name: str) -> Work:
    run = functools.partial(hif4.qdq, profile=name)
    return Work(f"HiF4 quantize-dequantize, profile {name}", lambda i: (i.x,), run)


MORE: Final[dict[str, Work]] = {
    "hif4.search": Work(
        "HiF4 quantize with scale search", lambda i: (i.x,), functools.partial(hif4.quantize, scale_search=True)
    ),
    "hif4.under": Work("HiF4 quantize under given scale words", _under, hif4.quantize_under),
    "hif4.error": Work(
        "HiF4 squared error of stored codes", lambda i: (hif4.quantize(i.x), i.x), Hif4Tensor.squared_error
    ),
    "hif4.restore": Work(
        "HiF4 dequantize, times mask, to BF16", lambda i: (hif4.quantize(i.x), i.mask), _dequantize_times
    ),
    **{f"hif4.qdq.{name}": _profile(name) for name in hif4.PROFILES if name != "ref"},
    "hif8.restore": Work(
        "HiF8 dequantize, times mask, to BF16", lambda i: (hif8.quantize(i.x), i.mask), _dequantize_times
    ),
    "hif8.error": Work(
        "HiF8 squared error of stored codes", lambda i: (hif8.quantize(i.x), i.x), Hif8Tensor.squared_error
    ),
    "bf16.round": Work("F32 rounded to BF16", lambda i: (i.source,), round_to_bf16),
}
"""Works for smaller tensors: the eager twin of the search would take minutes for all runs on large ones."""


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Inside, the formats run their eager twins.

    Raises:
        RuntimeError: they would not, because the switch is no longer there.
    """
    usable = _compiled._usable
    large = torch.empty(1).expand(1 << 30)
    _compiled._usable = _never  # type: ignore[assignment]
    try:
        if _compiled.runs_compiled(large, large):
            raise RuntimeError("the eager twin cannot be chosen")
        yield
    finally:
        _compiled._usable = usable


def _never() -> bool:
    return False


def measure(
    key: str, inputs: Inputs, threads: int, peers: Mapping[str, Peer], *, rounds: int, peer_s: float
) -> dict[str, Any]:
    """A row: one work on one tensor with so many threads.

    Args:
        peers: who is asked; those without such work are left out.
        rounds: see `timing.paired`.
        peer_s: a peer that needs longer gets fewer leading rows, and its figure says how many elements.

    Returns:
        work, elements, threads, bytes moved, seconds [median, smallest, largest], the system's share of the CPU time,
        and for every other its seconds per call, its elements, and how many times faster ours is per element.

    Raises:
        RuntimeError: the compiled code and the eager twin disagree: there is no point in timing either.
    """
    torch.set_num_threads(threads)
    work, elements = (WORKS | MORE)[key], inputs.x.numel()
    operands = work.operands(inputs)
    result = work.run(*operands)
    _check_twins(key, work, operands, result)
    read = [tensor for operand in operands for tensor in _tensors(operand)]
    written = sum(tensor.nbytes for tensor in _tensors(result))
    moved = sum(tensor.nbytes for tensor in read) + written
    del result
    ours = Candidate(lambda: work.run(*operands))
    candidates = {"ours": ours, "eager": dataclasses.replace(ours, around=eager)}
    counts = dict.fromkeys(("ours", "eager", *LIMITS), elements)
    for name, peer in peers.items():
        if key in peer.works:
            run, counts[name] = fitted(peer.works[key], inputs, peer_s)
            candidates[name] = Candidate(run)
    with _limits(read, moved, written, threads) as limits:
        seconds = paired(candidates | limits, rounds=rounds)
    own = seconds.pop("ours")
    return {
        "work": key,
        "elements": elements,
        "threads": threads,
        "bytes_moved": moved,
        "seconds": spread(own),
        "system_share": system_share(ours, rounds),
        "against": {
            name: {
                "seconds": spread(found),
                "elements": counts[name],
                "ratio": ratio(found, own, scale=elements / counts[name]),
            }
            for name, found in seconds.items()
        },
    }


def measure_sizes(keys: Sequence[str], elements: Sequence[int], threads: int, *, rounds: int) -> list[dict[str, Any]]:
    """Rows against the eager twin alone, for tensors of several sizes, 1,024 wide; nothing was promised for these."""
    made = [Inputs.made(count, 1024) for count in elements]
    rows = [measure(key, inputs, threads, {}, rounds=rounds, peer_s=0.0) for key in keys for inputs in made]
    return [{**row, "scaling": True, "against": {"eager": row["against"]["eager"]}} for row in rows]


def _check_twins(key: str, work: Work, operands: tuple[Any, ...], result: Any) -> None:
    with eager():
        expected = work.run(*operands)
    for ours, twin in zip(_tensors(result), _tensors(expected), strict=True):
        if not torch.equal(_bytes(ours), _bytes(twin)):
            raise RuntimeError(f"{key}: the compiled code and the eager twin disagree")


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Hif4Tensor | Hif8Tensor):
        return [value.codes, value.scale]
    return [torch.tensor(value, dtype=torch.float64)] if isinstance(value, tuple) else [value]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@contextlib.contextmanager
def _limits(read: Sequence[Tensor], moved: int, written: int, threads: int) -> Iterator[dict[str, Candidate]]:
    source = torch.ones(max(1, moved // 2), dtype=torch.uint8)
    target = torch.ones_like(source)
    pieces = [piece.numpy() for tensor in read for piece in _bytes(tensor).chunk(threads)]
    with ThreadPoolExecutor(threads) as pool:
        yield {
            "copy_": Candidate(lambda: target.copy_(source)),
            "fill_": Candidate(lambda: torch.empty(written, dtype=torch.uint8).fill_(1)),
            "sha256": Candidate(_hashing(pool, pieces, threads)),
        }


def _hashing(pool: ThreadPoolExecutor, pieces: Sequence[Any], threads: int) -> Callable[[], Any]:
    def digest(piece: Any) -> bytes:
        return hashlib.sha256(piece).digest()

    if threads == 1:
        return lambda: [digest(piece) for piece in pieces]
    return lambda: list(pool.map(digest, pieces))
