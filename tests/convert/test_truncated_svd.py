"""Low-rank factors against numpy's full SVD in float64; their product against loops in numpy fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

import hfq.convert.truncated_svd as truncated_svd
from hfq.convert.truncated_svd import add_low_rank, low_rank_factors, subtract_low_rank
from hfq.schema.errors import NonFiniteWeightError, RecipeError, UsageError

Doubles = npt.NDArray[np.float64]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gaussian(out_features: int, in_features: int, seed: int = 0) -> Doubles:
    return np.random.default_rng(seed).standard_normal((out_features, in_features)) * 0.02


def with_spectrum(values: Doubles, seed: int = 0) -> Doubles:
    """A square matrix with these singular values."""
    side = len(values)
    left, right = (np.linalg.qr(gaussian(side, side, seed + n))[0] for n in (0, 1))
    return (left * values) @ right


def strong(side: int) -> Doubles:
    """Noise, and three directions that tower over it."""
    return gaussian(side, side) + gaussian(side, 3, 1) @ gaussian(3, side, 2) * 40


WEIGHTS: dict[str, Callable[[], Doubles]] = {
    "noise": lambda: gaussian(640, 640),
    "tall noise": lambda: gaussian(1024, 576),
    "wide noise": lambda: gaussian(576, 1024),
    "strong directions": lambda: strong(640),
    "one direction": lambda: gaussian(640, 640) + gaussian(640, 1, 1) @ gaussian(1, 640, 2) * 1e4,
    "slow decay": lambda: with_spectrum(np.arange(1.0, 641) ** -0.05),
    "fast decay": lambda: with_spectrum(np.arange(1.0, 641) ** -1),
    "repeated values": lambda: with_spectrum(np.where(np.arange(640) < 40, 3.0, 1.0)),
    "orthogonal": lambda: with_spectrum(np.ones(640)),
    "identity": lambda: np.eye(640),
    "few columns": lambda: gaussian(640, 640) * (np.arange(640) < 100),
    "small": lambda: gaussian(300, 200),
    "tiny numbers": lambda: gaussian(640, 640) * 1e-30,
    "large numbers": lambda: gaussian(640, 640) * 1e15,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_is_left_is_the_least_possible(name: str) -> None:
    rank = 32
    weight = torch.from_numpy(WEIGHTS[name]()).float()
    exact = weight.double().numpy()
    values = np.linalg.svd(exact, compute_uv=False)
    down, up = low_rank_factors(weight, rank)
    assert (down.dtype, up.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (down.shape, up.shape) == ((rank, weight.shape[1]), (weight.shape[0], rank))
    left = np.linalg.norm(exact - up.double().numpy() @ down.double().numpy())
    least = np.linalg.norm(values[rank:])
    # BF16 adds an error of its own to what is taken: 2^-8 at most in an element of a factor, less in the mean.
    assert left < np.hypot(least * 1.0001, 2**-8 * np.linalg.norm(values[:rank]))
    # Before the factors are rounded nothing is to be added.
    energy = truncated_svd._energy(weight)
    near, found, far = truncated_svd._leading_triplets(weight, rank, energy)
    np.testing.assert_allclose(energy, np.sum(values**2), rtol=1e-9)
    left = np.linalg.norm(exact - (near * found).numpy() @ far.numpy().T)
    assert left < least * (1 + 1e-5)
    np.testing.assert_allclose(found.numpy(), values[:rank], rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 16, 64, 128])
@pytest.mark.parametrize("side", [520, 640])
def test_ranks(side: int, rank: int) -> None:
    exact = gaussian(side, side).astype(np.float32).astype(np.float64)
    down, up = low_rank_factors(torch.from_numpy(exact).float(), rank)
    left = np.linalg.norm(exact - up.double().numpy() @ down.double().numpy())
    assert left < 1.001 * np.linalg.norm(np.linalg.svd(exact, compute_uv=False)[rank:])


@pytest.mark.parametrize("side", [96, 640])
def test_factors_share_the_singular_values(side: int) -> None:
    """Both factors have sqrt(S) as the lengths of their vectors, and each left vector a positive largest component."""
    exact = with_spectrum(0.9 ** np.arange(side))
    down, up = (factor.double().numpy() for factor in low_rank_factors(torch.from_numpy(exact).float(), 8))
    roots = np.sqrt(0.9 ** np.arange(8))
    np.testing.assert_allclose(np.linalg.norm(up, axis=0), roots, rtol=2**-8)
    np.testing.assert_allclose(np.linalg.norm(down, axis=1), roots, rtol=2**-8)
    assert (up[np.abs(up).argmax(0), np.arange(8)] > 0).all()
    left, _, right = np.linalg.svd(exact)
    turned = np.sign(left[np.abs(left[:, :8]).argmax(0), np.arange(8)])
    np.testing.assert_allclose(up, left[:, :8] * turned * roots, atol=2e-3)
    np.testing.assert_allclose(down, (right[:8].T * turned * roots).T, atol=2e-3)


def test_a_matrix_of_low_rank_is_all_taken() -> None:
    exact = gaussian(640, 20) @ gaussian(20, 640, 1)
    down, up = low_rank_factors(torch.from_numpy(exact).float(), 32)
    assert bool(torch.isfinite(down).all())
    assert bool(torch.isfinite(up).all())
    # All that is left is the rounding of the factors, 2^-8 at most in an element.
    assert np.linalg.norm(exact - up.double().numpy() @ down.double().numpy()) < 2**-8 * np.linalg.norm(exact)


@pytest.mark.parametrize("side", [100, 640])
def test_a_zero_weight_has_zero_factors(side: int) -> None:
    down, up = low_rank_factors(torch.zeros(side, 700), 16)
    assert (down.shape, up.shape) == ((16, 700), (side, 16))
    assert not down.any()
    assert not up.any()


@pytest.mark.parametrize("shape", [(200, 160), (640, 700)])
def test_same_bits_wherever_the_weight_lies(shape: tuple[int, int]) -> None:
    weight = torch.from_numpy(gaussian(*shape)).float()
    first = low_rank_factors(weight, 16)
    torch.manual_seed(99)
    shifted = torch.empty(weight.numel() + 1)[1:].view(shape)
    shifted.copy_(weight)
    transposed = weight.T.contiguous().T
    for other in (weight, shifted, transposed):
        for one, two in zip(first, low_rank_factors(other, 16), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("rank", [0, -1, 65])
def test_a_rank_out_of_range_is_refused(rank: int) -> None:
    with pytest.raises(RecipeError, match="1 to 64"):
        low_rank_factors(torch.ones(64, 80), rank)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused(value: float) -> None:
    weight = torch.ones(600, 700)
    weight[599, 3] = value
    with pytest.raises(NonFiniteWeightError, match=r"\[599, 3\]"):
        low_rank_factors(weight, 8)


@pytest.mark.parametrize("weight", [torch.ones(8, 8).bfloat16(), torch.ones(8), torch.ones(2, 8, 8)])
def test_what_is_no_fp32_matrix_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(UsageError):
        low_rank_factors(weight, 2)


def operands(out_features: int, in_features: int, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight and factors over many octaves, so that the order of sums shows in the bits."""
    generator = np.random.default_rng(4)

    def values(*shape: int) -> torch.Tensor:
        spread = np.exp2(generator.integers(-6, 7, shape))
        return torch.from_numpy((generator.standard_normal(shape) * spread).astype(np.float32))

    weight, down, up = values(out_features, in_features), values(rank, in_features), values(out_features, rank)
    return weight, down.bfloat16(), up.bfloat16()


def loop(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, sign: int) -> npt.NDArray[np.float32]:
    """The specification, rank by rank and row by row."""
    total = weight.numpy().copy()
    rows, columns = down.float().numpy(), up.float().numpy()
    for row in range(total.shape[0]):
        for r in range(rows.shape[0]):
            product = (columns[row, r] * rows[r]).astype(np.float32)
            total[row] = total[row] + product if sign > 0 else total[row] - product
    return total


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 64, 1), (37, 1536, 32), (600, 1536, 5), (256, 65, 40)])
def test_the_product_has_the_bits_of_a_loop(shape: tuple[int, int, int], threads: int) -> None:
    torch.set_num_threads(threads)
    weight, down, up = operands(*shape)
    kept = weight.clone()
    assert subtract_low_rank(weight, down, up).numpy().tobytes() == loop(weight, down, up, -1).tobytes()
    assert add_low_rank(weight, down, up).numpy().tobytes() == loop(weight, down, up, 1).tobytes()
    assert torch.equal(weight, kept)


def test_a_product_that_underflows_is_rounded_before_the_difference() -> None:
    """Half the least subnormal becomes 0 by itself; fused into the difference 3 - 1/2 it would leave 2."""
    down = torch.full((1, 64), 2.0**-70).bfloat16()
    up = torch.full((8, 1), 2.0**-80).bfloat16()
    weight = torch.full((8, 64), 3 * 2.0**-149)
    assert torch.equal(subtract_low_rank(weight, down, up), weight)
    assert subtract_low_rank(weight, down, up).numpy().tobytes() == loop(weight, down, up, -1).tobytes()


def test_order_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, down, up = operands(100, 320, 8)
    expected = subtract_low_rank(weight, down, up)
    # The operands tell orders apart: backwards, other bits.
    assert not torch.equal(subtract_low_rank(weight, down.flip(0), up.flip(1)), expected)
    assert torch.equal(subtract_low_rank(weight.T.contiguous().T, down.T.contiguous().T, up), expected)
    assert torch.equal(subtract_low_rank(weight[10:20], down, up[10:20]), expected[10:20])
    for chunk in (1, 1000, 1 << 22):
        monkeypatch.setattr(truncated_svd, "_CHUNK", chunk)
        assert torch.equal(subtract_low_rank(weight, down, up), expected)


def test_adding_undoes_subtracting() -> None:
    weight, down, up = operands(64, 320, 16)
    back = add_low_rank(subtract_low_rank(weight, down, up), down, up)
    scale = weight.abs() + up.float().abs() @ down.float().abs()
    assert bool(((back - weight).abs() <= 32 * 2**-24 * scale).all())
    product = up.double() @ down.double()
    assert bool(((subtract_low_rank(weight, down, up) - (weight - product)).abs() <= 32 * 2**-24 * scale).all())


@pytest.mark.parametrize("function", [subtract_low_rank, add_low_rank])
def test_factors_that_do_not_fit_are_refused(function: Callable[..., torch.Tensor]) -> None:
    weight, down, up = operands(64, 128, 4)
    for wrong in (
        (weight.double(), down, up),
        (weight, down.float(), up),
        (weight, down, up.float()),
        (weight, down[:3], up),
        (weight, down[:, :1], up),
        (weight, down, up[:1]),
        (weight[0], down, up),
    ):
        with pytest.raises(UsageError):
            function(*wrong)
