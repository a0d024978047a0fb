"""Where a checkpoint's files are and what their places say about roles. No tensor is looked at here, except for an
index.

Layouts: original Wan 2.1 (flat folder), original Wan 2.2 (`high_noise_model/`, `low_noise_model/`), a diffusers
pipeline (`model_index.json`, `transformer/`, `transformer_2/`), a lone transformer folder, single files as ComfyUI uses
them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hfq.schema.errors import (
    MissingPathError,
    UnknownLayoutError,
    UnreadableFileError,
    UnsupportedModelError,
    UsageError,
)

from .download_marks import refuse_unfinished
from .role_names import roles_in
from .shards import read_index, select_files
from .side_files import read_object

__all__ = ["HIGH", "LOW", "ROLES", "SINGLE", "Source", "find_sources", "read_index"]

HIGH: Final = "high_noise"
LOW: Final = "low_noise"
SINGLE: Final = "single"
ROLES: Final = (HIGH, LOW, SINGLE)

_FOLDERS: Final = {HIGH: "high_noise_model", LOW: "low_noise_model"}
_COMPONENTS: Final = {HIGH: "transformer", LOW: "transformer_2"}

_INDEX_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Source:
    """The files of one expert.

    `root` is the folder that witness names are relative to. `kind` is "pair folder", "pipeline", "folder" or "file".
    `role` is what folder or file name says, None when they say nothing or contradict each other; `role_source` is the
    words for it; `doubt` is what is said of each role then. `where` is the path for messages.
    """

    where: str
    root: Path
    kind: str
    files: tuple[Path, ...]
    index: Path | None
    config: Path | None
    role: str | None
    role_source: str
    doubt: str | None = None

    def witness_name(self, file: Path) -> str:
        """The file's name relative to the model, with forward slashes."""
        return file.relative_to(self.root).as_posix()

    def layout(self, naming: str, role: str, model_type: str) -> str:
        """The name of the layout, once the names inside are known."""
        original = naming == "original"
        match self.kind:
            case "pair folder":
                return "original-2.2" if original else "original-2.2-folders-diffusers-names"
            case "pipeline":
                return "diffusers-folders-original-names" if original else "diffusers"
            case "folder" if not original:
                return "diffusers-transformer"
            case "folder" if role != SINGLE:
                return "original-2.2-expert"
            case "folder":
                return "original-2.2-flat" if model_type == "ti2v" else "original-2.1"
        return "comfyui-single-file" if original else "diffusers-single-file"


def find_sources(path: Path) -> list[Source]:
    """The experts at `path`, high noise first.

    Raises:
        MissingPathError: no such path, or a part of the checkpoint is absent.
        UnknownLayoutError: a folder without a checkpoint.
        UsageError: a folder with several, or one shard of several, or a delta.
        UnsupportedModelError: a pickle, a GGUF file, an unsupported pipeline.
        UnreadableFileError: no permission.
        MalformedFileError: a model_index.json or an index that is none.
    """
    try:
        return _find(path)
    except OSError as error:
        raise UnreadableFileError("cannot be read", where=error.filename or path, found=error.strerror) from error


def _find(path: Path) -> list[Source]:
    if path.is_dir():
        return _in_folder(path)
    if not path.exists():
        what = "a symbolic link to nothing" if path.is_symlink() else "no such file or folder"
        raise MissingPathError(
            what, where=path, expected="a checkpoint: a folder, a file, or high_noise=FILE,low_noise=FILE"
        )
    if path.name.endswith(".json") and ".safetensors.index" in path.name:
        return [_folder_source(path.parent, path.parent, "folder", path)]
    if path.name in ("config.json", "model_index.json"):
        raise UsageError("not a checkpoint, but a part of one", where=path, todo="give its folder")
    return [_file_source(path)]


def _in_folder(folder: Path) -> list[Source]:
    if (folder / "ptq_state.json").exists():
        raise UsageError("a delta and not a checkpoint", where=folder, todo="give the checkpoint it was made from")
    pair = {role: folder / name for role, name in _FOLDERS.items()}
    if (folder / "model_index.json").exists():
        return _in_pipeline(folder, read_object(folder / "model_index.json", _INDEX_BYTES))
    if any(expert.is_dir() for expert in pair.values()):
        return [_folder_source(folder, _present(expert, folder), "pair folder") for expert in pair.values()]
    if (folder / "transformer").is_dir() or (folder / "transformer_2").is_dir():
        names = [name for name in _COMPONENTS.values() if (folder / name).is_dir()]
        return [_folder_source(folder, folder / name, "pipeline") for name in names]
    loose = _loose_pair(folder)
    return loose or [_folder_source(folder, folder, "folder")]


def _present(expert: Path, folder: Path) -> Path:
    if not expert.is_dir():
        other = next(name for name in _FOLDERS.values() if name != expert.name)
        raise MissingPathError(
            "one expert of two is absent", where=expert, todo=f"download it, or give {folder / other} alone"
        )
    return expert


def _in_pipeline(folder: Path, document: Mapping[str, Any]) -> list[Source]:
    class_name = document.get("_class_name")
    if isinstance(class_name, str) and ("animate" in class_name.lower() or not class_name.startswith("Wan")):
        raise UnsupportedModelError(
            "not a supported Wan pipeline",
            where=folder / "model_index.json",
            expected="WanPipeline, WanImageToVideoPipeline or WanVACEPipeline",
            found=class_name,
        )
    names = [name for name in _COMPONENTS.values() if _has_component(document, name)]
    if not names:
        raise UnknownLayoutError("a pipeline without a transformer", where=folder / "model_index.json")
    for name in names:
        if not (folder / name).is_dir():
            raise MissingPathError(
                "a part of the pipeline is absent",
                where=folder / name,
                expected="a folder, as model_index.json says",
                todo="download the checkpoint again",
            )
    return [_folder_source(folder, folder / name, "pipeline") for name in names]


def _has_component(document: Mapping[str, Any], name: str) -> bool:
    value = document.get(name)
    return isinstance(value, list) and any(part is not None for part in value)


def _folder_source(root: Path, folder: Path, kind: str, index: Path | None = None) -> Source:
    files, index = select_files(folder, index)
    config = folder / "config.json"
    role, role_source, doubt = _role_of_folder(folder)
    named = frozenset[str]().union(*(roles_in(file.name) for file in files))
    if role is None and doubt is None and len(named) == 1:
        role, role_source = next(iter(named)), "file name"
    elif role is not None and len(named) == 1 and role not in named:
        role, doubt = None, f"{role_source}, but file {files[0].name}"
    found_config = config if config.exists() else None
    for file in (*files, *(part for part in (index, found_config) if part is not None)):
        refuse_unfinished(file)
    return Source(str(folder), root, kind, files, index, found_config, role, role_source, doubt)


def _file_source(path: Path) -> Source:
    select_files(path.parent, None, only=path)
    role, role_source, doubt = _role_of_folder(path.parent, exactly=True)
    named = roles_in(path.name)
    if role is not None and named - {role}:
        role, doubt = None, f"{role_source}, but file {path.name}"
    elif len(named) == 1:
        role, role_source = next(iter(named)), "file name"
    elif named:
        doubt = f"file {path.name}, which says both"
    # A ComfyUI folder holds files of many models; only this name belongs to a config.json.
    config = path.parent / "config.json"
    beside = path.name.startswith("diffusion_pytorch_model") and config.exists()
    found_config = config if beside else None
    for file in (path, *(() if found_config is None else (found_config,))):
        refuse_unfinished(file)
    return Source(str(path), path.parent, "file", (path,), None, found_config, role, role_source, doubt)


def _loose_pair(folder: Path) -> list[Source]:
    """Two single files in one folder, of which one is named high noise and one low noise."""
    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("."))
    by_role = {role: file for file in files if len(roles := roles_in(file.name)) == 1 for role in roles}
    if len(files) != 2 or set(by_role) != {HIGH, LOW}:
        return []
    return [_file_source(by_role[role]) for role in (HIGH, LOW)]


def _role_of_folder(folder: Path, *, exactly: bool = False) -> tuple[str | None, str, str | None]:
    """What a transformer's folder says about its role, the words for it, and a doubt where it says both.

    `exactly`: only the names that releases use count, because a single file may lie in a folder of any name.
    """
    name = Path(os.path.abspath(folder)).name
    role = next((role for role, known in _FOLDERS.items() if name == known), None)
    named = frozenset[str]() if exactly else roles_in(name)
    if role is None and len(named) == 1:
        role = next(iter(named))
    if role is not None:
        return role, f"folder {name}", None
    document = folder.parent / "model_index.json"
    in_pipeline = document.exists()
    words = f"model_index.json {name}" if in_pipeline else f"folder {name}"
    if name == "transformer_2":
        return LOW, words, None
    if name == "transformer":
        two = _has_component(read_object(document, _INDEX_BYTES), "transformer_2") if in_pipeline else False
        if two or (folder.parent / "transformer_2").is_dir():
            return HIGH, words, None
    return None, "only one transformer", f"folder {name}, which says both" if named else None
