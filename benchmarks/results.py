"""The tables of docs/results.md: every recipe on the tiny Wan, measured the same way.

    make results      # or: python benchmarks/results.py --work DIR --out benchmarks/results --docs docs/results.md

What every arm needs is made once (`result_materials.py`), then each arm is measured in a worker process with one thread
(`result_measure.py`); its row is kept in the work folder, so that an interrupted run goes on. A row is used again only
for the same arm, settings, calibration and code. `--render` makes the tables anew from results.json.

Intervals are 95 %: bootstrap for means, Wilson for shares; differences to plain rounding are paired by call or clip.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

# Before torch is imported, here and in every worker: threads that spin on a busy machine cost 3 to 10 times.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent / "tiny_wan"))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from result_arms import Arm, all_arms
from result_materials import Materials, Settings
from result_measure import code_digest, measure_arm
from result_table import replace_tables, summarise_rows, tables

import hfq
from hfq.convert.provenance import machine, software
from hfq.schema.atomic import write_file

RESULTS: Final = "results.json"


def _say(text: str) -> None:
    # The time of day: workers have no other clock in common with the process that started them.
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


class Rows:
    """Rows that are done, in the work folder.

    Args:
        materials: made.
        code: digest of the code that measures now.
        any_code: also use rows that other code has made.
    """

    def __init__(self, materials: Materials, code: str, *, any_code: bool) -> None:
        self._folder, self._any_code = materials.folder / "rows", any_code
        with hfq.load_calibration(materials.calibration) as calibration:
            self._made_with = {"calibration": calibration.id, "code": code}

    def read(self, arm: Arm) -> dict[str, Any] | None:
        """The row of an arm, or None: not measured, or from another recipe, calibration or code."""
        path = self._path(arm)
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        wanted = self._key(arm)
        if self._any_code:
            wanted["code"] = found["made_with"].get("code")
        return dict(found["row"]) if found["made_with"] == wanted else None

    def write(self, arm: Arm, row: dict[str, Any]) -> None:
        """Keep the row of an arm."""
        content = {"made_with": self._key(arm), "row": {**row, "code": self._made_with["code"]}}
        write_file(self._path(arm), (json.dumps(content) + "\n").encode())

    def _key(self, arm: Arm) -> dict[str, Any]:
        definition = json.dumps(arm.definition(), sort_keys=True).encode()
        return {**self._made_with, "arm": hashlib.sha256(definition).hexdigest()}

    def _path(self, arm: Arm) -> Path:
        return self._folder / f"{arm.key}.json"


def _worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker whose parent was killed would wait for work for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; after an error or Ctrl-C what has not begun does not begin."""
    # Fork would copy torch's threads in a state that they cannot go on from.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_worker) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise SystemExit("a worker process was killed; run again to go on") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make(materials: Materials, name: str) -> float:
    return materials.make(name)


def _measure(materials: Materials, arm: Arm) -> dict[str, Any]:
    """A row, or one with `failed`: an arm that cannot be measured must not end a run of an hour."""
    _say(f"{arm.key} begins")
    started = time.monotonic()
    try:
        row = measure_arm(arm, materials)
    except Exception as error:
        traceback.print_exc()
        return {"key": arm.key, "arm": arm.label, "family": arm.family, "failed": f"{type(error).__name__}: {error}"}
    return {**row, "seconds": round(time.monotonic() - started, 1)}


def _in_order_of_ending(
    pool: ProcessPoolExecutor, function: Callable[..., Any], materials: Materials, given: Sequence[Any]
) -> Iterator[tuple[Any, Any]]:
    """(argument, result) of each, as they end."""
    futures: dict[Future[Any], Any] = {pool.submit(function, materials, value): value for value in given}
    for future in as_completed(futures):
        yield futures[future], future.result()


def measure(settings: Settings, work: Path, wanted: Sequence[Arm], jobs: int, *, any_code: bool) -> dict[str, Any]:
    """Measure what is wanted and not done.

    Args:
        work: folder for materials and rows.
        wanted: arms to measure; rows of others are in the document when they are in the folder.
        jobs: worker processes.
        any_code: see `Rows`.

    Returns:
        the results document.
    """
    materials, code = Materials(work, settings), code_digest()
    for left in materials.folder.glob("delta-*"):  # of a run that was killed
        shutil.rmtree(left)
    with _workers(jobs) as pool:
        missing = materials.missing()
        _say(f"to be made: {', '.join(missing)}" if missing else "calibration, calls and reference are there")
        for name, seconds in _in_order_of_ending(pool, _make, materials, missing):
            _say(f"{name}: {seconds} s")
        rows = Rows(materials, code, any_code=any_code)
        todo = [arm for arm in wanted if rows.read(arm) is None]
        _say(f"{len(wanted) - len(todo)} of {len(wanted)} arms are done already")
        failed: dict[str, dict[str, Any]] = {}
        for count, (arm, row) in enumerate(_in_order_of_ending(pool, _measure, materials, todo), 1):
            if "failed" in row:
                failed[arm.key] = row
            else:
                rows.write(arm, row)
            words = row.get("failed") or row.get("refused") or f"{row['seconds'] / 60:.1f} min"
            _say(f"[{count}/{len(todo)}] {arm.key}: {words}")
    found = [failed.get(arm.key) or rows.read(arm) for arm in all_arms()]
    return _document(materials, code, [row for row in found if row is not None])


def _document(materials: Materials, code: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    settings = materials.settings
    return {
        **asdict(settings),
        "forced_calls": {role: len(calls) for role, calls in materials.calls().items()},
        "material_seconds": materials.seconds(),
        "code": code,
        "software": software(),
        "machine": machine(),
        "python": platform.python_version(),
        "figures": summarise_rows(rows, settings.forced),
        "rows": list(rows),
    }


def _rounded(value: Any) -> Any:
    """Floats to 7 significant digits: the file shows what was measured, not the last bits of a mean."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _write(document: dict[str, Any], folder: Path) -> None:
    # A line per row: indenting every figure of every call would be 6,000 lines.
    rows = ",\n".join(f"  {json.dumps(_rounded(row))}" for row in document["rows"])
    head = json.dumps(_rounded({key: value for key, value in document.items() if key != "rows"}), indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    text = f'{head.removesuffix("}").rstrip()},\n "rows": [\n{rows}\n ]\n}}\n'
    write_file(folder / RESULTS, text.encode())


def _chosen(text: str | None) -> list[Arm]:
    arms = {arm.key: arm for arm in all_arms()}
    if text is None:
        return list(arms.values())
    unknown = [key for key in text.split(",") if key not in arms]
    if unknown:
        raise SystemExit(f"no such arm: {', '.join(unknown)}; there are {', '.join(arms)}")
    return [arms[key] for key in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=Settings.pairs, help="prompt-seed pairs")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="worker processes, 1 thread each")
    parser.add_argument(
        "--work",
        type=Path,
        help="folder that an interrupted run goes on in, one run at a time; without it none is kept",
    )
    parser.add_argument("--arms", help="keys of the arms to measure, with commas; all without it")
    parser.add_argument("--list", action="store_true", help="print keys and labels of the arms and stop")
    parser.add_argument("--any-code", action="store_true", help="use rows in WORK that other code has made")
    parser.add_argument("--render", action="store_true", help="measure nothing; tables from OUT/results.json")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    parser.add_argument("--docs", type=Path, help="Markdown file whose marked part is replaced")
    args = parser.parse_args()
    wanted = _chosen(args.arms)
    if args.list:
        print("\n".join(f"{arm.key:32} {arm.label}" for arm in wanted))
        return
    if args.out is None:
        parser.error("--out is needed")
    if args.render:
        document = json.loads((args.out / RESULTS).read_text(encoding="utf-8"))
        document["figures"] = summarise_rows(document["rows"], min(document["forced_prompts"], document["pairs"]))
    else:
        work = args.work or Path(tempfile.mkdtemp(prefix="hfq-results-"))
        try:
            document = measure(Settings(pairs=args.pairs), work, wanted, args.jobs, any_code=args.any_code)
        finally:
            if args.work is None:
                shutil.rmtree(work, ignore_errors=True)
    _write(document, args.out)
    text = tables(document)
    print(text)
    if args.docs:
        args.docs.write_text(replace_tables(args.docs.read_text(encoding="utf-8"), text), encoding="utf-8")
    _say("done")
    if any("failed" in row for row in document["rows"]):
        raise SystemExit("some arms failed; run again to try them again")


if __name__ == "__main__":
    main()
