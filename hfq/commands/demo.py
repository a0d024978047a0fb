"""`hfq demo`: the whole way on the built-in tiny Wan, with the commands that a user would type."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from hfq.console import emit, format_bytes, format_seconds, json_option, note
from hfq.demo_clips import audit_clips, gate_clips, make_clips, psnr_text
from hfq.demo_steps import Steps
from hfq.schema.atomic import refuse_existing
from hfq.schema.errors import InterruptedRunError

__all__ = ["demo_command"]

CALIBRATION_PROMPTS: Final = (
    "a red circle moving left over a black background",
    "a green square moving right over a gray background",
    "a blue triangle moving up over a white background",
    "a yellow cross moving down over a black background",
)


@click.command("demo")
@click.option("-o", "--out", type=click.Path(), help="Folder to make (default: a new one for temporary files).")
@json_option
def demo_command(out: str | None, as_json: bool) -> None:
    """Go the whole way on a small trained Wan model: inspect to audit and gate.

    Every step prints the command that does it. Everything happens in one folder, registry and keys included; nothing
    else on the machine is touched. Takes about a minute on two cores; the first run on a machine compiles kernels, too.
    """
    if out is None:
        folder = Path(tempfile.mkdtemp(prefix="hfq-demo-"))
    else:
        folder = Path(out).absolute()
        refuse_existing(folder, resume=False)
        folder.mkdir()
    try:
        with _inside(folder):
            document, text = _Demo(as_json).run(folder)
    except (KeyboardInterrupt, click.Abort, InterruptedRunError):
        raise InterruptedRunError(
            "the demo was interrupted; what it made so far stays",
            where=folder,
            todo="remove the folder when you have seen it",
        ) from None
    emit(document, text, as_json)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in `folder`, with a registry and keys of its own."""
    import torch

    before, threads = Path.cwd(), torch.get_num_threads()
    own = {"HFQ_REGISTRY": str(folder / "registry.sqlite"), "HFQ_CONFIG": str(folder / "config")}
    outside = {name: os.environ.get(name) for name in own}
    os.chdir(folder)
    # The tiny model's operations are too small to share: on a busy machine a second thread costs several times.
    torch.set_num_threads(1)
    os.environ.update(own)
    try:
        yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
        for name, value in outside.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Demo:
    def __init__(self, quiet: bool) -> None:
        self._say = note if quiet else click.echo
        self._steps = Steps(self._say)

    def run(self, folder: Path) -> tuple[dict[str, Any], str]:
        """All steps; returns the summary as a document and as text."""
        from hfq.convert.tiny.pipeline import WEIGHTS

        started = time.perf_counter()
        self._say(f"In {folder} (HFQ_REGISTRY={folder / 'registry.sqlite'} HFQ_CONFIG={folder / 'config'}):")
        shutil.copytree(WEIGHTS, "tiny-wan")
        Path("prompts.txt").write_text("\n".join(CALIBRATION_PROMPTS) + "\n", encoding="utf-8")

        model = self._steps.step("What is this checkpoint?", "inspect", "tiny-wan")
        sites = {role: entry["sites"] for role, entry in model["experts"].items()}
        self._steps.result(
            f"{model['layout']}, {model['architecture']['num_layers']} blocks, "
            + ", ".join(f"{role}: {_site_text(found)}" for role, found in sites.items())
        )
        calibrated = self._steps.step(
            "Run it once over a prompt set and keep statistics",
            "calibrate", "tiny-wan", "--prompts", "prompts.txt", "--keep-inputs", "64", "-o", "cal",
        )  # fmt: skip
        share = calibrated["statistics_seconds"] / (calibrated["seconds"] - calibrated["statistics_seconds"])
        self._steps.result(
            f"{calibrated['prompts']} prompts, {sum(calibrated['experts'].values())} inputs, "
            f"statistics cost {100 * share:.0f} % over plain generation"
        )
        made = self._steps.step(
            "Quantize: Tail-Aware HiFloat4, W4A4",
            "convert", "tiny-wan", "--recipe", "tail-aware-hif4", "--calibration", "cal", "-o", "tail-aware",
        )  # fmt: skip
        self._steps.result(f"delta:{made['id'][:12]}, {format_bytes(made['delta_bytes'])}")
        verified = self._steps.step(
            "Restore it from the base, bit for bit", "verify", "tail-aware", "--base", "tiny-wan"
        )
        restored = sum(entry["restored"] for entry in verified["experts"].values())
        self._steps.result(f"{restored} of {restored} quantized linears restore to the recorded digests")
        self._steps.step("Errors per block and per linear, as a page", "report", "tail-aware", "-o", "report.html")
        self._steps.result("report.html")
        levels = self._graph()
        registered = self._steps.step("Register it", "register", "tail-aware", "--alias", "tiny@demo")
        self._steps.result(f"delta:{registered['id'][:12]} is now tiny@demo")
        clips = make_clips(self._steps)
        verdicts = audit_clips(self._steps)
        passed = gate_clips(self._steps)
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
            "audits": verdicts,
            "gates": passed,
            "seconds": seconds,
            "step_seconds": self._steps.seconds,
        }
        return document, _summary(document)

    def _graph(self) -> dict[str, str]:
        """Export a block and verify it; returns level -> verdict."""
        from hfq.convert.graphs.verify_onnx import LEVELS

        made = self._steps.step(
            "Export one block as an ONNX graph that any ONNX Runtime runs",
            "export", "onnx", "tail-aware", "--base", "tiny-wan", "--expert", "high_noise", "--block", "3",
            "-o", "block3.onnx",
        )  # fmt: skip
        own = {name: count for name, count in made["nodes"].items() if "::" in name}
        shown = ", ".join(f"{count} {name.partition('::')[2]}" for name, count in own.items())
        self._steps.result(f"block3.onnx, {format_bytes(made['graphs'][0]['size_bytes'])}, with {shown}")
        verified = self._steps.step(
            "Verify it in ONNX Runtime, op by op",
            "verify", "tail-aware", "--base", "tiny-wan", "--onnx", "block3.onnx", "-o", "onnx.json",
        )  # fmt: skip
        found = verified["onnx"]["graphs"][0]["levels"]
        levels = {name: found[name]["verdict"] for name in LEVELS}
        verdicts = dict.fromkeys(verdict for verdict in levels.values() if verdict != "not applicable")
        self._steps.result("; ".join(f"{verdict}: {_listed(levels, verdict)}" for verdict in verdicts))
        return levels


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
    lines.append(f"  clips        {psnr_text(document)}; the first, side by side: {clips}")
    lines += [f"  audit        {clip}: {verdict}" for clip, verdict in document["audits"].items()]
    lines += [
        f"  gate         {workload}: {'passes' if passed else 'fails'}"
        for workload, passed in document["gates"].items()
    ]
    lines.append(f"  registry     delta:{document['delta'][:12]} = tiny@demo")
    lines.append(f"  time         {format_seconds(document['seconds'])}")
    lines.append(
        f"\nEverything is in {document['folder']}, report.html among it; remove the folder when you have seen it.\n"
        f"To go on there: cd {document['folder']} && export HFQ_REGISTRY=$PWD/registry.sqlite HFQ_CONFIG=$PWD/config"
    )
    return "\n".join(lines)
