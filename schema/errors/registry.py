"""Failures of the registry, of clips and of their keys."""

from __future__ import annotations

from .general import HfqError, MalformedFileError, MissingPathError

__all__ = [
    "ClipDocumentError",
    "ClipStreamError",
    "FolderGoneError",
    "KeyFileError",
    "MissingKeyError",
    "NotAClipError",
    "NotARegistryError",
    "RegistryBusyError",
    "RegistryDamagedError",
    "RegistryError",
    "RegistryReadOnlyError",
    "RegistryVersionError",
    "RemuxError",
    "SigningError",
]


class NotAClipError(MalformedFileError):
    """A file that is no video container which this release opens (MP4, MOV, Matroska, WebM)."""

    code = "not-a-clip"


class ClipStreamError(MalformedFileError):
    """A video container without one video stream that can be decoded to its end."""

    code = "clip-stream"


class ClipDocumentError(MalformedFileError):
    """What a clip says of its origin contradicts itself: a prompt that is not the one of its hash."""

    code = "clip-document"


class RemuxError(HfqError):
    """The packets of a clip cannot be copied into a new file of the same kind without a change."""

    code = "remux"


class KeyFileError(MalformedFileError):
    """A private key or certificate that cannot be read, is of an unfit kind, or does not fit its counterpart."""

    code = "key-file"


class SigningError(HfqError):
    """The C2PA library refuses to sign the clip with this key."""

    code = "signing"


class MissingKeyError(HfqError):
    """No key pair for signing clips has been made yet."""

    code = "missing-key"
    exit_code = 2


class AliasMovedError(HfqError):
    """An alias does not mean what the caller expects: somebody moved it meanwhile."""

    code = "alias-moved"
    exit_code = 3


class RegistryError(HfqError):
    """The registry's database cannot be used as it is."""

    code = "registry"


class RegistryVersionError(RegistryError):
    """The registry's database is of another revision than this release."""

    code = "registry-version"


class NotARegistryError(RegistryError):
    """The file is no registry: not SQLite, or another program's database."""

    code = "not-a-registry"


class RegistryDamagedError(RegistryError):
    """The registry's file was a database and is one no longer: pages of it are overwritten or missing."""

    code = "registry-damaged"


class RegistryBusyError(RegistryError):
    """Another process held the registry's lock for longer than this one waits."""

    code = "registry-busy"


class RegistryReadOnlyError(RegistryError):
    """The registry's file or folder cannot be written."""

    code = "registry-read-only"


class FolderGoneError(MissingPathError):
    """A registered delta lies in none of the folders where it was registered."""

    code = "folder-gone"
