"""Forwards of one transformer that run at once: threads, tasks and nested calls each have their own timestep bin."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from patience import HANG_S
from test_compiled_model import an_input, linear_of
from torch import Tensor, nn

from hfq.convert.clip import TimestepClock, unused_clips
from hfq.schema.errors import UsageError

BINS = {1000.0: 0, 700.0: 1, 1.0: 2}


class Gated(nn.Module):
    """Two linears with clips; `between` is called with the timestep before the first, between them and after."""

    def __init__(self) -> None:
        super().__init__()
        clock = TimestepClock("single", (900.0, 500.0))
        self.layers = nn.ModuleList(linear_of("clip ref", torch.bfloat16, clock) for _ in range(2))
        clock.install(self)
        self.between: Callable[[float], object] = lambda t: None

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        t = float(timestep)
        self.between(t)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
            self.between(t)
        return hidden_states


@pytest.fixture
def model() -> Iterator[Gated]:
    with torch.no_grad():
        yield Gated()


def run(model: nn.Module, t: float) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(an_input(torch.bfloat16), timestep=torch.tensor(t))
    return found


def expected(model: Gated) -> dict[float, Tensor]:
    found = {t: run(model, t) for t in BINS}
    assert not torch.equal(found[1000.0], found[1.0])
    return found


@pytest.mark.parametrize("times", [(1000.0, 1.0), (700.0, 700.0), (1.0, 1000.0, 700.0)])
def test_threads_in_step(times: tuple[float, ...], model: Gated) -> None:
    """Every thread is inside its forward while every other one begins, runs each linear, and ends."""
    wanted = expected(model)
    barrier = threading.Barrier(len(times), timeout=HANG_S)
    model.between = lambda t: barrier.wait()
    unused_clips(model, reset=True)
    with ThreadPoolExecutor(len(times)) as pool:
        found = list(pool.map(lambda t: run(model, t), times))
    assert all(torch.equal(one, wanted[t]) for one, t in zip(found, times, strict=True))
    assert {index for _, _, index in unused_clips(model)} == set(BINS.values()) - {BINS[t] for t in times}


@pytest.mark.parametrize("fails", [False, True])
def test_the_first_forward_to_end_leaves_the_other_alone(fails: bool, model: Gated) -> None:
    wanted = expected(model)
    inside, ended = threading.Event(), threading.Event()
    waited = []

    def between(t: float) -> None:
        if t == 1.0:
            assert inside.wait(HANG_S)
            if fails:
                raise RuntimeError("inside the model")
        elif not waited:
            waited.append(t)
            inside.set()
            assert ended.wait(HANG_S)

    model.between = between

    def other() -> None:
        try:
            run(model, 1.0)
        except RuntimeError:
            assert fails
        finally:
            ended.set()

    with ThreadPoolExecutor(2) as pool:
        long, short = pool.submit(run, model, 1000.0), pool.submit(other)
        short.result(HANG_S)
        assert torch.equal(long.result(HANG_S), wanted[1000.0])


def test_a_forward_inside_another(model: Gated) -> None:
    wanted = expected(model)
    inner: list[Tensor] = []

    def between(t: float) -> None:
        if t == 1000.0 and len(inner) < 3:
            inner.append(run(model, 1.0))

    model.between = between
    assert torch.equal(run(model, 1000.0), wanted[1000.0])
    assert all(torch.equal(one, wanted[1.0]) for one in inner)


def test_what_fails_inside_ends_itself_alone(model: Gated) -> None:
    wanted = expected(model)

    def between(t: float) -> None:
        if t == 1.0:
            raise RuntimeError("inside the model")
        if t == 1000.0:
            with pytest.raises(RuntimeError):
                run(model, 1.0)
            with pytest.raises(UsageError, match="different timestep bins"):
                model(an_input(torch.bfloat16), timestep=torch.tensor([1000.0, 1.0]))
            with pytest.raises(UsageError, match="without a timestep"):
                model(an_input(torch.bfloat16))

    model.between = between
    assert torch.equal(run(model, 1000.0), wanted[1000.0])
    with pytest.raises(UsageError, match="call the transformer"):
        model.layers[0](an_input(torch.bfloat16))


def test_two_transformers_one_inside_the_other(model: Gated) -> None:
    other = Gated()
    mine, theirs = expected(model), expected(other)
    inner: list[Tensor] = []
    model.between = lambda t: inner.append(run(other, 1.0))
    assert torch.equal(run(model, 1000.0), mine[1000.0])
    assert all(torch.equal(one, theirs[1.0]) for one in inner)
    # A linear of the one in a forward of the other has no timestep.
    other.between = lambda t: model.layers[0](an_input(torch.bfloat16))
    with pytest.raises(UsageError, match="call the transformer"):
        run(other, 1000.0)


def test_a_thread_that_the_forward_starts_does_not_guess(model: Gated) -> None:
    with ThreadPoolExecutor(1) as pool:
        model.between = lambda t: pool.submit(model.layers[0], an_input(torch.bfloat16)).result(HANG_S)
        with pytest.raises(UsageError, match="own thread"):
            run(model, 1000.0)


def test_generators_and_tasks_in_turn(model: Gated) -> None:
    wanted = expected(model)

    def steps(times: list[float]) -> Iterator[tuple[float, Tensor]]:
        for t in times:
            yield t, run(model, t)

    one, other = steps([1000.0, 700.0, 1.0]), steps([1.0, 1.0, 1000.0])
    for pair in zip(one, other, strict=True):
        assert all(torch.equal(found, wanted[t]) for t, found in pair)

    async def task(t: float) -> Tensor:
        await asyncio.sleep(0)
        return run(model, t)

    async def all_of_them() -> list[Tensor]:
        return await asyncio.gather(*(task(t) for t in BINS))

    assert all(torch.equal(one, wanted[t]) for one, t in zip(asyncio.run(all_of_them()), BINS, strict=True))


@pytest.mark.parametrize("whole", [False, True])
def test_offloaded_models_too(whole: bool, model: Gated) -> None:
    import accelerate

    wanted = expected(model)
    if whole:
        accelerate.cpu_offload_with_hook(model, execution_device="cpu")
    else:
        accelerate.cpu_offload(model, execution_device="cpu")
    for _ in range(2):
        assert all(torch.equal(run(model, t), wanted[t]) for t in BINS)
