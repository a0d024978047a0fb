"""`db check`: what it finds in a damaged database and in folders that changed, and that it writes nothing."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from factory import make_delta

from hfq.registry import Registry


@pytest.fixture
def folder(registry: Registry, tmp_path: Path) -> Path:
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    return tmp_path / "delta"


def codes(registry: Registry) -> list[tuple[str, int]]:
    before = registry.path.read_bytes()
    found = [(finding.code, finding.exit_code) for finding in registry.check()]
    assert registry.path.read_bytes() == before
    return found


def change(registry: Registry, *statements: str) -> None:
    with closing(sqlite3.connect(registry.path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_a_sound_registry_has_no_findings(registry: Registry, folder: Path) -> None:
    assert codes(registry) == []


def test_a_vanished_folder_is_a_note(registry: Registry, folder: Path) -> None:
    shutil.rmtree(folder)
    assert codes(registry) == [("folder-gone", 0)]


def test_changed_bytes_and_another_delta_are_contradictions(registry: Registry, folder: Path) -> None:
    state = folder / "ptq_state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"\xff")
    assert codes(registry) == [("folder-changed", 3)]
    shutil.rmtree(folder)
    make_delta(folder, seed="another")
    assert codes(registry) == [("folder-changed", 3)]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE recipe SET document = replace(document, '99.9', '99.8')", ("recipe-changed", 3)),
        ("UPDATE recipe SET document = 'not JSON'", ("recipe-changed", 3)),
        ("UPDATE base_expert SET bf16_root = replace(bf16_root, '1', '2')", ("base-changed", 3)),
        ("DELETE FROM kept_site WHERE expert = 'low_noise'", ("kept-sites", 1)),
        ("DELETE FROM edge WHERE relation = 'made-by'", ("edges", 1)),
        ("DELETE FROM recipe", ("damaged", 1)),
    ],
)
def test_rows_that_contradict_each_other_are_found(
    registry: Registry, folder: Path, statement: str, expected: tuple[str, int]
) -> None:
    change(registry, statement)
    assert set(codes(registry)) == {expected}


def test_a_damaged_page_is_found(registry: Registry, folder: Path) -> None:
    with closing(sqlite3.connect(registry.path)) as connection:
        page, size_bytes = connection.execute(
            "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_master WHERE name = 'ix_delta_kept'"
        ).fetchone()
    data = bytearray(registry.path.read_bytes())
    start = (page - 1) * size_bytes
    data[start + 8 : start + size_bytes] = b"\xa5" * (size_bytes - 8)
    registry.path.write_bytes(data)
    assert ("damaged", 1) in codes(registry)
