"""`OUT.partial`: what has arrived of a pull, kept where a broken connection or a killed process left it.

The client's own downloads keep nothing of a file that breaks off with the process (2.x writes to a name that is unique
to the call and removes it), so files stay here under a name that says which bytes they are to become.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Final

from hfq.schema.atomic import partial_of, publish_folder, refuse_existing
from hfq.schema.errors import OutputExistsError, UnreadableFileError
from hfq.schema.folder_lock import HOLDER, FolderLock

from .files import NAMES
from .listing import ListedFile

__all__ = ["Unfinished"]

_MARK: Final = ".hfq-pull"
_MARKS: Final = (_MARK, _MARK + HOLDER)
_INCOMPLETE: Final = re.compile(rf"(?:{'|'.join(map(re.escape, NAMES))})\.[0-9a-f]{{40,64}}\.incomplete")


class Unfinished:
    """The folder of one pull at work; a lock on its mark keeps a second one away, and ends with the process.

    Attributes:
        folder: `OUT.partial`.
    """

    def __init__(self, folder: Path, lock: FolderLock) -> None:
        self.folder = folder
        self._lock = lock

    @classmethod
    def begin(cls, out: Path) -> Unfinished:
        """Make `OUT.partial`, or take it over from an earlier pull.

        Raises:
            OutputExistsError: `out` is there, another pull is at work, or the folder is not one that a pull left.
            UsageError: the folder for the output does not exist.
            UnreadableFileError
        """
        try:
            _end_publishing(out)
            folder = refuse_existing(out, resume=True)
            if not folder.exists() and not folder.is_symlink():
                _make(folder)
            _refuse_foreign(folder)
            lock = FolderLock(folder / _MARK, "pull")
        except OSError as error:
            raise UnreadableFileError("cannot be made", where=partial_of(out), found=error.strerror) from error
        return cls(folder, lock)

    def incomplete(self, file: ListedFile) -> Path:
        """Where a file lies until all of it is there: another content has another name."""
        return self.folder / f"{file.name}.{file.sha256 or file.git_sha1}.incomplete"

    def size_bytes(self, file: ListedFile) -> int:
        """How much of a file is there."""
        for path in (self.folder / file.name, self.incomplete(file)):
            if path.exists():
                return path.stat().st_size
        return 0

    def keep_only(self, files: tuple[ListedFile, ...]) -> None:
        """Remove what belongs to another commit: nothing of it may end up in the finished folder.

        Raises:
            OSError
        """
        wanted = {*_MARKS, *(file.name for file in files), *(self.incomplete(file).name for file in files)}
        for path in self.folder.iterdir():
            if path.name not in wanted:
                path.unlink()

    def leave(self) -> int:
        """Stop; what has arrived stays for the next pull. Returns its bytes; of none, nothing stays."""
        arrived_bytes = sum(path.stat().st_size for path in self._arrived())
        if arrived_bytes:
            self._lock.release()
        else:
            self.discard()
        return arrived_bytes

    def discard(self) -> None:
        """Stop and remove the folder."""
        for path in self._arrived():
            path.unlink()
        self._lock.remove()
        with contextlib.suppress(OSError):  # something of somebody else has come into it
            self.folder.rmdir()

    def _arrived(self) -> list[Path]:
        names = sorted(os.listdir(self.folder)) if self.folder.exists() else []  # else it has its name already
        return [self.folder / name for name in names if name in NAMES or _INCOMPLETE.fullmatch(name)]

    def publish(self, out: Path) -> None:
        """Give the folder, with verified files only, its name; an `out` that appeared meanwhile is not replaced.

        Raises:
            OutputExistsError, OSError
        """
        publish_folder(self.folder, out)
        self._lock.moved_to(out)
        self._lock.remove()  # only now: a folder without it, left by a kill, would look like somebody else's


def _make(folder: Path) -> None:
    # With its mark from the first moment: killed in between, nothing is in the way of the next pull.
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        (temporary / _MARK).touch()
        os.rename(temporary, folder)
    except OSError:
        if not folder.exists():  # else another pull was quicker, and holds the lock
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    """Only what a pull of this user's leaves: names of a delta, regular files, no links to be written through."""
    found = folder.lstat()
    entries = {path.name: path.lstat() for path in folder.iterdir()} if stat.S_ISDIR(found.st_mode) else {}
    odd = [
        name
        for name, entry in entries.items()
        if not (name in (*NAMES, *_MARKS) or _INCOMPLETE.fullmatch(name)) or not stat.S_ISREG(entry.st_mode)
    ]
    if _MARK not in entries or odd or found.st_uid != os.getuid():
        raise OutputExistsError(
            "unfinished work of something else is already there",
            where=folder,
            found=odd[0] if odd else None,
            todo="remove it, or choose another name",
        )


def _end_publishing(out: Path) -> None:
    """A pull that was killed right after it gave the folder its name left its mark in it."""
    if (out / _MARK).is_file() and not (out / _MARK).is_symlink():
        with contextlib.suppress(OutputExistsError):
            FolderLock(out / _MARK, "pull").remove()
