"""`OUT.partial`: what has arrived of a pull, kept where a broken connection or a killed process left it.

The client's own downloads keep nothing of a file that breaks off with the process (2.x writes to a name that is unique
to the call and removes it), so files stay here under a name that says which bytes they are to become.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from pathlib import Path
from typing import BinaryIO, Final

from hfq.schema.atomic import publish_folder, refuse_existing
from hfq.schema.errors import OutputExistsError, UnreadableFileError

from .files import NAMES
from .listing import ListedFile

__all__ = ["Unfinished"]

_MARK: Final = ".hfq-pull"
_INCOMPLETE: Final = re.compile(rf"(?:{'|'.join(map(re.escape, NAMES))})\.[0-9a-f]{{40,64}}\.incomplete")


class Unfinished:
    """The folder of one pull at work; a lock on its mark keeps a second one away, and ends with the process.

    Attributes:
        folder: `OUT.partial`.
    """

    def __init__(self, folder: Path, mark: BinaryIO) -> None:
        self.folder = folder
        self._mark = mark

    @classmethod
    def begin(cls, out: Path) -> Unfinished:
        """Make `OUT.partial`, or take it over from an earlier pull.

        Raises:
            OutputExistsError: `out` is there, another pull is at work, or the folder is not one that a pull left.
            UsageError: the folder for the output does not exist.
            UnreadableFileError
        """
        folder = refuse_existing(out, resume=True)
        try:
            if not folder.exists() and not folder.is_symlink():
                _make(folder)
            _refuse_foreign(folder)
            mark = _lock(folder)
        except OSError as error:
            raise UnreadableFileError("cannot be made", where=folder, found=error.strerror) from error
        return cls(folder, mark)

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
        wanted = {_MARK, *(file.name for file in files), *(self.incomplete(file).name for file in files)}
        for path in self.folder.iterdir():
            if path.name not in wanted:
                path.unlink()

    def leave(self) -> int:
        """Stop; what has arrived stays for the next pull. Returns its bytes; of none, nothing stays."""
        arrived_bytes = sum(path.stat().st_size for path in self.folder.iterdir())
        if not arrived_bytes:
            self.discard()
        self._mark.close()
        return arrived_bytes

    def discard(self) -> None:
        """Stop and remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._mark.close()

    def publish(self, out: Path) -> None:
        """Give the folder, with verified files only, its name; an `out` that appeared meanwhile is not replaced.

        Raises:
            OutputExistsError, OSError
        """
        if out.exists() or out.is_symlink():  # renaming onto an empty folder would succeed
            raise OutputExistsError(
                "the output appeared meanwhile", where=out, todo="choose another name, or remove it"
            )
        publish_folder(self.folder, out)
        (out / _MARK).unlink()  # only now: a folder without it, left by a kill, would look like somebody else's
        self._mark.close()


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
        if not (name in (*NAMES, _MARK) or _INCOMPLETE.fullmatch(name)) or not stat.S_ISREG(entry.st_mode)
    ]
    if _MARK not in entries or odd or found.st_uid != os.getuid():
        raise OutputExistsError(
            "unfinished work of something else is already there",
            where=folder,
            found=odd[0] if odd else None,
            todo="remove it, or choose another name",
        )


def _lock(folder: Path) -> BinaryIO:
    mark = open(folder / _MARK, "rb+")  # noqa: SIM115 - held open: the lock ends with it
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Taken between another's last step and its end, the lock is on a file that is no longer in this folder.
        held = os.path.samestat(os.fstat(mark.fileno()), os.stat(folder / _MARK))
    except (BlockingIOError, FileNotFoundError):
        held = False
    if not held:
        mark.close()
        raise OutputExistsError(
            "another pull is at work in this folder", where=folder, todo="wait for it, or choose another name"
        )
    return mark
