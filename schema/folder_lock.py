"""One process at a time: a lock on a file, which the system releases when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import socket
import time
from pathlib import Path
from typing import Final

from .errors import OutputExistsError

__all__ = ["HOLDER", "FolderLock"]

HOLDER: Final = ".held"
"""Suffix of the file beside the lock that says who holds it."""

_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
_MOST_BYTES: Final = 4096


class FolderLock:
    """An exclusive lock on a file in a folder of unfinished work, held until `release` or the end of the process.

    On a file system without `flock` the file NAME.held, which only one process can make, stands for the lock. Nobody
    removes it for a process that was killed: the next one is refused, and told which file to remove.

    Args:
        path: the file; made when absent.
        doing: what the holder does, a noun: "conversion".

    Attributes:
        file: the locked file, open for appending, unbuffered.

    Raises:
        OutputExistsError: another process, or another thread of this one, holds it.
        OSError
    """

    def __init__(self, path: Path, doing: str) -> None:
        self._path, self._holder = path, path.with_name(path.name + HOLDER)
        try:
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 - held open: the lock ends with it
        except FileNotFoundError:  # between its last step and now the other one removed the folder
            raise self._busy(doing) from None
        try:
            self._take(doing)
        except BaseException:
            self.file.close()
            raise

    def _take(self, doing: str) -> None:
        text = json.dumps({"doing": doing, **_myself()}).encode()
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._busy(doing) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._is_flock = False
            self._take_without_locks(doing, text)
        else:
            self._is_flock = True
            try:
                # Taken between the other's last step and its end, the lock is on a file that is no longer here.
                held = os.path.samestat(os.fstat(self.file.fileno()), os.stat(self._path))
            except FileNotFoundError:
                held = False
            if not held:
                raise self._busy(doing)
            self._holder.write_bytes(text)  # for people: lost in a crash, nothing is lost

    def _take_without_locks(self, doing: str, text: bytes) -> None:
        try:
            descriptor = os.open(self._holder, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            raise self._busy(
                doing,
                f"this file system has no locks: if that process has ended, remove {self._holder}, then run again",
            ) from None
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)

    def _busy(
        self, doing: str, todo: str = "wait for it and run the same command again, or choose another name"
    ) -> OutputExistsError:
        try:
            with open(self._holder, "rb") as file:
                said = json.loads(file.read(_MOST_BYTES))
            doing = str(said["doing"])
            who = f"process {said['pid']} of {said['user']} on {said['host']}, since {said['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            who = None
        return OutputExistsError(
            f"another {doing} is at work in this folder", where=self._path.parent, found=who, todo=todo
        )

    def release(self) -> None:
        """Let the next one in; the locked file stays."""
        if not self.file.closed:
            self._holder.unlink(missing_ok=True)
            self.file.close()

    def moved_to(self, folder: Path) -> None:
        """Follow the files of the lock into the folder that they lie in now."""
        self._path, self._holder = folder / self._path.name, folder / self._holder.name

    def remove(self) -> None:
        """Remove the locked file, and let the next one in."""
        # Whatever stands for the lock goes last: from then on these names may be the next one's.
        for path in (self._holder, self._path) if self._is_flock else (self._path, self._holder):
            path.unlink(missing_ok=True)
        self.file.close()


def _myself() -> dict[str, str | int]:
    user = f"user {os.getuid()}"
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container's user may have no name
        user = getpass.getuser()
    return {
        "pid": os.getpid(),
        "user": user,
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
