"""Which safetensors files of a folder make up one transformer, with or without an index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hfq.schema.documents import parse_json
from hfq.schema.errors import (
    IndexMismatchError,
    MalformedFileError,
    MissingPathError,
    UnknownLayoutError,
    UnsupportedModelError,
    UsageError,
)

from .hub_cache import read_side_file

__all__ = ["read_index", "select_files"]

# `diffusion_pytorch_model-00001-of-00006-bf16.safetensors`: stem, number, count, variant.
_SHARD: Final = re.compile(r"(.+?)-([0-9]{1,6})-of-([0-9]{1,6})([-.\w]*)\.safetensors", re.ASCII)
_INDEX: Final = re.compile(r".+\.safetensors\.index(\.\w+)?\.json", re.ASCII)

# The transformer's stem in every release; a folder may hold other files beside it.
_STEM: Final = "diffusion_pytorch_model"
# A release's index is under 150 kB.
_INDEX_BYTES: Final = 16 << 20

_OTHER_FORMATS: Final = (".pth", ".pt", ".ckpt", ".bin", ".gguf")


@dataclass(frozen=True)
class _Group:
    """Files that belong together by name: one file, or shards of one stem, count and variant."""

    stem: str
    count: int
    variant: str


def read_index(path: Path) -> dict[str, str]:
    """The `weight_map` of a safetensors index: tensor name -> name of a file in the same folder.

    Raises:
        MalformedFileError: no JSON object, no map of strings, or a file name that leaves the folder.
    """
    document = parse_json(read_side_file(path, _INDEX_BYTES), str(path))
    weights = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(file, str) for file in weights.values()):
        raise MalformedFileError("not a safetensors index", where=path, expected="weight_map: tensor name -> file name")
    for file in set(weights.values()):
        if not file.endswith(".safetensors") or "/" in file or "\\" in file or not file.isprintable():
            raise MalformedFileError(
                "a file name that leaves the folder or is no safetensors file", where=path, found=file
            )
    return weights


def select_files(
    folder: Path, index: Path | None = None, *, only: Path | None = None
) -> tuple[tuple[Path, ...], Path | None]:
    """The files of the one transformer in `folder`, sorted by name, and the index that they were checked against.

    An index counts when its files are there. One that names none of them (left over from another variant of the same
    release) is passed over.

    Args:
        index: the user named this index.
        only: the user named this file; it must not be one shard of several.

    Raises:
        MissingPathError: a shard is absent.
        IndexMismatchError: shards beside the index's own.
        UsageError: several transformers, or one shard alone.
        UnknownLayoutError, UnsupportedModelError: none; or a pickle or GGUF file only.
    """
    if only is not None:
        found = _SHARD.fullmatch(only.name)
        if found is not None and int(found[3]) > 1:
            raise UsageError("one shard of several", where=only, todo=f"give the folder, {folder}")
        return (only,), None
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    groups = _groups([name for name in names if name.endswith(".safetensors")])
    if index is not None:
        return _by_index(folder, index, read_index(index), groups), index
    found_index = _index_of(folder, names, groups)
    if found_index is not None:
        return _by_index(folder, found_index, read_index(found_index), groups), found_index
    if not groups:
        raise _nothing(folder, names)
    if len(groups) > 1:
        listed = ", ".join(files[0] for files in groups.values())
        raise UsageError(
            "several checkpoints in one folder",
            where=folder,
            found=listed,
            todo="give one file, one index, or high_noise=FILE,low_noise=FILE",
        )
    ((group, files),) = groups.items()
    _check_complete(folder, group, files)
    return tuple(folder / name for name in files), None


def _groups(names: list[str]) -> dict[_Group, list[str]]:
    found: dict[_Group, list[str]] = {}
    for name in names:
        shard = _SHARD.fullmatch(name)
        group = _Group(shard[1], int(shard[3]), shard[4]) if shard else _Group(name, 0, "")
        found.setdefault(group, []).append(name)
    main = {group: files for group, files in found.items() if group.stem.startswith(_STEM)}
    return main or found


def _index_of(folder: Path, names: list[str], groups: Mapping[_Group, list[str]]) -> Path | None:
    """The one index whose files are there, at least in part."""
    listed = [name for name in names if _INDEX.fullmatch(name)]
    listed = [name for name in listed if name.startswith(_STEM)] or listed
    there = {name for files in groups.values() for name in files}
    used = []
    for name in listed:
        files = set(read_index(folder / name).values())
        if files & there or not there:
            used.append(name)
    if len(used) > 1:
        raise UsageError(
            "several checkpoints in one folder", where=folder, found=", ".join(used), todo="give one of the index files"
        )
    return folder / used[0] if used else None


def _by_index(
    folder: Path, index: Path, weights: Mapping[str, str], groups: Mapping[_Group, list[str]]
) -> tuple[Path, ...]:
    files = sorted(set(weights.values()))
    for name in files:
        if not (folder / name).exists():
            raise MissingPathError(
                "a shard is absent", where=folder / name, expected=f"a file, as {index.name} says", todo="download it"
            )
    for group_files in groups.values():
        left = set(group_files) - set(files)
        if left and left != set(group_files):
            raise IndexMismatchError(
                "a shard that the index does not name",
                where=folder / min(left),
                expected=f"{len(files)} files ({index.name})",
                found=f"{len(files) + len(left)}",
            )
    return tuple(folder / name for name in files)


def _check_complete(folder: Path, group: _Group, files: list[str]) -> None:
    if not group.count:
        return
    numbers = [int(found[2]) for name in files if (found := _SHARD.fullmatch(name))]
    absent = sorted(set(range(1, group.count + 1)) - set(numbers))
    if absent:
        raise MissingPathError(
            "a shard is absent",
            where=folder,
            expected=f"{group.count} shards like {files[0]}",
            found=f"{len(files)}, without number {absent[0]}",
            todo="download it",
        )
    if len(numbers) != group.count:
        raise MalformedFileError(
            "a shard number that occurs twice or is out of range",
            where=folder,
            expected=f"1 to {group.count}",
            found=numbers,
        )


def _nothing(folder: Path, names: list[str]) -> Exception:
    other = next((name for name in names if name.endswith(_OTHER_FORMATS)), None)
    expected = "safetensors files, model_index.json, or high_noise_model/ and low_noise_model/"
    if other is not None:
        return UnsupportedModelError(
            "no safetensors file; pickles and GGUF files are not read", where=folder, expected=expected, found=other
        )
    return UnknownLayoutError(
        "no checkpoint in this folder", where=folder, expected=expected, found=", ".join(names[:5]) or "an empty folder"
    )
