"""How often `hfq audit` is right, on clips of the tiny Wan: the figures of docs/audit.md.

    python benchmarks/audit_shares.py --work DIR --out benchmarks/results/audit.json --docs docs/audit.md

Clips of registered variants, of variants that nobody registered, and of no variant (`audit_materials.py`) are changed
as people change files (`audit_transforms.py`) and looked up. Rows are kept per clip in the work folder, so that an
interrupted run goes on; they are made anew when the code of the clip rooms has changed. `--render` makes the tables
from the JSON alone.

The margin above which a variant counts as decided is looked at twice: on the scenes with even numbers, where one might
choose it, and on the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

# Before torch is imported: threads that spin on a busy machine cost 3 to 10 times.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent / "tiny_wan"))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from audit_materials import REGISTERED, UNKNOWN, UNREGISTERED, Clips, Settings
from audit_table import replace_figures, summarise, tables
from audit_transforms import FORGED, TRANSFORMS, forge

import hfq.registry.clips
from hfq.convert.provenance import machine, software
from hfq.schema.atomic import write_file

__all__ = ["measure"]

KINDS: Final = {"registered": REGISTERED, "unregistered": UNREGISTERED, "unknown": UNKNOWN}
LIE: Final = REGISTERED[1]
"""The variant that forged tags name."""

Row = dict[str, Any]


def measure(work: Path, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Make the clips, look all of them up after every transform, and return the document of the figures."""
    torch.set_num_threads(1)
    started = time.monotonic()
    clips = Clips(work, settings)
    clips.make(say)
    made = time.monotonic()
    rows: list[Row] = []
    for kind, groups in KINDS.items():
        for group in groups:
            for clip in clips.of(group):
                rows += [{"kind": kind, **row} for row in _rows(clips, group, clip)]
            say(f"{group}: looked up")
    return {
        "settings": asdict(settings),
        "machine": machine(),
        "software": software(),
        "seconds_of_this_run": {"clips": round(made - started, 1), "look_ups": round(time.monotonic() - made, 1)},
        **summarise(rows),
    }


def _rows(clips: Clips, group: str, clip: Path) -> list[Row]:
    """The look-ups of one clip, kept in the work folder."""
    kept = clips.folder / "rows" / _code_digest() / f"{group}-{clip.stem}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_file(kept, json.dumps(list(_look_up(clips, group, clip))).encode())
    return list(json.loads(kept.read_text(encoding="utf-8")))


def _look_up(clips: Clips, group: str, clip: Path) -> Iterator[Row]:
    names = {clips.variant(name): name for name in REGISTERED}
    with tempfile.TemporaryDirectory(prefix="hfq-audit-") as scratch:
        folder = Path(scratch)
        made = {name: transform(clip, folder) for name, transform in TRANSFORMS.items()}
        if group in UNREGISTERED:
            made[FORGED] = forge(clip, folder, clips.document(clips.of(LIE)[int(clip.stem)]))
        for transform, path in made.items():
            found = clips.registry.audit(path, anchors_pem=clips.anchors)
            yield {
                "group": group,
                "scene": int(clip.stem),
                "transform": transform,
                "exit_code": found.exit_code,
                "named": None if found.variant is None else names.get(found.variant, "another"),
                "states": [str(rung.state) for rung in found.rungs],
                "nearest": found.match.nearest,
                "margin": found.match.margin,
                "candidates": [[names[one.variant], one.distance] for one in found.match.candidates],
                "contradictions": list(found.contradictions),
            }


def _code_digest() -> str:
    """Of the code that a row depends on, 12 hex digits."""
    here = Path(__file__).parent
    files = sorted(Path(hfq.registry.clips.__path__[0]).glob("*.py"))
    digest = hashlib.sha256()
    for file in (*files, here / "audit_transforms.py", Path(__file__)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for clips and rows; a run goes on in it")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the figures")
    parser.add_argument("--docs", type=Path, help="page whose tables are replaced")
    parser.add_argument("--render", action="store_true", help="make the tables from --out, and measure nothing")
    given = parser.parse_args()
    if given.work is None and not given.render:
        parser.error("--work is missing")
    if not given.render:
        document = measure(given.work, Settings(), lambda text: print(text, file=sys.stderr, flush=True))
        write_file(given.out, (json.dumps(document, indent=1) + "\n").encode())
    text = tables(json.loads(given.out.read_text(encoding="utf-8")))
    print(text)
    if given.docs is not None:
        write_file(given.docs, replace_figures(given.docs.read_text(encoding="utf-8"), text).encode())


if __name__ == "__main__":
    main()
