"""GPTQ against a textbook GPTQ in numpy float64: explicit inverse, row by row, the reference's rounding; the stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hfq.convert.architecture import Site
from hfq.convert.bf16 import to_bf16
from hfq.convert.few_rows import judge_rows
from hfq.convert.gptq import Hif4Rounder, hessian, inverse_factor, proxy_error, quantize_columns
from hfq.convert.group_statistics import GroupStatistics, different_rows, row_numbers
from hfq.convert.ops import ColumnsOp, MaskOp, Op
from hfq.convert.recipe import Recipe
from hfq.convert.restore import restore_weight, transform_weight
from hfq.convert.site_ops import read_ops
from hfq.convert.stages.gptq import gptq
from hfq.convert.stages.stage import StageInput
from hfq.convert.threads import single_thread
from hfq.convert.weights import quantize_activation
from hfq.formats import hif4, hif4_reference
from hfq.schema.errors import HessianError, NonFiniteWeightError, TooFewRowsError

Doubles = npt.NDArray[np.float64]
DAMP = 0.05


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def correlated(rows: int, channels: int, seed: int) -> torch.Tensor:
    """Inputs of few strong directions and unequal channels, fp32 [rows, channels]."""
    random = np.random.default_rng(seed)
    mixing = np.eye(channels) + random.standard_normal((channels, channels)) / channels**0.5
    gains = np.exp(random.standard_normal(channels) * 0.5)
    return torch.from_numpy(random.standard_normal((rows, channels)) @ mixing * gains).float()


def gaussian(out: int, channels: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed + 99).standard_normal((out, channels)) * 0.02).float()


def damped(h: Doubles, damp: float) -> Doubles:
    return h + damp * np.diag(h).mean() * np.eye(len(h))


def symmetric(values: Doubles, seed: int) -> Doubles:
    """A matrix with these eigenvalues."""
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    return (basis * values) @ basis.T


def textbook(weight: Doubles, h: Doubles, damp: float, rounded: Callable[[Doubles, int], Doubles]) -> Doubles:
    """Optimal brain quantization in fixed order: after each column the inverse loses its row and column.

    Args:
        rounded: takes the current weight [out, K] and a column; where a group starts it may choose a new scale.
    """
    w, inverse = weight.copy(), np.linalg.inv(damped(h, damp))
    quantized = np.zeros_like(w)
    for j in range(w.shape[1]):
        quantized[:, j] = rounded(w, j)
        error = (w[:, j] - quantized[:, j]) / inverse[j, j]
        w -= np.outer(error, inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return quantized


class ReferenceRounding:
    """HiFloat4 by the readable reference; scales of the current weight, or those of the weight at the beginning."""

    def __init__(self, weight: Doubles, static: bool) -> None:
        self._start, self._groups = weight.copy(), list[hif4_reference.Group]()
        self._static = static

    def __call__(self, w: Doubles, column: int) -> Doubles:
        i = column % 64
        if i == 0:
            source = (self._start if self._static else w)[:, column : column + 64].astype(np.float32)
            self._groups = [hif4_reference.encode_group(row) for row in source.tolist()]
        return np.array([self._one(float(v), g, i) for v, g in zip(w[:, column], self._groups, strict=True)])

    def _one(self, value: float, group: hif4_reference.Group, i: int) -> float:
        scale, octaves = hif4_reference.scale_value(group.e6m2), 2.0 ** (group.lv2[i // 8] + group.lv3[i // 4])
        reciprocal = hif4_reference.bf16(1 / scale)
        scaled = hif4_reference.fp32(hif4_reference.fp32(abs(value)) / octaves * reciprocal)
        quarters = hif4_reference.quarters_of(scaled, hif4.PROFILES["ref"])
        return float(np.copysign(quarters / 4 * scale * octaves, value))


def run(weight: torch.Tensor, h: torch.Tensor, static: bool, **options: bool) -> hif4.Hif4Tensor:
    words = hif4.quantize(weight, **options).scale if static else None
    rounder = Hif4Rounder(*weight.shape, words=words, **options)
    quantize_columns(weight, inverse_factor(h.clone(), DAMP, "here"), rounder)
    found = rounder.result()
    found.validate()
    return found


@pytest.mark.parametrize("rows", [1, 700, 1024, 2500])
def test_hessian(rows: int) -> None:
    x = correlated(rows, 40, 0).bfloat16()
    exact = x.double().numpy()
    expected = 2 / rows * exact.T @ exact
    found = hessian(x)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert torch.equal(found, found.T)


@pytest.mark.parametrize(
    ("channels", "rows", "damp"), [(64, 500, 0.01), (200, 1000, 0.05), (200, 50, 0.05), (1, 9, 0.1), (701, 1500, 0.05)]
)
def test_factor_is_that_of_the_inverse(channels: int, rows: int, damp: float) -> None:
    h = hessian(correlated(rows, channels, 1))
    factor = inverse_factor(h.clone(), damp, "here")
    upper = factor.upper.double().numpy()
    expected = np.linalg.inv(damped(h.double().numpy(), damp))
    assert np.linalg.norm(upper.T @ upper - expected) < 1e-4 * np.linalg.norm(expected)
    assert np.array_equal(upper, np.triu(upper))
    assert (np.diag(upper) > 0).all()
    assert factor.damp == pytest.approx(damp)
    assert not factor.dead.any()


def test_damping_grows_until_the_matrix_is_positive() -> None:
    values = np.linspace(0.5, 1.5, 80)
    values[0] = -0.12 * (values.sum() - values[0]) / 80
    h = torch.from_numpy(symmetric(values, 0)).float()
    factor = inverse_factor(h.clone(), 0.05, "here")
    assert factor.damp == pytest.approx(0.15)
    upper = factor.upper.double().numpy()
    expected = np.linalg.inv(damped(h.double().numpy(), 0.15))
    assert np.linalg.norm(upper.T @ upper - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["negative", "rank deficient without damping", "not a number"])
def test_a_hessian_without_a_factor_is_refused(kind: str) -> None:
    h = {
        "negative": -torch.eye(70),
        "rank deficient without damping": torch.ones(70, 70),
        "not a number": torch.full((70, 70), float("nan")),
    }[kind]
    with pytest.raises(HessianError) as caught:
        inverse_factor(h, 0.0 if "without" in kind else DAMP, "low_noise blocks.0.ffn.0")
    assert (caught.value.code, caught.value.exit_code) == ("hessian", 1)
    assert "low_noise blocks.0.ffn.0" in str(caught.value)
    assert "--keep-inputs" in str(caught.value)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize(("out", "channels", "rows"), [(16, 128, 500), (12, 150, 500), (12, 192, 60)])
@pytest.mark.parametrize("seed", [0, 1])
def test_as_good_as_the_textbook(out: int, channels: int, rows: int, seed: int, static: bool) -> None:
    weight, h = gaussian(out, channels, seed), hessian(correlated(rows, channels, seed))
    exact, exact_h = weight.double().numpy(), h.double().numpy()
    expected = textbook(exact, exact_h, DAMP, ReferenceRounding(exact, static))
    found = run(weight, h, static).dequantize(torch.float32)
    # A value on an edge falls to either side in fp32 and float64, and what follows it moves too.
    assert np.mean(found.numpy() == expected) > 0.97
    difference = exact - expected
    assert proxy_error(weight, found, h) == pytest.approx(
        float(np.trace(difference @ exact_h @ difference.T)), rel=0.01
    )


@pytest.mark.parametrize("options", [{}, {"scale_search": True}], ids=["rule", "search"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize(("out", "channels"), [(64, 256), (100, 200), (3, 512)])
@pytest.mark.parametrize("seed", range(3))
def test_better_than_plain_rounding(out: int, channels: int, seed: int, static: bool, options: dict[str, bool]) -> None:
    weight, h = gaussian(out, channels, seed), hessian(correlated(3 * channels, channels, seed))
    plain = hif4.quantize(weight, **options)
    found = run(weight, h, static, **options)
    before, after = (proxy_error(weight, q.dequantize(torch.float32), h) for q in (plain, found))
    assert after < 0.8 * before
    same = slice(None) if static else slice(1)  # the first group starts from the weight as it is
    assert torch.equal(found.scale[:, same], plain.scale[:, same])


def test_without_correlation_it_is_plain_rounding() -> None:
    weight = gaussian(20, 150, 0)
    plain = hif4.quantize(weight)
    for static in (False, True):
        found = run(weight, torch.eye(150) * 3, static)
        assert torch.equal(found.dequantize(torch.float32), plain.dequantize(torch.float32))
        assert torch.equal(found.scale, plain.scale)


@pytest.mark.parametrize("profile", ["ref", "amct", "cann", "pto"])
def test_the_profile_is_kept(profile: str) -> None:
    weight = gaussian(200, 128, 5)
    rounder = Hif4Rounder(200, 128, profile=profile)
    quantize_columns(weight, inverse_factor(torch.eye(128), DAMP, "here"), rounder)
    plain = hif4.quantize(weight, profile=profile)
    assert rounder.result().profile == profile
    assert torch.equal(rounder.result().dequantize(torch.float32), plain.dequantize(torch.float32))


def test_dead_channels_become_zero_and_change_nothing_else() -> None:
    x = correlated(500, 128, 3)
    weight = gaussian(16, 128, 3)
    dead = torch.zeros(128, dtype=torch.bool)
    dead[[0, 5, 64, 127]] = True
    x[:, dead] = 0.0
    h = hessian(x)
    factor = inverse_factor(h.clone(), DAMP, "here")
    assert torch.equal(factor.dead, dead)
    found = run(weight, h, False)
    assert not found.dequantize()[:, dead].any()
    emptied = weight.clone()
    emptied[:, dead] = 0.0
    assert torch.equal(run(emptied, h, False).codes, found.codes)
    undamped = inverse_factor(h.clone(), 0.0, "here")
    assert undamped.damp == 0.0  # a dead channel does not need damping
    everything = inverse_factor(torch.zeros(64, 64), DAMP, "here")
    assert bool(everything.dead.all())
    assert bool(torch.isfinite(everything.upper).all())


@pytest.mark.parametrize(("out", "channels"), [(1, 128), (7, 1), (5, 63), (5, 65), (64, 130)])
@pytest.mark.parametrize("transposed", [False, True])
def test_any_size_and_the_callers_weight_is_kept(out: int, channels: int, transposed: bool) -> None:
    weight, h = gaussian(out, channels, 4), hessian(correlated(400, channels, 4))
    given = weight.T.contiguous().T if transposed else weight.clone()
    found = run(given, h, False)
    assert torch.equal(given, weight)
    assert tuple(found.shape) == (out, channels)
    assert torch.equal(found.codes, run(weight.clone(), h, False).codes)


class _Grid:
    """Multiples of a step, with groups of 32 columns."""

    group = 32

    def __init__(self, out: int, channels: int, step: float) -> None:
        self.values, self.starts, self._step = torch.zeros(channels, out), list[int](), step

    def begin(self, block: torch.Tensor, index: int) -> _GridColumns:
        assert block.is_contiguous()
        self.starts.append(block.shape[0])
        return _GridColumns(self.values[index * self.group :], self._step)


class _GridColumns:
    def __init__(self, values: torch.Tensor, step: float) -> None:
        self._values, self._step = values, step

    def round(self, column: torch.Tensor, index: int) -> torch.Tensor:
        self._values[index] = torch.round(column / self._step) * self._step
        return self._values[index]


def test_another_format_goes_through_the_same_loop() -> None:
    weight, h, step = gaussian(30, 80, 6), hessian(correlated(400, 80, 6)), 2.0**-6
    grid = _Grid(30, 80, step)
    quantize_columns(weight, inverse_factor(h.clone(), DAMP, "here"), grid)
    assert grid.starts == [32, 32, 16]

    def rounded(w: Doubles, column: int) -> Doubles:
        return np.asarray(np.round(w[:, column] / step) * step)

    expected = textbook(weight.double().numpy(), h.double().numpy(), DAMP, rounded)
    assert np.mean(grid.values.T.numpy() == expected) > 0.99


def test_two_columns_worked_out_by_hand() -> None:
    # H^-1 = [[2, -1], [-1, 2]] / 3. The first 0.6 rounds to 1; its error -0.4 times -1 / 2 leaves the second
    # 0.6 - 0.2 = 0.4, which rounds to 0. Plain rounding gives (1, 1).
    weight, h = torch.tensor([[0.6, 0.6]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    grid = _Grid(1, 2, 1.0)
    quantize_columns(weight, inverse_factor(h.clone(), 0.0, "here"), grid)
    assert grid.values.T.tolist() == [[1.0, 0.0]]
    # d = w - q is (-0.4, 0.6): 2 * 0.16 + 2 * 0.36 - 2 * 0.24; plainly (-0.4, -0.4): 2 * 0.16 * 2 + 2 * 0.16.
    assert proxy_error(weight, grid.values.T, h) == pytest.approx(0.56)
    assert proxy_error(weight, torch.ones(1, 2), h) == pytest.approx(0.96)


def test_proxy_error_is_the_error_of_the_outputs() -> None:
    x = correlated(300, 64, 7)
    weight = gaussian(20, 64, 7)
    quantized = hif4.quantize(weight).dequantize(torch.float32)
    difference = (weight.double() - quantized.double()).numpy() @ x.double().numpy().T
    assert proxy_error(weight, quantized, hessian(x)) == pytest.approx(2 / 300 * np.square(difference).sum(), rel=1e-5)
    assert proxy_error(weight, weight, hessian(x)) == 0.0


def test_the_same_bits_whatever_the_number_of_threads() -> None:
    x, weight = correlated(900, 448, 8), gaussian(320, 448, 8)

    def codes() -> tuple[torch.Tensor, torch.Tensor]:
        with single_thread():
            assert torch.get_num_threads() == 1
            found = run(weight, hessian(x), False)
            return found.codes, found.scale

    one = codes()
    torch.set_num_threads(2)
    two = codes()
    assert torch.get_num_threads() == 2
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_single_thread_gives_threads_back_after_an_error() -> None:
    torch.set_num_threads(2)
    with pytest.raises(HessianError), single_thread():
        inverse_factor(-torch.eye(4), DAMP, "here")
    assert torch.get_num_threads() == 2


CHANNELS = 150


def stage_input(weight: torch.Tensor, ops: list[Op], **options: object) -> StageInput:
    """The stage behind `ops`, with kept rows of two timestep bins."""
    search = options.pop("scale_search", False)
    weight_options = {"format": "hif4", "profile": options.pop("profile", "ref"), "scale_search": search}
    recipe = Recipe.from_document(
        {"schema": "hfq.recipe/1", "name": "mine", "weight": weight_options, "activation": {"format": "hif4"},
         "route": [{"match": ["*"], "to": "quantize"}], "stage": [{"kind": "gptq", **options}]}
    )  # fmt: skip
    rows = to_bf16(correlated(600, CHANNELS, 9))
    none = torch.zeros(1, CHANNELS)
    kept = {0: rows[:250], 2: rows[250:]}
    statistics = GroupStatistics(none, none.double(), torch.ones(1, dtype=torch.int64), {}, kept)
    site, where = Site("blocks.0.self_attn.q", CHANNELS, 24, True, 0, "blocks.0.self_attn.in"), "low_noise a.site"
    changed, options = transform_weight(weight, ops), dict(recipe.stages[0])
    return StageInput(site, weight, changed, ops, None, statistics, None, recipe, options, where)


def ops_before(kind: str) -> tuple[list[Op], list[dict[str, object]], dict[str, torch.Tensor]]:
    """Ops on the weight, how a delta lists them, and their state."""
    mask = torch.linspace(0.5, 2.0, CHANNELS)
    columns = torch.tensor([3, 70, 149], dtype=torch.int32)
    return {
        "none": ([], [], {}),
        "mask": ([MaskOp(mask)], [{"op": "mask", "tensor": "mask"}], {"mask": mask}),
        "columns": ([ColumnsOp(columns, CHANNELS)], [{"op": "columns", "tensor": "columns"}], {"columns": columns}),
    }[kind]


@pytest.mark.parametrize("before", ["none", "mask", "columns"])
@pytest.mark.parametrize("scales", ["dynamic", "static"])
@pytest.mark.parametrize(("profile", "search"), [("ref", False), ("ref", True), ("pto", False)])
def test_what_the_stage_stores_restores_its_codes(before: str, scales: str, profile: str, search: bool) -> None:
    weight = to_bf16(gaussian(24, CHANNELS, 9))
    ops, listed, state = ops_before(before)
    given = stage_input(weight, ops, profile=profile, scale_search=search, group_scale=scales)
    result = gptq(given)
    chosen = result.quantized
    assert isinstance(chosen, hif4.Hif4Tensor)
    assert set(result.state) == ({"codes", "scale"} if scales == "dynamic" else {"codes"})
    kinds = [*listed, dict(result.op), {"op": "qdq", **given.recipe.activation}]
    read = read_ops(kinds, {**state, **result.state}, (24, CHANNELS), given.where)
    restored = restore_weight(weight, read, given.recipe.weight, given.where)
    assert isinstance(restored, hif4.Hif4Tensor)
    assert torch.equal(restored.codes, chosen.codes)
    assert restored.scale.tolist() == chosen.scale.tolist()
    assert (tuple(restored.shape), restored.profile) == (tuple(given.weight.shape), profile)
    plain = hif4.quantize(given.weight, profile=profile, scale_search=search)
    assert not torch.equal(plain.codes, chosen.codes)
    assert (plain.scale.tolist() == chosen.scale.tolist()) == (scales == "static")


@pytest.mark.parametrize("inputs", ["quantized", "exact"])
def test_the_stage_minimises_over_the_rows_as_they_run(inputs: str) -> None:
    weight = to_bf16(gaussian(24, CHANNELS, 9))
    ops = ops_before("mask")[0]
    given = stage_input(weight, ops, inputs=inputs)
    assert given.statistics is not None
    rows = given.activation(torch.cat([given.statistics.inputs[0], given.statistics.inputs[2]]))
    if inputs == "quantized":
        rows = quantize_activation(rows, given.recipe.activation)
    rounder = Hif4Rounder(24, CHANNELS)
    quantize_columns(given.weight, inverse_factor(hessian(rows), DAMP, "here"), rounder)
    found = gptq(given).quantized
    assert isinstance(found, hif4.Hif4Tensor)
    assert torch.equal(found.codes, rounder.result().codes)


def test_the_stage_names_the_site_it_cannot_do() -> None:
    given = stage_input(to_bf16(gaussian(24, CHANNELS, 9)), [])
    assert given.statistics is not None
    given.statistics.inputs[0][5, 7] = float("nan")
    with pytest.raises(HessianError, match=r"low_noise a\.site"):
        gptq(given)
    weight = gaussian(24, CHANNELS, 9)
    weight[3, 10] = 3e38  # finite, but not after its error has been carried on
    with pytest.raises(NonFiniteWeightError, match=r"low_noise a\.site"):
        gptq(stage_input(to_bf16(weight), []))


def test_a_channel_that_is_silent_in_the_kept_rows_alone_is_not_lost() -> None:
    """The maximum of every row says that channel 7 carries something: its column is rounded, not zeroed. Channel 8
    never carries anything."""
    weight = to_bf16(gaussian(24, CHANNELS, 9))
    given = stage_input(weight, [])
    assert given.statistics is not None
    for kept in given.statistics.inputs.values():
        kept[:, 7:9] = 0
    given.statistics.max[:] = 1.0
    given.statistics.max[:, 8] = 0.0
    found = gptq(given).quantized
    assert isinstance(found, hif4.Hif4Tensor)
    values = found.dequantize(torch.float32)
    assert float((values[:, 7] - weight[:, 7].float()).square().sum() / weight[:, 7].float().square().sum()) < 0.05
    assert not bool(values[:, 8].any())


def few(rows: int, seed: int) -> torch.Tensor:
    """Independent inputs with unequal channels: whatever looks like a correlation among few of them is chance."""
    random = np.random.default_rng(seed)
    return to_bf16(torch.from_numpy(random.standard_normal((rows, CHANNELS))).float())


def test_codes_that_fit_nothing_but_their_rows_are_given_up() -> None:
    """40 rows of noise for 150 channels: on other rows GPTQ does worse than rounding, and the stage finds out."""
    weight = to_bf16(gaussian(24, CHANNELS, 9))
    used = {}
    for chosen in (None, "warn"):
        given = stage_input(weight, [], inputs="exact", **({} if chosen is None else {"few_rows": chosen}))
        assert given.statistics is not None
        rows = few(40, 1)
        given.statistics.inputs.update({0: rows[:20], 2: rows[20:]})
        used[chosen] = gptq(given)
    assert used[None].op is None
    assert used[None].rounded == "gptq: 40 different input rows for 150 channels: worse than rounding on rows left out"
    fitted = used["warn"].quantized
    assert isinstance(fitted, hif4.Hif4Tensor)
    others = few(2000, 2).double()
    exact = others @ weight.double().T
    errors = [
        float((others @ codes.dequantize(torch.float32).double().T - exact).square().sum())
        for codes in (fitted, hif4.quantize(weight))
    ]
    assert errors[0] > errors[1]


def test_codes_that_serve_other_rows_too_are_kept() -> None:
    """75 rows for 150 channels, of ten strong directions; copies of a row add nothing to their number."""
    weight = to_bf16(gaussian(24, CHANNELS, 9))
    given = stage_input(weight, [], inputs="exact")
    assert given.statistics is not None
    random = np.random.default_rng(4)
    directions = random.standard_normal((75, 10)) @ random.standard_normal((10, CHANNELS))
    rows = to_bf16(torch.from_numpy(directions).float())
    given.statistics.inputs.update({0: rows.repeat(3, 1), 2: rows})
    found = gptq(given)
    assert found.rounded is None
    assert found.quantized is not None


@pytest.mark.parametrize(
    ("chosen", "different", "judged"),
    [
        (None, 4, "round"), (None, 8, "try"), (None, 199, "try"), (None, 200, "enough"),
        ("round", 49, "round"), ("round", 50, "try"), ("round", 200, "enough"),
        ("refuse", 49, "error"), ("refuse", 50, "try"), ("warn", 1, "enough"), ("warn", 0, "round"),
    ],
)  # fmt: skip
def test_what_few_different_rows_mean(chosen: str | None, different: int, judged: str) -> None:
    stage = {"tokens": 4096, **({} if chosen is None else {"few_rows": chosen})}
    if judged == "error":
        with pytest.raises(TooFewRowsError, match=r"at least 50 different rows, found 49 of 1000"):
            judge_rows(different, 1000, 100, stage, "site", "group")
    else:
        assert judge_rows(different, 1000, 100, stage, "site", "group") == judged


def test_rows_are_numbered_by_their_values() -> None:
    rows = torch.tensor([[1.0, 2.0], [0.0, -0.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.5]]).bfloat16()
    assert row_numbers(rows).tolist() == [0, -1, 1, 0, 2]
    assert different_rows(row_numbers(rows)) == 3
    assert different_rows(row_numbers(rows[:0])) == different_rows(row_numbers(rows[1:2])) == 0
