"""Speed against our eager twin, peers and limits, all in one run.

    make bench        # or: python benchmarks/bench.py --out benchmarks/results --docs docs/performance.md

Kernels are measured here (`bench_kernels.py`), whole commands by scripts of their own, whose figures are read
(`bench_commands.py`). The terminal shows every ratio next to the committed one; one that fell by more than 20 % is red.
The exit code is 0 all the same: a ratio is a figure, and no test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

from bench_commands import COMMANDS
from bench_first_use import first_use
from bench_floors import Row, changes
from bench_kernels import MORE, WORKS, measure, measure_sizes
from bench_peers import Inputs, usable_peers
from bench_table import replace_figures, table, tables
from timing import ROUNDS, OtherWork

from hfq.convert.provenance import machine
from hfq.formats import _compiled
from hfq.schema.atomic import write_file

RESULTS: Final = "bench.json"
SCALED: Final = ("hif4.quantize", "hif4.dequantize", "hif4.qdq", "hif8.quantize", "hif8.dequantize", "hif8.qdq")
"""Works that are also measured over tensor sizes."""
FULL: Final[Mapping[str, Any]] = {
    "rounds": ROUNDS,
    "elements": 5120 * 5120,  # a linear of the 14B models
    "columns": 5120,
    "more_elements": 1 << 21,
    "peer_s": 0.15,
    "sizes": [1 << power for power in (12, 14, 16, 18, 20, 22)],
    "first_use": {"cold": 1, "warm": 7},
}
QUICK: Final[Mapping[str, Any]] = {
    "rounds": 3,
    "elements": 1 << 20,
    "columns": 1024,
    "more_elements": 1 << 18,
    "peer_s": 0.02,
    "sizes": [1 << 12, 1 << 16],
    "first_use": {"cold": 0, "warm": 0},
}


def run(settings: Mapping[str, Any], works: Sequence[str], threads: Sequence[int]) -> dict[str, Any]:
    """Measure everything.

    Args:
        settings: `FULL` or `QUICK`.
        works: keys of `WORKS` and `MORE`.
        threads: numbers of threads, each for every work.

    Returns:
        the document that bench.json holds.

    Raises:
        SystemExit: the kernels cannot be compiled here.
    """
    others, begin = OtherWork(), time.monotonic()
    peers, missing = usable_peers()
    for name, why in missing.items():
        _say(f"{name} is left out: {why}")
    started = first_use(**settings["first_use"]) if settings["first_use"]["warm"] else {}
    inputs = Inputs.made(settings["elements"], settings["columns"])
    smaller = Inputs.made(settings["more_elements"], 1024)
    if not _compiled.runs_compiled(inputs.x, inputs.x):
        raise SystemExit("numba does not work here, so there is nothing to measure")
    rows = []
    for key in works:
        for count in threads:
            _say(f"{key}, threads: {count}")
            asked = {name: peer for name, peer in peers.items() if key in peer.works}
            given = smaller if key in MORE else inputs
            rows.append(measure(key, given, count, asked, rounds=settings["rounds"], peer_s=settings["peer_s"]))
    scaled = [key for key in works if key in SCALED]
    sizes = []
    for count in threads:
        _say(f"tensor sizes, threads: {count}")
        sizes += measure_sizes(scaled, settings["sizes"], count, rounds=settings["rounds"])
    return {
        "settings": dict(settings),
        "run_seconds": time.monotonic() - begin,
        "machine": _machine(threads, others),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "numpy", "numba", "llvmlite")},
        "works": {key: (WORKS | MORE)[key].label for key in works},
        "peers": {
            name: {"package": peer.package, "version": peer.version, "call": peer.call, "differs": peer.differs}
            for name, peer in peers.items()
        },
        "missing_peers": missing,
        "first_use": started,
        "rows": rows,
        "sizes": sizes,
    }


def _machine(threads: Sequence[int], others: OtherWork) -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {**machine(), "threads": list(threads), "memory_gb": memory, "other_processes": others.share()}


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def _command_rows(folder: Path, *, committed: bool = False) -> dict[str, list[Row]]:
    """Title of a command's table -> its rows, none where its script has written no figures."""
    rows: dict[str, list[Row]] = {}
    for command in COMMANDS:
        document = _committed(folder / command.results) if committed else _read(folder / command.results)
        rows[command.title] = [] if document is None else command.rows(document)
    return rows


def _read(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _committed(path: Path) -> dict[str, Any] | None:
    """The document as git has it, else as it lies there: a second run must not be compared with the first."""
    try:
        found = subprocess.run(
            ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return _read(path)
    return dict(json.loads(found.stdout))


def _rounded(value: Any) -> Any:
    """Floats to 5 significant digits, which is more than a timing has."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _text(document: Mapping[str, Any]) -> str:
    """JSON with a line per row."""
    lists = ("rows", "sizes")
    head = json.dumps({key: value for key, value in document.items() if key not in lists}, indent=1)
    body = ",\n".join(
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in document[name]) + "\n ]" for name in lists
    )
    return f"{head.removesuffix('}').rstrip()},\n{body}\n}}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--quick", action="store_true", help="small tensors and 3 rounds: does it run?")
    parser.add_argument("--works", help=f"of {', '.join(WORKS | MORE)}, with commas; all without it")
    parser.add_argument("--threads", help="numbers with commas", default=",".join(map(str, sorted({1, cores}))))
    parser.add_argument("--render", action="store_true", help="measure nothing; tables from OUT/bench.json")
    parser.add_argument("--out", type=Path, help="folder for bench.json, where the other scripts' JSON is read")
    parser.add_argument("--docs", type=Path, help="Markdown file whose marked part is replaced")
    args = parser.parse_args()
    works = list(WORKS | MORE) if args.works is None else args.works.split(",")
    if unknown := [key for key in works if key not in WORKS | MORE]:
        parser.error(f"no such work: {', '.join(unknown)}")
    partial = args.quick or args.works is not None
    if args.docs and partial and not args.render:
        parser.error("--docs is for a full run")
    home = Path(__file__).parent / "results"
    folder = args.out or home
    if partial and args.out and not args.render and args.out.resolve() == home.resolve():
        parser.error("benchmarks/results holds full runs; give another --out")
    before = (
        _committed(folder / RESULTS) if folder == home or (folder / RESULTS).exists() else _committed(home / RESULTS)
    )
    if args.render:
        document = _read(folder / RESULTS)
        if document is None:
            parser.error(f"there is no {folder / RESULTS}")
    else:
        threads = [int(count) for count in args.threads.split(",")]
        document = _rounded(run(QUICK if args.quick else FULL, works, threads))
        if args.out:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / RESULTS, _text(document).encode())
    commands = _command_rows(folder)
    old_commands = _command_rows(folder, committed=True)
    old = [row for rows in old_commands.values() for row in rows]
    old += [] if before is None else [*before["rows"], *before["sizes"]]
    shown = [row for rows in commands.values() for row in rows]
    print(table(document, shown, old, colour=sys.stdout.isatty()))
    fallen = [
        change for change in changes([*document["rows"], *document["sizes"], *shown], old) if change.is_regression
    ]
    if before is not None and (before["machine"]["cpu"], before["machine"]["cores"]) != (
        document["machine"]["cpu"],
        document["machine"]["cores"],
    ):
        _say("the committed figures are from another machine")
    _say(f"{document['run_seconds'] / 60:.1f} minutes")
    _say(f"{len(fallen)} ratios fell by more than 20 % against the committed figures")
    if args.docs:
        page = replace_figures(args.docs.read_text(encoding="utf-8"), tables(document, commands))
        write_file(args.docs, page.encode())


if __name__ == "__main__":
    main()
