"""What may lie where the registry should be: nothing, something else, something that cannot be written."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from factory import make_delta

from hfq.registry import Registry, database, open_registry
from hfq.schema.errors import (
    HfqError,
    MissingPathError,
    NotARegistryError,
    RegistryBusyError,
    RegistryDamagedError,
    RegistryReadOnlyError,
    UnknownIdError,
    UsageError,
)


def test_reading_an_absent_registry_finds_nothing_and_creates_nothing(registry: Registry) -> None:
    assert registry.list() == ((), 0)
    assert registry.aliases() == {}
    assert registry.check() == ()
    assert registry.status().state == "absent"
    with pytest.raises(UnknownIdError):
        registry.get("0123456789ab")
    assert not registry.path.exists()


def test_an_empty_file_is_an_empty_registry(registry: Registry, tmp_path: Path) -> None:
    registry.path.touch()
    assert registry.list() == ((), 0)
    assert registry.status().state == "empty"
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    assert registry.list()[1] == 1


def test_the_file_stands_alone_when_nobody_works(registry: Registry, tmp_path: Path) -> None:
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    registry.list()
    assert [path.name for path in tmp_path.glob("registry*")] == ["registry.sqlite"]


def test_many_writes_in_a_row_share_a_log_that_goes_when_they_end(registry: Registry, tmp_path: Path) -> None:
    def beside() -> list[str]:
        return sorted(path.name for path in tmp_path.glob("registry*"))

    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        make_delta(folder, seed=folder.name)
    with registry:
        assert beside() == [], "nothing is created to hold it"
    registry.register(folders[0])
    with registry as held:
        held.register(folders[1])
        assert "registry.sqlite-wal" in beside()
        assert open_registry(registry.path).list()[1] == 2, "others see it at once"
        held.register(folders[2])
    assert beside() == ["registry.sqlite"]
    assert registry.list()[1] == 3
    with pytest.raises(UnknownIdError), registry:
        registry.get("0123456789ab")
    assert beside() == ["registry.sqlite"]


def test_writers_use_the_settings_that_survive_a_power_cut(registry: Registry, tmp_path: Path) -> None:
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    with closing(database.connect_for_writing(registry.path)) as connection:
        found = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def _text(path: Path) -> None:
    path.write_text("this is not a database, and it is longer than a header of SQLite\n" * 40)


def _other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("CREATE TABLE runs (id INTEGER)")


def _damaged(path: Path) -> None:
    """The first page says SQLite, the rest is gone."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE hfq_revision (version_num TEXT); CREATE TABLE t (a);")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 100)
        connection.commit()
    data = bytearray(path.read_bytes())
    data[100:4096] = b"\xff" * 3996
    path.write_bytes(data)


@pytest.mark.parametrize("make", [_text, _other_program, _damaged, Path.mkdir, os.mkfifo])
def test_what_is_no_registry_is_refused_and_left_alone(
    registry: Registry, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make_delta(tmp_path / "delta")
    make(registry.path)
    before = registry.path.read_bytes() if registry.path.is_file() else b""
    for use in (registry.list, registry.status, registry.check, lambda: registry.register(tmp_path / "delta")):
        with pytest.raises((NotARegistryError, RegistryDamagedError)):
            use()
    assert (registry.path.read_bytes() if registry.path.is_file() else b"") == before


def test_a_long_lock_is_reported(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.2)
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert registry.list()[1] == 1  # readers do not wait
        with pytest.raises(RegistryBusyError):
            registry.set_alias("prod", registry.list()[0][0].id)


@pytest.fixture
def shared(registry: Registry) -> Iterator[Path]:
    """A folder that another user may enter, with a registry of one delta."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    make_delta(folder / "delta")
    for file in (folder / "delta").iterdir():
        file.chmod(0o644)
    open_registry(folder / "registry.sqlite").register(folder / "delta", aliases=["prod"])
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def _as_another_user(work: Callable[[], str]) -> str:
    """Root may write everywhere, so the work is done by a child without its rights."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            answer = work()
        except HfqError as error:
            answer = f"{type(error).__name__}: {error}"
        except BaseException as error:
            answer = f"unexpected {error!r}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a child with fewer rights")
@pytest.mark.parametrize("folder_mode", [0o555, 0o755])
def test_a_registry_that_cannot_be_written_can_be_read(shared: Path, folder_mode: int) -> None:
    path = shared / "registry.sqlite"
    path.chmod(0o444)
    shared.chmod(folder_mode)
    registry = open_registry(path)
    assert _as_another_user(lambda: str(registry.list()[1])) == "1"
    assert _as_another_user(lambda: registry.folder("prod").name) == "delta"
    assert _as_another_user(lambda: registry.status().state) == "current"
    assert _as_another_user(lambda: str(registry.check())) == "()"
    for change in (lambda: registry.set_alias("x@y", "prod").id, lambda: registry.register(shared / "delta")):
        assert _as_another_user(change).startswith(RegistryReadOnlyError.__name__)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert sorted(entry.name for entry in shared.iterdir()) == ["delta", "registry.sqlite"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a child with fewer rights")
def test_a_registry_that_cannot_be_read_or_created_says_so(shared: Path) -> None:
    path = shared / "registry.sqlite"
    path.chmod(0o000)
    assert _as_another_user(lambda: str(open_registry(path).list())).startswith("RegistryReadOnlyError")
    new = open_registry(shared / "new.sqlite")
    shared.chmod(0o555)
    assert _as_another_user(lambda: new.register(shared / "delta")).startswith("RegistryReadOnlyError")


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (str(tmp_path / "a.sqlite"), f"sqlite:///{tmp_path}/a.sqlite"):
        monkeypatch.setenv("HFQ_REGISTRY", value)
        assert open_registry().path == tmp_path / "a.sqlite"
    assert open_registry(tmp_path / "b.sqlite").path == tmp_path / "b.sqlite"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HFQ_REGISTRY", "~/c.sqlite")
    assert open_registry().path == tmp_path / "c.sqlite"


def test_the_default_folder_is_made_and_a_misspelt_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_delta(tmp_path / "delta")
    monkeypatch.setenv("HFQ_REGISTRY", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "data"))
    registry = open_registry()
    registry.register(tmp_path / "delta")
    assert (tmp_path / "home") in registry.path.parents
    assert registry.path.name == "registry.sqlite"
    with pytest.raises(MissingPathError):
        open_registry(tmp_path / "mispelt" / "registry.sqlite").register(tmp_path / "delta")
    assert not (tmp_path / "mispelt").exists()


@pytest.mark.parametrize("path", ["with space?.sqlite", "100%#.sqlite", "ünï;=&.sqlite"])
def test_any_file_name_will_do(tmp_path: Path, path: str) -> None:
    make_delta(tmp_path / "delta")
    registry = open_registry(tmp_path / path)
    delta_id = registry.register(tmp_path / "delta")
    assert registry.resolve(delta_id[:8]) == delta_id
    assert (tmp_path / path).is_file()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/db",
        "sqlite://",
        "sqlite:///x?mode=ro",
        "sqlite:///x?y.db",
        "sqlite:///x?",
        "sqlite://host/x",
        "sqlite://user@/x",
        "sqlite://x.db",
        ":memory:",
        "file:x.db",
        "file:x.db?mode=ro",
        "Sqlite:x.db?y",
        "~nobody-of-this-name/x.db",
        "sqlite:x.db?y",
        "://",
        "what://x",
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        open_registry(url)
