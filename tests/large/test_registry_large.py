"""A registry of 100,000 deltas, a million scores and a million clips: what a user waits for, through the public API."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))

from factory import make_delta
from processes import Writers
from registry_bulk import METRICS, Filled, Sizes, fill

from hfq.registry import Filters, Registry, open_registry
from hfq.registry.clips.store import RegisteredClips

pytestmark = pytest.mark.large

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "registry.json"
SIZES = Sizes(deltas=100_000, clips=1_000_000, signatures=20_000, detailed=2)
"""With ten scores per delta. Signatures are read by the audit alone, whose look-up another benchmark measures."""

RUNS, WRITERS, EACH = 200, 8, 25
LOOK_UP_MS, LEADERBOARD_MS = 10.0, 50.0
"""Limits of the median. A registration waits for the disk, whose own time is measured beside it."""

Figures = dict[str, Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("large-registry")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def figures() -> Iterator[Figures]:
    """What is measured; written also when a limit is missed."""
    found: Figures = {}
    yield found
    RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


@pytest.fixture(scope="module")
def registry(place: Path, figures: Figures) -> Registry:
    return open_registry(place / "registry.sqlite")


@pytest.fixture(scope="module")
def filled(registry: Registry, figures: Figures) -> Filled:
    started = time.perf_counter()
    found = fill(registry, SIZES)
    figures["registry"] = {
        **asdict(SIZES), "scores": registry.status().counts["scores"], "size_bytes": registry.path.stat().st_size,
        "seconds_to_fill": round(time.perf_counter() - started), "runs": RUNS, "cpus": os.cpu_count(),
        "python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "sqlalchemy": sa.__version__,
    }  # fmt: skip
    return found


def measure(figures: Figures, name: str, work: Callable[[], object]) -> float:
    """Run it RUNS times after once, note p50 and p95, and return p50, milliseconds."""
    work()
    taken: list[float] = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1e3)
    taken.sort()
    middle, late = taken[RUNS // 2], taken[RUNS * 95 // 100]
    figures[name] = {
        "p50_ms": round(middle, 2), "p95_ms": round(late, 2), "least_ms": round(taken[0], 2),
        "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print(f"{name}: p50 {middle:.2f} ms, p95 {late:.2f} ms, least {taken[0]:.2f} ms", flush=True)
    return middle


def test_look_ups(registry: Registry, filled: Filled, figures: Figures) -> None:
    draw = random.Random(5)
    work: dict[str, Callable[[], object]] = {
        "resolve a prefix": lambda: registry.resolve(draw.choice(filled.deltas)[:12]),
        "show by id": lambda: registry.get(draw.choice(filled.deltas)),
        "show by prefix": lambda: registry.get(draw.choice(filled.deltas)[:12]),
        "show by alias": lambda: registry.get(draw.choice(filled.aliases)),
    }
    taken = {name: measure(figures, name, one) for name, one in work.items()}
    some = filled.deltas[50]
    record = registry.get(some[:12])
    assert (record.id, record.aliases, len(record.kept)) == (some, ("wan22-1@prod",), 12)
    assert registry.resolve("wan22-1@prod") == some
    assert max(taken.values()) < LOOK_UP_MS, taken


def test_clip_to_variant(registry: Registry, filled: Filled, figures: Figures) -> None:
    """The exact rungs of the ladder; the scan of signatures is no part of them."""
    draw = random.Random(6)

    def by_file() -> None:
        file, _, variant = draw.choice(filled.clips)
        with registry.database.reading() as session:
            assert [clip.variant.id for clip in RegisteredClips(session).by_file(file)] == [variant]

    def by_stream() -> None:
        _, stream, variant = draw.choice(filled.clips)
        with registry.database.reading() as session:
            assert [clip.variant.id for clip in RegisteredClips(session).by_stream(stream)] == [variant]

    taken = [
        measure(figures, "clip by file hash", by_file), measure(figures, "clip by stream digest", by_stream),
    ]  # fmt: skip
    assert max(taken) < LOOK_UP_MS, taken


def test_leaderboard(registry: Registry, filled: Filled, figures: Figures) -> None:
    """The largest base has half of the deltas; a quarter of its scores has other settings."""
    draw = random.Random(7)
    taken = [
        measure(figures, name, lambda base=base: registry.leaderboard(draw.choice(METRICS), base))
        for name, base in (
            ("leaderboard of 50,000 deltas", filled.bases[0]), ("leaderboard of 2,600 deltas", filled.bases[3]),
        )
    ]  # fmt: skip
    found = registry.leaderboard("scene", filled.bases[0])
    means = [row.mean for row in found.rows]
    assert means == sorted(means, reverse=True)
    assert [row.rank for row in found.rows if row.rank] == list(range(1, 21))
    assert "of 946 prompts " in str(found.rows[0].overlap)
    with registry.database.reading() as session:
        rows = session.connection().exec_driver_sql(
            "SELECT count(*), sum(settings_key = 1), max(mean * (settings_key = 1)) FROM score "
            "WHERE metric = 'scene' AND variant_kind = 'delta' AND base_key = 1"
        )
        total, alike, best = rows.one()
    assert (found.total, sum(one.scores for one in found.left_out), means[0]) == (alike, total - alike, best)
    assert max(taken) < LEADERBOARD_MS, taken


def test_list(registry: Registry, filled: Filled, figures: Figures) -> None:
    newest = measure(figures, "list the newest 50", lambda: registry.list(limit=50))
    assert [delta.id for delta in registry.list(limit=50)[0]] == filled.deltas[:-51:-1]
    base = filled.bases[0]
    narrowed = {
        "base": Filters(base=base[:12]), "preset": Filters(preset="recipe-3"), "percentile": Filters(percentile=99.9),
        "number of kept sites": Filters(kept="12"), "glob of kept sites": Filters(kept="blocks.0.*"),
        "base, preset and percentile": Filters(base=base[:12], preset="recipe-3", percentile=99.0),
    }  # fmt: skip
    for name, filters in narrowed.items():
        measure(figures, f"list by {name}", lambda filters=filters: registry.list(filters, limit=50))
        assert len(registry.list(filters, limit=50)[0]) == 50
    with registry.database.reading() as session:
        count = session.connection().exec_driver_sql("SELECT count(*) FROM delta WHERE base_key = 1").scalar()
    assert registry.list(narrowed["base"], limit=1)[1] == count
    assert newest < LOOK_UP_MS


def test_register(registry: Registry, filled: Filled, figures: Figures, place: Path) -> None:
    folders = [place / "deltas" / str(number) for number in range(2 * (RUNS + 1))]
    ids = {make_delta(folder, seed=folder.name) for folder in folders}
    with (place / "disk").open("wb", buffering=0) as file:

        def wait_for_disk() -> None:
            file.write(bytes(4096))
            os.fsync(file.fileno())

        measure(figures, "the disk: 4 kB and fsync", wait_for_disk)
    waiting = iter(folders)
    measure(figures, "register", lambda: registry.register(next(waiting)))
    with registry:
        measure(figures, "register, many in a row", lambda: registry.register(next(waiting)))
    assert registry.status().counts["deltas"] == len(filled.deltas) + len(ids)
    assert all(registry.resolve(delta_id) == delta_id for delta_id in ids)
    assert [path.name for path in place.glob("registry.sqlite*")] == ["registry.sqlite"]


def test_eight_writers_at_once(registry: Registry, filled: Filled, figures: Figures, place: Path) -> None:
    before = registry.status().counts["deltas"]
    folders = [place / "many" / str(number) for number in range(WRITERS * EACH)]
    for folder in folders:
        make_delta(folder, seed=f"many {folder.name}")
    writers = Writers(registry.path, [folders[start::WRITERS] for start in range(WRITERS)])
    started = time.perf_counter()
    writers.release()
    assert len(writers.finish()) == len(folders)
    seconds = time.perf_counter() - started
    figures["8 writers at once"] = {"registered": len(folders), "per_second": round(len(folders) / seconds, 1)}
    assert registry.status().counts["deltas"] == before + len(folders)
