"""Schedules: which expert sees which steps, and where the timestep bins end."""

from __future__ import annotations

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from synthetic import tiny

from hfq.convert.generation import GenerationSettings, default_settings, plan_schedule, scheduler_for
from hfq.convert.schedule import ExpertSchedule, bin_of, expert_schedules
from hfq.schema.errors import UsageError

PAIR = ("high_noise", "low_noise")


def settings_of(**changes: object) -> GenerationSettings:
    return default_settings(tiny("t2v"), PAIR).changed(**changes)


def unipc() -> UniPCMultistepScheduler:
    """As in the released pipelines, with the conversion script's flow shift."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def plan(settings: GenerationSettings, roles: tuple[str, ...] = PAIR) -> dict[str, ExpertSchedule]:
    return plan_schedule(scheduler_for(unipc(), settings), settings, roles)[1]


def steps_of(schedule: ExpertSchedule) -> int:
    return len({call.step for call in schedule.calls})


def bins_of(schedule: ExpertSchedule) -> list[int]:
    found = {call.step: call.bin for call in schedule.calls}
    return [list(found.values()).count(index) for index in range(3)]


@pytest.mark.parametrize(
    ("boundary", "shift", "high", "low"),
    [
        (0.875, 3.0, 13, 27), (0.875, 5.0, 17, 23), (0.875, 8.0, 22, 18), (0.875, 12.0, 26, 14),
        (0.9, 3.0, 11, 29), (0.9, 5.0, 15, 25), (0.9, 8.0, 19, 21), (0.9, 12.0, 23, 17),
    ],
)  # fmt: skip
def test_steps_per_expert(boundary: float, shift: float, high: int, low: int) -> None:
    """40 steps of diffusers' UniPC: what each expert of Wan 2.2 sees."""
    found = plan(settings_of(boundary=boundary, shift=shift))
    assert (steps_of(found["high_noise"]), steps_of(found["low_noise"])) == (high, low)


@pytest.mark.parametrize(
    ("boundary", "shift", "bins"),
    [(0.9, 5.0, ([5, 5, 5], [5, 13, 7])), (0.875, 12.0, ([9, 9, 8], [3, 7, 4]))],
)
def test_bins_of_the_official_schedules(boundary: float, shift: float, bins: tuple[list[int], list[int]]) -> None:
    """The counts of the published system, whose own scheduler has the same number of steps per expert here."""
    found = plan(settings_of(boundary=boundary, shift=shift))
    assert (bins_of(found["high_noise"]), bins_of(found["low_noise"])) == bins


def test_the_schedule_is_the_runs_own() -> None:
    """Steps, branches and timesteps in the order of the run; the first timestep is 999."""
    found = plan(settings_of())
    calls = [*found["high_noise"].calls, *found["low_noise"].calls]
    assert [(call.step, call.branch) for call in calls] == [(s, b) for s in range(40) for b in ("cond", "uncond")]
    assert calls[0].t == 999
    assert all(call.t >= 875 for call in found["high_noise"].calls)
    assert all(call.t < 875 for call in found["low_noise"].calls)


def test_planning_leaves_the_scheduler_alone() -> None:
    scheduler = unipc()
    plan_schedule(scheduler_for(scheduler, settings_of(shift=12.0)), settings_of(shift=12.0), PAIR)
    assert scheduler.config["flow_shift"] == 3.0


def test_the_other_scheduler_calls_it_shift() -> None:
    settings = settings_of(shift=7.0)
    assert scheduler_for(FlowMatchEulerDiscreteScheduler(shift=3.0), settings).config["shift"] == 7.0


def test_without_guidance_there_is_one_branch() -> None:
    assert {call.branch for call in plan(settings_of(guidance=1.0))["high_noise"].calls} == {"cond"}


def test_edges_are_midway_between_neighbouring_steps() -> None:
    found = expert_schedules([1000, 900, 800, 700, 600, 500], ["single"], None, ("cond",))["single"]
    assert found.edges == (850, 650)
    assert [call.bin for call in found.calls] == [0, 0, 1, 1, 2, 2]


def test_edges_map_another_number_of_steps() -> None:
    """Only edges in t are stored, so that 20 or 50 steps fall into bins of the same t."""
    edges = plan(settings_of())["low_noise"].edges
    for steps in (20, 50):
        for call in plan(settings_of(steps=steps))["low_noise"].calls:
            assert bin_of(call.t, edges) == sum(call.t < edge for edge in edges)
    assert [bin_of(t, (850.0, 650.0)) for t in (999, 850, 849, 650, 649, 0)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("timesteps", "bins"), [([900.0], [0]), ([900.0, 500.0], [0, 1]), ([9.0, 8.0, 7.0], [0, 1, 2])]
)
def test_few_steps(timesteps: list[float], bins: list[int]) -> None:
    found = expert_schedules(timesteps, ["single"], None, ("cond",))["single"]
    assert [call.bin for call in found.calls] == bins


def test_the_boundary_itself_is_high_noise() -> None:
    found = expert_schedules([900.0, 875.0, 874.0], PAIR, 875.0, ("cond",))
    assert [steps_of(found[role]) for role in PAIR] == [2, 1]


def test_a_schedule_reads_back() -> None:
    found = plan(settings_of())["high_noise"]
    assert ExpertSchedule.from_json(found.to_json()) == found


def test_histogram_keys() -> None:
    found = plan(settings_of())["high_noise"]
    assert found.histogram_keys(()) == ["all"]
    assert found.histogram_keys(("branch",)) == ["cond", "uncond"]
    assert found.histogram_keys(("branch", "bins"))[:2] == ["bin0-cond", "bin0-uncond"]
    assert len(found.histogram_keys(("branch", "bins"))) == 6


def test_an_expert_without_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="high_noise no step"):
        plan(settings_of(steps=4, boundary=0.9999, shift=0.1))
    with pytest.raises(UsageError, match="low_noise no step"):
        plan(settings_of(steps=1))


def test_one_expert_has_no_boundary() -> None:
    with pytest.raises(UsageError, match="two experts"):
        plan(settings_of(guidance_low=2.0), ("single",))


@pytest.mark.parametrize(
    ("kind", "roles", "expected"),
    [
        ("t2v", PAIR, (720, 1280, 81, 40, 12.0, 0.875, 4.0, 3.0)),
        ("i2v", PAIR, (720, 1280, 81, 40, 5.0, 0.9, 3.5, 3.5)),
        ("t2v", ("single",), (480, 832, 81, 50, 5.0, None, 5.0, None)),
        ("i2v-image", ("single",), (480, 832, 81, 40, 3.0, None, 5.0, None)),
        ("flf2v", ("single",), (720, 1280, 81, 50, 16.0, None, 5.0, None)),
        ("ti2v", ("single",), (704, 1280, 121, 50, 5.0, None, 5.0, None)),
        ("vace", ("single",), (480, 832, 81, 50, 16.0, None, 5.0, None)),
    ],
)  # fmt: skip
def test_official_settings(kind: str, roles: tuple[str, ...], expected: tuple[float, ...]) -> None:
    found = default_settings(tiny(kind), roles)
    assert (
        found.height, found.width, found.frames, found.steps, found.shift, found.boundary, found.guidance,
        found.guidance_low,
    ) == expected  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0}, {"height": -16}, {"frames": 0}, {"boundary": 0.0}, {"boundary": 1.0}, {"shift": 0.0},
        {"shift": float("nan")}, {"shift": float("inf")}, {"boundary": float("nan")}, {"guidance": float("nan")},
        {"guidance_low": float("inf")}, {"seed": -1}, {"seed": 2**53},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        settings_of(**changes)
