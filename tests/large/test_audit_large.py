"""Audits at size: one clip among a million in seconds and bounded memory; how often audits of real clips are right."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from hfq.registry import Registry, open_registry
from hfq.registry.clips.evidence import gather_evidence
from hfq.registry.clips.match import SCENE_DISTANCE
from hfq.registry.clips.signature import Signature, distances
from hfq.registry.clips.sketch import sketch_of
from hfq.registry.upgrade import upgrade
from hfq.schema.atomic import write_file

pytestmark = pytest.mark.large

ROOT = Path(__file__).parents[2]
MB = 1e6
VARIANTS = 20
"""Per scene."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("audit")
    yield made
    shutil.rmtree(made)


def pictures(scene: int, count: int) -> npt.NDArray[np.float64]:
    """[count, 8, 16, 16]: two soft shapes that move over a plain background, and weak differences between variants."""
    random = np.random.default_rng(scene)
    t, y, x = np.ogrid[0:1:8j, 0:1:16j, 0:1:16j]
    picture = np.zeros((8, 16, 16))
    for _ in range(2):
        left, top, dx, dy = random.uniform((0, 0, -0.5, -0.5), (1, 1, 0.5, 0.5))
        size = random.uniform(0.01, 0.06)
        picture += random.normal() * np.exp(-((x - left - dx * t) ** 2 + (y - top - dy * t) ** 2) / size)
    return np.asarray(picture + 0.02 * picture.std() * random.normal(size=(count, 8, 16, 16)))


def signatures(scene: int, count: int) -> list[Signature]:
    centred = pictures(scene, count)
    centred -= centred.mean(axis=(1, 2, 3), keepdims=True)
    scaled = np.rint(centred * (32767 / np.abs(centred).max(axis=(1, 2, 3), keepdims=True)))
    return [Signature(one.tobytes()) for one in scaled.astype("<i2")]


def fill(path: Path, count: int) -> Registry:
    """A registry of so many clips, VARIANTS of every scene."""
    registry = open_registry(path)
    upgrade(registry.database)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        for scene in range(count // VARIANTS):
            some = signatures(scene, VARIANTS)
            keys = range(scene * VARIANTS + 1, (scene + 1) * VARIANTS + 1)
            connection.executemany(
                "INSERT INTO clip VALUES (?, ?, ?, 'delta', ?, ?, 'clip.mp4', 'mp4', 1, 8, 16, 16, '{}', NULL, 0, '')",
                [(key, f"{key:064x}", f"{key:064x}", f"{key % VARIANTS:064x}", f"{scene:064x}:7") for key in keys],
            )
            connection.executemany(
                "INSERT INTO clip_signature VALUES (?, ?)", zip(keys, (one.data for one in some), strict=True)
            )
            connection.executemany(
                "INSERT INTO clip_sketch VALUES (?, ?)", zip(keys, map(sketch_of, some), strict=True)
            )
        connection.commit()
    return registry


def film(path: Path, scene: int) -> Path:
    """The pictures of a scene as a clip of 256x256."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        cells = pictures(scene, 1)[0]
        for cell in 128 + cells * (100 / np.abs(cells).max()):
            frame = cell.clip(0, 255).astype(np.uint8).repeat(16, 0).repeat(16, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray").reformat(format="yuv420p")))
        container.mux(stream.encode())
    return path


def audit(registry: Registry, clip: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """`hfq audit --json` in a process of its own: its document, seconds, seconds of CPU, and peak resident bytes."""
    environment = {**os.environ, "HFQ_REGISTRY": str(registry.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "import sys; from hfq.cli import run; sys.exit(run(sys.argv[1:]))"]
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, "audit", str(clip), "--json"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 5
    return json.loads(output), {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }


def full_scan(registry: Registry, query: Signature) -> tuple[float, int]:
    """The smallest distance of all, and the number of clips nearer than SCENE_DISTANCE."""
    least, near = 2.0, 0
    with closing(sqlite3.connect(registry.path)) as connection:
        cursor = connection.execute("SELECT data FROM clip_signature")
        while rows := cursor.fetchmany(1024):
            found = distances(query, [Signature(data) for (data,) in rows])
            least, near = min(least, float(found.min())), near + int((found < SCENE_DISTANCE).sum())
    return least, near


@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_one_clip_among_many(folder: Path, count: int, figures: dict[str, Any]) -> None:
    """The answer of the full scan, from the sketches: for a clip of a known scene and for one of none."""
    clips = {name: film(folder / f"{name}-{count}.mp4", scene) for name, scene in (("known", 77), ("unknown", 10**9))}
    _, without = audit(open_registry(folder / "none.sqlite"), clips["known"])
    registry = fill(folder / f"{count}.sqlite", count)
    for name, clip in clips.items():
        _, first = audit(registry, clip)
        found, took = audit(registry, clip)
        started = time.perf_counter()
        nearest, near = full_scan(registry, gather_evidence(clip).signature)
        scan = round(time.perf_counter() - started, 2)
        more = took["peak_rss_bytes"] - without["peak_rss_bytes"]
        figures[f"audit among {count} clips: {name} scene"] = {
            **took, "first": first, "without_registry": without, "full_scan_seconds": scan,
            "registry_bytes": registry.path.stat().st_size, "load_average": round(os.getloadavg()[0], 1),
        }  # fmt: skip
        print(f"{count} clips, {name} scene: {took} (first {first}, without a registry {without}; full scan {scan} s)")
        assert found["nearest_distance"] == nearest
        assert found["nearest_at_least"] == nearest
        assert (near > 0) == (name == "known")
        assert len(found["candidates"]) == (VARIANTS if name == "known" else 0)
        assert took["cpu_seconds"] - without["cpu_seconds"] < 10
        assert more < 500 * MB
    registry.path.unlink()


def test_what_audits_say_of_real_clips() -> None:
    """No variant is ever named as fact that did not make the clip; the shares are printed and written for the docs."""
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "tiny_wan")]
    from audit_materials import Settings
    from audit_shares import measure
    from audit_table import tables

    # Beside the environment, as the results of `make results`: an interrupted run goes on.
    document = measure(Path(sys.prefix) / "audit-shares", Settings(), lambda text: print(text, flush=True))
    print(tables(document))
    write_file(ROOT / "benchmarks" / "results" / "audit.json", (json.dumps(document, indent=1) + "\n").encode())
    assert document["wrong_names"] == 0
    assert document["look_ups"]["unregistered"] >= 300
    assert document["look_ups"]["unknown"] >= 1000
    assert all(found["named"] == 0 for found in document["unknown"].values())
    for name in ("the file", "remuxed, mp4", "remuxed, mkv", "metadata stripped"):
        found = document["registered"][name]
        assert found["named_right"] == found["look_ups"]
