"""`hfq demo`: the whole way on the built-in tiny Wan, with the commands that a user would type."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from hfq.console import emit, format_bytes, format_seconds, json_option, note
from hfq.schema.atomic import refuse_existing
from hfq.schema.errors import HfqError

__all__ = ["demo_command"]

CALIBRATION_PROMPTS: Final = (
    "a red circle moving left over a black background",
    "a green square moving right over a gray background",
    "a blue triangle moving up over a white background",
    "a yellow cross moving down over a black background",
)
# Not among the calibration prompts: a clip of one of these would flatter the recipe.
CLIP_PROMPT: Final = "a blue square moving right over a black background"
CLIP_SEED: Final = 7
_ZOOM: Final = 8
_FPS: Final = 6


class DemoStepError(HfqError):
    """A step of the demo failed; the message is the step's own."""

    code = "demo-step"


@click.command("demo")
@click.option("-o", "--out", type=click.Path(), help="Folder to make (default: a new one for temporary files).")
@json_option
def demo_command(out: str | None, as_json: bool) -> None:
    """Go the whole way on a small trained Wan model: inspect, calibrate, convert, verify, register, generate.

    Every step prints the command that does it. Everything happens in one folder, the registry included; nothing else on
    the machine is touched. Takes about a minute on two cores.
    """
    if out is None:
        folder = Path(tempfile.mkdtemp(prefix="hfq-demo-"))
    else:
        folder = Path(out).absolute()
        refuse_existing(folder, resume=False)
        folder.mkdir()
    with _inside(folder):
        document, text = _Demo(as_json).run(folder)
    emit(document, text, as_json)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in `folder`, with a registry of its own."""
    import torch

    before, registry, threads = Path.cwd(), os.environ.get("HFQ_REGISTRY"), torch.get_num_threads()
    os.chdir(folder)
    # The tiny model's operations are too small to share: on a busy machine a second thread costs several times.
    torch.set_num_threads(1)
    os.environ["HFQ_REGISTRY"] = str(folder / "registry.sqlite")
    try:
        yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
        if registry is None:
            del os.environ["HFQ_REGISTRY"]
        else:
            os.environ["HFQ_REGISTRY"] = registry


class _Demo:
    def __init__(self, quiet: bool) -> None:
        self._say = note if quiet else click.echo
        self._seconds: dict[str, float] = {}

    def step(self, title: str, *arguments: str) -> dict[str, Any]:
        """Print a command, run it, and return its `--json` document."""
        from hfq.cli import run

        self._say(f"\n{title}\n  $ hfq {shlex.join(arguments)}")
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exit_code = run([*arguments, "--json"])
        if exit_code != 0:
            command = f"hfq {shlex.join(arguments)}"
            raise DemoStepError("a step failed, see above", where=command, found=f"exit code {exit_code}")
        self._seconds[arguments[0]] = self._seconds.get(arguments[0], 0.0) + time.perf_counter() - started
        found: dict[str, Any] = json.loads(output.getvalue())
        return found

    def result(self, text: str) -> None:
        """Print a step's result in one line."""
        self._say(f"  → {text}")

    def run(self, folder: Path) -> tuple[dict[str, Any], str]:
        """All steps; returns the summary as a document and as text."""
        from hfq.convert.tiny.pipeline import WEIGHTS

        started = time.perf_counter()
        self._say(f"In {folder} (HFQ_REGISTRY={folder / 'registry.sqlite'}):")
        shutil.copytree(WEIGHTS, "tiny-wan")
        Path("prompts.txt").write_text("\n".join(CALIBRATION_PROMPTS) + "\n", encoding="utf-8")

        model = self.step("1  What is this checkpoint?", "inspect", "tiny-wan")
        sites = {role: entry["sites"] for role, entry in model["experts"].items()}
        self.result(
            f"{model['layout']}, {model['architecture']['num_layers']} blocks, "
            + ", ".join(f"{role}: {_site_text(found)}" for role, found in sites.items())
        )
        calibrated = self.step(
            "2  Run it once over a prompt set and keep statistics",
            "calibrate", "tiny-wan", "--prompts", "prompts.txt", "--keep-inputs", "64", "-o", "cal",
        )  # fmt: skip
        share = calibrated["statistics_seconds"] / (calibrated["seconds"] - calibrated["statistics_seconds"])
        self.result(
            f"{calibrated['prompts']} prompts, {sum(calibrated['experts'].values())} inputs, "
            f"statistics cost {100 * share:.0f} % over plain generation"
        )
        made = self.step(
            "3  Quantize: Tail-Aware HiFloat4, W4A4",
            "convert", "tiny-wan", "--recipe", "tail-aware-hif4", "--calibration", "cal", "-o", "tail-aware",
        )  # fmt: skip
        self.result(f"delta:{made['id'][:12]}, {format_bytes(made['delta_bytes'])}")
        verified = self.step("4  Restore it from the base, bit for bit", "verify", "tail-aware", "--base", "tiny-wan")
        restored = sum(entry["restored"] for entry in verified["experts"].values())
        self.result(f"{restored} of {restored} quantized linears restore to the recorded digests")
        self.step("5  Errors per block and per linear, as a page", "report", "tail-aware", "-o", "report.html")
        self.result("report.html")
        levels = self._graph()
        registered = self.step("8  Register it", "register", "tail-aware", "--alias", "tiny@demo")
        self.result(f"delta:{registered['id'][:12]} is now tiny@demo")
        clips = self._clips()
        seconds = time.perf_counter() - started
        document = {
            "folder": str(folder),
            "delta": made["id"],
            "routing": made["routing"],
            "delta_bytes": made["delta_bytes"],
            "base_bytes": made["base_bytes"],
            "error": made["error"],
            "onnx": levels,
            **clips,
            "seconds": seconds,
            "step_seconds": self._seconds,
        }
        return document, _summary(document)

    def _graph(self) -> dict[str, str]:
        """Export a block and verify it; returns level -> verdict."""
        from hfq.convert.graphs.verify_onnx import LEVELS

        made = self.step(
            "6  Export one block as an ONNX graph that any ONNX Runtime runs",
            "export", "onnx", "tail-aware", "--base", "tiny-wan", "--expert", "high_noise", "--block", "3",
            "-o", "block3.onnx",
        )  # fmt: skip
        own = {name: count for name, count in made["nodes"].items() if "::" in name}
        shown = ", ".join(f"{count} {name.partition('::')[2]}" for name, count in own.items())
        self.result(f"block3.onnx, {format_bytes(made['graphs'][0]['size_bytes'])}, with {shown}")
        verified = self.step(
            "7  Verify it in ONNX Runtime, op by op",
            "verify", "tail-aware", "--base", "tiny-wan", "--onnx", "block3.onnx", "-o", "onnx.json",
        )  # fmt: skip
        found = verified["onnx"]["graphs"][0]["levels"]
        levels = {name: found[name]["verdict"] for name in LEVELS}
        verdicts = dict.fromkeys(verdict for verdict in levels.values() if verdict != "not applicable")
        self.result("; ".join(f"{verdict}: {_listed(levels, verdict)}" for verdict in verdicts))
        return levels

    def _clips(self) -> dict[str, Any]:
        common = ("--prompt", CLIP_PROMPT, "--seed", str(CLIP_SEED), "--zoom", str(_ZOOM), "--fps", str(_FPS))
        self.step(
            "9  The same prompt and seed, from the base ...",
            "generate", "--base", "tiny-wan", *common, "-o", "bf16.mp4",
        )  # fmt: skip
        self.result("bf16.mp4")
        self.step(
            "10 ... and from the delta on top of it",
            "generate", "--base", "tiny-wan", "--delta", "tiny@demo", *common, "-o", "hif4.mp4",
        )  # fmt: skip
        from hfq.convert.video import psnr_db, read_clip, side_by_side, write_clip

        bf16, hif4 = read_clip(Path("bf16.mp4")), read_clip(Path("hif4.mp4"))
        write_clip(Path("side-by-side.gif"), side_by_side([("BF16", bf16), ("HiFloat4 W4A4", hif4)]), _FPS)
        psnr = psnr_db(bf16, hif4)
        self.result(f"hif4.mp4, {psnr:.1f} dB PSNR to the BF16 clip")
        return {"psnr_db": psnr, "side_by_side": "side-by-side.gif"}


def _listed(levels: dict[str, str], verdict: str) -> str:
    return ", ".join(name for name, found in levels.items() if found == verdict)


def _site_text(sites: dict[str, Any]) -> str:
    return f"{sites['blocks']} linears in blocks + {sites['outside']} outside"


def _summary(document: dict[str, Any]) -> str:
    lines = ["", "Summary"]
    for row in document["routing"]:
        blocks = f" in {row['blocks']} blocks" if row["blocks"] else ""
        lines.append(f"  routing      {row['expert']}: {row['to']} {row['sites']} linears{blocks}  ({row['reason']})")
    ratio = document["base_bytes"] / document["delta_bytes"]
    lines.append(
        f"  size         delta {format_bytes(document['delta_bytes'])}, base {format_bytes(document['base_bytes'])} "
        f"({ratio:.0f} : 1)"
    )
    for role, error in document["error"].items():
        lines.append(
            f"  error        {role}: weights {error['weight_nmse']:.2e}, "
            f"linear outputs {error['output_nmse']:.2e} (NMSE)"
        )
    clips = Path(document["folder"]) / document["side_by_side"]
    lines.append(f"  clips        {clips}: {document['psnr_db']:.1f} dB PSNR")
    lines.append(f"  registry     delta:{document['delta'][:12]} = tiny@demo")
    lines.append(f"  time         {format_seconds(document['seconds'])}")
    lines.append(
        f"\nEverything is in {document['folder']}, report.html among it; remove the folder when you have seen it.\n"
        f"To go on there: cd {document['folder']} && export HFQ_REGISTRY=$PWD/registry.sqlite"
    )
    return "\n".join(lines)
