"""The compiled statistics are the eager ones, bit for bit, and both are what the definition says."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hfq.convert import accumulator
from hfq.convert.accumulator import Accumulator
from hfq.convert.collector import Collector, GroupInput
from hfq.convert.group_statistics import GroupStatistics
from hfq.convert.histogram import COUNT_LIMIT, Histogram
from hfq.convert.schedule import expert_schedules
from hfq.convert.statistics_compiled import observe, observes
from hfq.schema.errors import CalibrationRangeError, NonFiniteActivationError

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def statistics_of(calls: list[Tensor], rows: int | None, key: Callable[[int], str]) -> GroupStatistics:
    made = Accumulator(len(calls), calls[0].shape[1], rows, torch.device("cpu"))
    for index, x in enumerate(calls):
        made.add(x, index, key(index))
    made.flush()
    return made.statistics


def both(
    monkeypatch: pytest.MonkeyPatch, calls: list[Tensor], rows: int | None = None, keys: int = 1
) -> tuple[GroupStatistics, GroupStatistics]:
    """Statistics by the kernels, of inputs of any size, and without them."""
    before = [x.clone() for x in calls]
    monkeypatch.setattr(accumulator, "observes", lambda x: True)
    compiled = statistics_of(calls, rows, lambda index: f"key{index % keys}")
    assert all(x.equal(y) or bool(x.isnan().any()) for x, y in zip(calls, before, strict=True))
    monkeypatch.setattr(accumulator, "observes", lambda x: False)
    return compiled, statistics_of(calls, rows, lambda index: f"key{index % keys}")


def assert_same(left: GroupStatistics, right: GroupStatistics) -> None:
    assert torch.equal(left.max.view(torch.int32), right.max.view(torch.int32))
    assert torch.equal(left.sum_squares.view(torch.int64), right.sum_squares.view(torch.int64))
    assert torch.equal(left.count, right.count)
    assert list(left.histograms) == list(right.histograms)
    for key, histogram in left.histograms.items():
        other = right.histograms[key]
        assert (histogram.counts.dtype, histogram.top.dtype) == (other.counts.dtype, other.top.dtype)
        assert torch.equal(histogram.counts, other.counts)
        assert torch.equal(histogram.top, other.top)


def spread(rows: int, channels: int, seed: int = 0, octaves: int = 24) -> Tensor:
    """BF16 of many octaves, so that the order of additions shows in the sum's last bits, and some zeros."""
    generator = torch.Generator().manual_seed(seed + 977 * rows + channels)
    exponents = torch.randint(-octaves, octaves + 1, (rows, channels), generator=generator)
    x = torch.ldexp(torch.randn(rows, channels, generator=generator), exponents)
    return (x * (torch.rand(rows, channels, generator=generator) > 0.1)).bfloat16()


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 255, 257, 1000, 4095, 4096, 4097, 8500])
def test_the_bits_of_the_eager_path(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Around every length at which the cascade of additions or the parts change; blocks that are not full."""
    for channels in (32, 160) if rows > 1000 else (32, 128, 352):
        calls = [spread(rows, channels, seed) for seed in range(2)]
        assert_same(*both(monkeypatch, calls))


@pytest.mark.parametrize("rows", [1, 7, 300, 4096, 6000])
def test_sampled_rows(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """The histogram sees the same rows; the largest value of a channel may be in another."""
    compiled, eager = both(monkeypatch, [spread(5000, 64, seed) for seed in range(3)], rows=rows)
    assert_same(compiled, eager)
    assert int(compiled.histograms["key0"].samples[0]) == 3 * min(rows, 5000)


def test_the_sum_is_the_documented_cascade(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 rows, 16 such sums, 16 of those, then what is left of each, from the lowest level up."""
    rows, channels = 16 * 16 * 3 + 16 * 5 + 7, 32
    x = spread(rows, channels)
    squares = x.float().numpy() ** 2
    levels, row = [np.zeros(channels) for _ in range(4)], 0
    for number in range(rows // 16):
        for _ in range(16):
            levels[0] = levels[0] + squares[row].astype(np.float64)
            row += 1
        for level in range(1, 4):
            levels[level], levels[level - 1] = levels[level] + levels[level - 1], np.zeros(channels)
            if (number + 1) % 16**level:
                break
    for last in squares[row:]:
        levels[0] = levels[0] + last.astype(np.float64)
    expected = ((levels[0] + levels[1]) + levels[2]) + levels[3]
    compiled, eager = both(monkeypatch, [x])
    assert compiled.sum_squares[0].tolist() == expected.tolist()
    assert eager.sum_squares[0].tolist() == expected.tolist()
    exact = [math.fsum(column.astype(np.float64)) for column in squares.T]
    assert np.allclose(compiled.sum_squares[0].numpy(), exact, rtol=1e-15 * 16, atol=0)


def test_order_matters_to_these_inputs() -> None:
    """Else the tests of equal bits would pass with any order."""
    squares = spread(4096, 32).double().square()
    assert not torch.equal(squares.sum(dim=0), squares.flip(0).sum(dim=0))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    x = spread(600, 32 * 23)  # six blocks of channels, the last one short
    torch.set_num_threads(threads)
    assert_same(*both(monkeypatch, [x]))


@pytest.mark.parametrize("growth", [1, 3, 7, 8, 40])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_window_that_moves(monkeypatch: pytest.MonkeyPatch, growth: int, sign: int) -> None:
    """From call to call, within a call from part to part, by octaves that differ from channel to channel."""
    calls = [spread(50, 32, call, 3) * 2.0 ** (sign * growth * call) for call in range(3)]
    calls.append(torch.cat([spread(4096, 32, 9, 2) * (torch.arange(32) * part).exp2().bfloat16() for part in range(2)]))
    assert_same(*both(monkeypatch, calls))


def test_histogram_keys_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same(*both(monkeypatch, [spread(40, 32, seed) for seed in range(4)], keys=2))


def silent() -> Tensor:
    x = spread(300, 64, octaves=4)
    x[:, ::3] = 0
    x[:, 1] = -0.0
    return x


def every_number() -> Tensor:
    """All of BF16, subnormal ones among them, whose squares leave float32 at both ends."""
    return torch.arange(0x7F80).short().view(torch.bfloat16).reshape(-1, 32)


def subnormal() -> Tensor:
    return torch.arange(160).short().view(torch.bfloat16).reshape(5, 32)


@pytest.mark.parametrize("make", [silent, every_number, subnormal])
def test_special_numbers(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Tensor]) -> None:
    assert_same(*both(monkeypatch, [make()]))


def test_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same channels of the same calls are found to be not finite, also when good rows come after."""
    bad = spread(5000, 64, octaves=2)
    bad[3, 5], bad[4999, 6], bad[17, 7], bad[20, 8] = math.nan, math.inf, -math.inf, 3.4e38
    bad[40, 9], bad[41, 9] = math.nan, math.inf
    bad[50, 10] = 1e20  # finite, but not its square in float32
    compiled, eager = both(monkeypatch, [spread(10, 64), bad, spread(10, 64)])
    for left, right in ((compiled.max, eager.max), (compiled.sum_squares, eager.sum_squares)):
        assert torch.equal(left.isfinite(), right.isfinite())
        assert torch.equal(left.isnan(), right.isnan())
    wrong = ~(compiled.max.isfinite() & compiled.sum_squares.isfinite())
    assert wrong.nonzero().tolist() == [[1, channel] for channel in (5, 6, 7, 8, 9, 10)]


def test_inputs_that_do_not_lie_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = spread(130, 256)
    views = [wide[:, ::2], wide[:, 32:160], wide[::2, :128], wide.t()[:128].t(), wide[:1, :128].expand(50, 128)]
    assert not any(view.is_contiguous() for view in views)
    assert_same(*both(monkeypatch, views))


def test_a_full_bin_is_refused() -> None:
    x = torch.ones(3, 32).bfloat16()
    full = Histogram.empty(32)
    full.add(x)
    full.counts[7, full.counts[7].argmax()] = COUNT_LIMIT - 3
    given = torch.arange(3), torch.zeros(32), torch.zeros(32, dtype=torch.float64)
    observe(x, *given, full)
    assert int(full.counts.max()) == COUNT_LIMIT
    with pytest.raises(CalibrationRangeError, match="too many samples"):
        observe(x, *given, full)


@pytest.mark.parametrize(
    ("rows", "channels", "expected"),
    [
        (4096, 256, True),
        (4096, 250, False),  # torch adds the last of these channels in another order
        (64, 256, False),  # waits for others
        (0, 256, False),
    ],
)
def test_what_the_kernels_take(rows: int, channels: int, expected: bool) -> None:
    assert observes(torch.zeros(rows, channels, dtype=torch.bfloat16)) is expected


class Model(nn.Module):
    """Two linears that read wide inputs, with what a pipeline's transformer has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(256, 512, bias=False), nn.Linear(512, 1, bias=False)

    @contextlib.contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        yield

    def forward(self, x: Tensor, timestep: Tensor) -> tuple[Tensor]:
        return (self.second(self.first(x)),)


def collected(scale: float, dtype: torch.dtype = torch.float32) -> GroupStatistics:
    """Statistics of the second linear over three calls; the last has a number that the first one blows up."""
    torch.manual_seed(0)
    model, timesteps = Model().to(dtype), [900.0, 600.0, 300.0]
    inputs = [GroupInput("single", name, getattr(model, name)) for name in ("first", "second")]
    schedules = expert_schedules(timesteps, ["single"], None, ["cond"])
    collector = Collector(
        {"single": model}, inputs, schedules, timesteps, rows=1000, by=("bins",), keep_inputs=50, keep_calls=0, seed=1,
        on_call=lambda: None,
    )  # fmt: skip
    collector.begin("0" * 64)
    with collector.attached(), torch.no_grad():
        for t, factor in zip(timesteps, (1.0, 1.0, scale), strict=True):
            x = torch.randn(2, 2048, 256)
            x[1, 77] *= factor
            with model.cache_context("cond"):
                model(x.to(dtype), timestep=torch.tensor([t]))
    return collector.finish().groups["single", "second"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_a_collector_gives_the_same(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    compiled = collected(1.0, dtype)
    monkeypatch.setattr(accumulator, "observes", lambda x: False)
    eager = collected(1.0, dtype)
    assert_same(compiled, eager)
    for index in range(3):
        assert torch.equal(compiled.inputs[index], eager.inputs[index])
        assert torch.equal(compiled.digests[index], eager.digests[index])


@pytest.mark.parametrize("scale", [math.nan, math.inf, 1e30])
def test_a_collector_refuses_the_same(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    messages = []
    for _ in range(2):
        with pytest.raises(NonFiniteActivationError, match="step 2") as caught:
            collected(scale)
        messages.append(str(caught.value))
        monkeypatch.setattr(accumulator, "observes", lambda x: False)
    assert messages[0] == messages[1]


def test_many_calls_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run mixes small inputs that wait with large ones that do not."""
    calls = [spread(rows, 256, rows) for rows in itertools.islice(itertools.cycle((3, 600, 40)), 9)]
    monkeypatch.setattr(accumulator, "observes", lambda x: x.shape[0] == 600)
    mixed = statistics_of(calls, None, lambda index: "all")
    monkeypatch.setattr(accumulator, "observes", lambda x: False)
    assert_same(mixed, statistics_of(calls, None, lambda index: "all"))
