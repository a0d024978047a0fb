"""What calibration statistics cost: forwards of one block of the Wan 14B transformer, plain and observed, in turn.

    python benchmarks/calibration_cost.py --out benchmarks/results/calibration-cost.json

The transformer is diffusers' with one block of the released widths (dim 5120, ffn 13824, 40 heads), its embeddings and
its head, and random weights; 4,096 tokens, as many as enter a histogram by default, so that every row is counted. Of a
larger clip a smaller share is.

Every repetition runs three forwards one after the other: plain, with the collector attached, and with the collector
keeping rows. Overheads are medians over the repetitions: of the whole forward over the plain one, less 1, by the clock
and in CPU time of the process, which other work on the machine disturbs less; and of the time inside the collector over
the plain forward, again both ways. That last is the figure to quote, where the machine is not idle.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hfq.convert.architecture import Architecture
from hfq.convert.calibration_estimate import input_groups
from hfq.convert.collector import Collector, GroupInput
from hfq.convert.keymap import to_diffusers
from hfq.convert.provenance import machine, software
from hfq.convert.schedule import Call, expert_schedules
from hfq.convert.transformer import empty_transformer, keeps_fp32, set_tensor

ROLE, BRANCH = "single", "cond"
WIDTHS = Architecture(
    "t2v", dim=5120, ffn_dim=13824, num_layers=1, in_channels=16, out_channels=16, text_dim=4096, freq_dim=256,
    patch_size=(1, 2, 2), num_heads=40, heads_known=True,
)  # fmt: skip
FRAMES = 4
TEXT_TOKENS = 512
WARM_UP_TOKENS = 256


def made_transformer(architecture: Architecture, dtype: torch.dtype, device: str) -> nn.Module:
    """A transformer with random weights, in evaluation mode."""
    model = empty_transformer(architecture)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        kept = torch.float32 if keeps_fp32(model, name) else dtype
        value = torch.empty(parameter.shape, dtype=kept, device=device)
        if "norm" in name and name.endswith("weight"):
            value.fill_(1.0)
        else:
            value.normal_(0.0, 0.02, generator=generator)
        set_tensor(model, name, value)
    return model.to(device).eval()


def inputs_of(tokens: int, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Arguments of a forward of `tokens` tokens, a square of patches per frame."""
    side = round((tokens / FRAMES) ** 0.5)
    if FRAMES * side * side != tokens:
        raise SystemExit(f"--tokens must be {FRAMES} times a square number")
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    return {
        "hidden_states": normal(1, WIDTHS.in_channels, FRAMES, 2 * side, 2 * side),
        "encoder_hidden_states": normal(1, TEXT_TOKENS, WIDTHS.text_dim),
    }


class Times(NamedTuple):
    """Seconds of a forward, by the clock and on the CPU, and of the collector's part of it."""

    seconds: float
    cpu_seconds: float
    inside_seconds: float = 0.0
    inside_cpu_seconds: float = 0.0


class MeasuredCollector(Collector):
    """A collector that knows the CPU time of its work on inputs, of all threads."""

    cpu_seconds = 0.0

    def _observe(self, entry: GroupInput, observed: Tensor, call: Call) -> None:
        before = time.process_time()
        super()._observe(entry, observed, call)
        self.cpu_seconds += time.process_time() - before


class Forwards:
    """Forwards of one transformer, each at the next of `timesteps`, and what they take."""

    def __init__(self, model: nn.Module, timesteps: list[float], device: str) -> None:
        self._model, self._timesteps, self._device = model, timesteps, torch.device(device)

    @torch.no_grad()
    def run(self, step: int, inputs: dict[str, Tensor]) -> tuple[float, float]:
        """Seconds by the clock and CPU seconds of the process."""
        self._wait()
        clock, cpu = time.perf_counter(), time.process_time()
        with self._model.cache_context(BRANCH):  # type: ignore[operator]
            self._model(timestep=torch.tensor([self._timesteps[step]], device=self._device), **inputs)
        self._wait()
        return time.perf_counter() - clock, time.process_time() - cpu

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def collector_of(model: nn.Module, timesteps: list[float], rows: int | None, keep_inputs: int) -> MeasuredCollector:
    """A collector that waits for a run of one prompt."""
    inputs = []
    for group, (site, _) in input_groups(WIDTHS).items():
        module = model.get_submodule(to_diffusers(f"{site}.weight").removesuffix(".weight"))
        assert isinstance(module, nn.Linear)
        inputs.append(GroupInput(ROLE, group, module))
    schedules = expert_schedules(timesteps, [ROLE], None, [BRANCH])
    made = MeasuredCollector(
        {ROLE: model}, inputs, schedules, timesteps, rows=rows, by=(), keep_inputs=keep_inputs, keep_calls=0, seed=42,
        on_call=lambda: None,
    )  # fmt: skip
    made.begin("0" * 64)
    return made


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times of every repetition, and their medians."""
    dtype = getattr(torch, options.dtype)
    model = made_transformer(WIDTHS, dtype, options.device)
    steps = options.repeats + 1
    timesteps = [1000.0 - 900.0 * step / steps for step in range(steps)]
    forwards = Forwards(model, timesteps, options.device)
    inputs = inputs_of(options.tokens, dtype, options.device)
    few = inputs_of(WARM_UP_TOKENS, dtype, options.device)
    rows = None if options.rows == "all" else int(options.rows)
    collectors = {
        "statistics": collector_of(model, timesteps, rows, 0),
        "with_kept_rows": collector_of(model, timesteps, rows, options.keep_inputs),
    }
    plain: list[Times] = []
    observed: dict[str, list[Times]] = {name: [] for name in collectors}
    for step in range(steps):
        plain.append(Times(*forwards.run(step, inputs if step else few)))
        for name, collector in collectors.items():
            before = collector.seconds, collector.cpu_seconds
            with collector.attached():
                whole = forwards.run(step, inputs if step else few)
            inside = collector.seconds - before[0], collector.cpu_seconds - before[1]
            observed[name].append(Times(*whole, *inside))
        print(step, plain[-1], *observed.values(), file=sys.stderr, flush=True)
    found: dict[str, Any] = {"plain": asdict(plain[1:])}
    for name, collector in collectors.items():
        pairs = list(zip(plain, observed[name], strict=True))[1:]  # the first warms up
        before_end = collector.seconds
        collector.finish()
        found[name] = {
            "overhead": median(seen.seconds / bare.seconds - 1 for bare, seen in pairs),
            "overhead_cpu": median(seen.cpu_seconds / bare.cpu_seconds - 1 for bare, seen in pairs),
            "inside_over_plain": median(seen.inside_seconds / bare.seconds for bare, seen in pairs),
            "inside_over_plain_cpu": median(seen.inside_cpu_seconds / bare.cpu_seconds for bare, seen in pairs),
            "seconds_at_the_end": collector.seconds - before_end,
            **asdict(observed[name][1:]),
        }
    return found


def asdict(times: list[Times]) -> dict[str, list[float]]:
    """Seconds of every repetition by name."""
    return {name: [round(getattr(entry, name), 4) for entry in times] for name in Times._fields}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for the model and the statistics")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", default="4096", help="rows per call in the histograms, or all")
    parser.add_argument("--keep-inputs", type=int, default=1024)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = {name: getattr(options, name) for name in ("tokens", "dtype", "device", "repeats", "rows", "keep_inputs")}
    figures = {**asked, **measure(options), "machine": machine(), "software": software()}
    if options.device != "cpu":
        figures["device_name"] = torch.cuda.get_device_name(options.device)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
