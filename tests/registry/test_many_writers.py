"""Eight processes at once: nothing is lost, nothing is there twice, nobody is refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from factory import make_delta
from processes import Writers

from hfq.registry import Registry

WRITERS, EACH = 8, 20


def register_at_once(registry: Path, work: Sequence[Sequence[Path]]) -> list[str]:
    writers = Writers(registry, work)
    writers.release()
    return writers.finish()


def count(path: Path, query: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(query).fetchone()[0])


def test_eight_processes_register_into_a_new_registry_and_lose_nothing(registry: Registry, tmp_path: Path) -> None:
    folders = [tmp_path / f"delta-{number}" for number in range(WRITERS * EACH)]
    ids = {make_delta(folder, seed=folder.name) for folder in folders}
    reported = register_at_once(registry.path, [folders[start::WRITERS] for start in range(WRITERS)])
    assert sorted(reported) == sorted(map(str, folders))
    deltas, total = registry.list()
    assert total == WRITERS * EACH
    assert {delta.id for delta in deltas} == ids
    counts = registry.status().counts
    assert (counts["bases"], counts["recipes"], counts["calibrations"]) == (1, 1, 1)
    assert counts["events"] == WRITERS * EACH
    assert count(registry.path, "SELECT max(seq) FROM event") == WRITERS * EACH
    assert count(registry.path, "SELECT count(*) FROM kept_site") == 4 * WRITERS * EACH
    assert count(registry.path, "SELECT count(*) FROM edge") == 3 * WRITERS * EACH


def test_eight_processes_register_the_same_deltas_once(registry: Registry, tmp_path: Path) -> None:
    folders = [tmp_path / f"delta-{number}" for number in range(5)]
    for folder in folders:
        make_delta(folder, seed=folder.name)
    assert len(register_at_once(registry.path, [folders] * WRITERS)) == 5 * WRITERS
    assert registry.list()[1] == 5
    assert registry.status().counts["events"] == 5
    assert count(registry.path, "SELECT count(*) FROM location") == 5
    assert registry.check() == ()
