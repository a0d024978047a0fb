"""The rotation: Sylvester's matrix, the bits of a butterfly written out in numpy, and signs recomputed by hand."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

import hfq.convert.hadamard as hadamard
from hfq.convert.hadamard import rotate, rotation_signs, unrotate
from hfq.schema.errors import UsageError

BLOCKS = (64, 128, 256)
WIDTHS = (1536, 5120, 8960, 13824, 14336)
Floats = npt.NDArray[np.float32]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def sylvester(block: int) -> npt.NDArray[np.float64]:
    """H_b as a Kronecker power."""
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.kron(matrix, np.array([[1.0, 1.0], [1.0, -1.0]]))
    return matrix


def dense(width: int, block: int, signs: torch.Tensor) -> npt.NDArray[np.float64]:
    """R with `rotate(x) = x R`, float64."""
    blocks = np.kron(np.eye(width // block), sylvester(block) / math.sqrt(block))
    return signs.double().numpy()[:, None] * blocks


def butterflies(x: Floats, block: int) -> Floats:
    """H_b x / sqrt(b) of vectors [n, b], pair by pair in numpy fp32."""
    x = x.copy()
    stride = 1
    while stride < block:
        for low in (i for i in range(block) if not i & stride):
            a, b = x[:, low].copy(), x[:, low + stride].copy()
            x[:, low], x[:, low + stride] = a + b, a - b
        stride *= 2
    return x * np.float32(1 / math.sqrt(block))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Gaussian values over nine octaves, so that the order of sums shows in the bits."""
    generator = np.random.default_rng(seed)
    spread = np.exp2(generator.integers(-4, 5, shape))
    return torch.from_numpy((generator.standard_normal(shape) * spread).astype(np.float32))


@pytest.mark.parametrize(("seed", "width"), [(0, 64), (0, 5120), (7, 5120), (2**53 - 1, 13824)])
def test_signs_are_a_sha256_stream(seed: int, width: int) -> None:
    expected: list[float] = []
    counter = 0
    while len(expected) < width:
        digest = hashlib.sha256(b"hfq.rotate/1\t%d\t%d\t%d" % (seed, width, counter)).digest()
        for bit in range(256):
            expected.append(-1.0 if digest[bit // 8] >> (7 - bit % 8) & 1 else 1.0)
        counter += 1
    signs = rotation_signs(seed, width)
    assert signs.dtype == torch.float32
    assert signs.tolist() == expected[:width]


def test_signs_ignore_the_random_state_of_torch() -> None:
    torch.manual_seed(1)
    first = rotation_signs(3, 1536)
    torch.manual_seed(2)
    assert torch.equal(first, rotation_signs(3, 1536))
    assert not torch.equal(first, rotation_signs(4, 1536))
    # A wrong bit order or a stuck counter would show as an imbalance: this bound is five standard deviations.
    assert abs(float(rotation_signs(3, 13824).sum())) < 5 * math.sqrt(13824)


@pytest.mark.parametrize("block", BLOCKS)
def test_is_the_hadamard_matrix(block: int) -> None:
    width = 3 * block
    signs = rotation_signs(5, width)
    matrix = dense(width, block, signs)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((9, width)).astype(np.float32))
    # Of a value near 1, seven or eight sums and one product leave a few units of 2^-24.
    np.testing.assert_allclose(rotate(x, signs, block).double().numpy(), x.double().numpy() @ matrix, atol=2e-6)
    np.testing.assert_allclose(unrotate(x, signs, block).double().numpy(), x.double().numpy() @ matrix.T, atol=2e-6)
    # Applied to unit vectors it is the matrix itself, to the rounding of 1 / sqrt(block).
    np.testing.assert_allclose(rotate(torch.eye(width), signs, block).double().numpy(), matrix, rtol=2**-24)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("width", WIDTHS)
def test_bits_are_those_of_written_out_butterflies(width: int, block: int) -> None:
    x, signs = normal(3, width), rotation_signs(11, width)
    rotated = rotate(x, signs, block).numpy()
    expected = butterflies((x * signs).numpy().reshape(-1, block), block).reshape(3, width)
    assert rotated.tobytes() == expected.tobytes()
    back = butterflies(rotated.reshape(-1, block), block).reshape(3, width) * signs.numpy()
    assert unrotate(torch.from_numpy(rotated), signs, block).numpy().tobytes() == back.tobytes()


@pytest.mark.parametrize("width", WIDTHS)
def test_norm_and_inverse(width: int) -> None:
    x, signs = normal(4, width), rotation_signs(2, width)
    rotated = rotate(x, signs, 64)
    torch.testing.assert_close(rotated.double().norm(dim=1), x.double().norm(dim=1), rtol=1e-6, atol=0)
    assert float((unrotate(rotated, signs, 64) - x).norm() / x.norm()) < 1e-6


@pytest.mark.parametrize("block", BLOCKS)
def test_product_with_a_rotated_weight_is_kept(block: int) -> None:
    x, weight, signs = normal(8, 1536), normal(16, 1536, seed=1), rotation_signs(9, 1536)
    before = x.double() @ weight.double().T
    after = rotate(x, signs, block).double() @ rotate(weight, signs, block).double().T
    assert float((after - before).norm() / before.norm()) < 1e-6


def test_an_outlier_stays_in_its_block() -> None:
    x = torch.zeros(1, 256)
    x[0, 70] = 64.0
    rotated = rotate(x, rotation_signs(0, 256), 64)
    assert torch.equal(rotated[0, 64:128].abs(), torch.full((64,), 8.0))
    assert int(rotated.count_nonzero()) == 64


@pytest.mark.parametrize("function", [rotate, unrotate])
def test_layout_and_chunks_change_no_bit(function: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(function)
    x, signs = normal(60, 1536), rotation_signs(1, 1536)
    kept = x.clone()
    expected = function(x, signs, 128)
    assert torch.equal(x, kept)
    assert torch.equal(function(x.view(3, 4, 5, 1536), signs, 128), expected.view(3, 4, 5, 1536))
    assert torch.equal(function(x.T.contiguous().T, signs, 128), expected)
    assert torch.equal(function(x[::7], signs, 128), expected[::7])
    assert torch.equal(function(x[17], signs, 128), expected[17])
    assert function(x[:0], signs, 128).shape == (0, 1536)
    for tile in (1, 4000, 1 << 22):
        monkeypatch.setattr(hadamard, "_TILE", tile)
        assert torch.equal(function(x, signs, 128), expected)


@pytest.mark.usefixtures("two_threads")
def test_two_threads_change_no_bit() -> None:
    x, signs = normal(200, 1536), rotation_signs(1, 1536)
    expected = butterflies((x * signs).numpy().reshape(-1, 256), 256)
    assert rotate(x, signs, 256).numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("x", "signs", "block"),
    [
        (torch.zeros(2, 512), torch.ones(512), 32),
        (torch.zeros(2, 512), torch.ones(512), 512),
        (torch.zeros(2, 5184), torch.ones(5184), 128),
        (torch.zeros(2, 0), torch.ones(0), 64),
        (torch.zeros(2, 128), torch.ones(64), 64),
        (torch.zeros(2, 128), torch.ones(1), 64),
        (torch.zeros(2, 128, dtype=torch.bfloat16), torch.ones(128), 64),
        (torch.zeros(2, 128), torch.ones(128, dtype=torch.int8), 64),
        (torch.tensor(1.0), torch.ones(1), 64),
    ],
    ids=["block 32", "block 512", "width", "no width", "few signs", "one sign", "bf16", "int8 signs", "scalar"],
)
@pytest.mark.parametrize("function", [rotate, unrotate])
def test_what_does_not_fit_is_refused(function: object, x: torch.Tensor, signs: torch.Tensor, block: int) -> None:
    assert callable(function)
    with pytest.raises(UsageError):
        function(x, signs, block)
