"""Opening a checkpoint: any layout, one or two experts, each with a role that something or somebody named."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

from hfq.schema.errors import (
    ConfigMismatchError,
    MissingRoleError,
    ShapeMismatchError,
    UsageError,
)

from .architecture import Architecture
from .expert import Expert, open_expert
from .layouts import ROLES, SINGLE, Source, find_sources

__all__ = ["Checkpoint", "Expert", "ModelPath", "open_checkpoint", "parse_model"]

ModelPath = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]

_ROLE_PAIR: Final = re.compile(r"(high_noise|low_noise|single)=(.*)", re.DOTALL)
_BETWEEN: Final = re.compile(r",(?=(?:high_noise|low_noise|single)=)")


class Checkpoint:
    """An open base.

    Attributes:
        path: as given, for messages and records.
        layout: "original-2.1", "original-2.2", "original-2.2-flat" (TI2V), "original-2.2-expert", "diffusers",
            "diffusers-transformer", "comfyui-single-file", "diffusers-single-file"; two of them joined by " + " when
            the experts differ.
        experts: role -> expert, in the order high_noise, low_noise; or single alone.
        architecture: of every expert (they agree).
        allow_non_finite: whether whoever reads it takes NaN and infinity; else they are refused.
    """

    def __init__(self, path: str, experts: Mapping[str, Expert], *, allow_non_finite: bool = False) -> None:
        self.path = path
        self.allow_non_finite = allow_non_finite
        for expert in experts.values():
            expert.allow_non_finite = allow_non_finite
        self.experts: dict[str, Expert] = {role: experts[role] for role in ROLES if role in experts}
        self.layout = " + ".join(dict.fromkeys(expert.layout for expert in self.experts.values()))
        self.architecture: Architecture = next(iter(self.experts.values())).architecture

    def close(self) -> None:
        """Close all files."""
        for expert in self.experts.values():
            expert.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(path: ModelPath, role: str | None = None, *, allow_non_finite: bool = False) -> Checkpoint:
    """Open a checkpoint and check it whole: headers, names, shapes, config.json, index. No tensor is read.

    Args:
        path: a folder, a file, `"high_noise=FILE,low_noise=FILE"`, or a mapping from role to folder or file.
        role: of the one transformer at `path`, where its place says nothing or something wrong; of a checkpoint with
            two experts it opens this one alone.
        allow_non_finite: whoever reads the checkpoint takes NaN and infinity, and says so; else they are refused.

    Raises:
        MissingPathError: no such path, or a part is absent.
        MissingRoleError: a bare file that could be either expert, or a model of its own.
        UsageError: an unknown role, a role that this checkpoint does not have, one file for two roles.
        ShapeMismatchError, ConfigMismatchError: two experts of different models.
        and everything that `open_expert` raises, exit code 1
    """
    if role is not None and role not in ROLES:
        raise UsageError("unknown role", expected=", ".join(ROLES), found=role)
    parts = parse_model(path)
    with ExitStack() as stack:
        if isinstance(parts, Path):
            experts = _open_one(parts, role, stack)
            text = str(parts)
        else:
            experts = _open_mapping(parts, role, stack)
            text = ",".join(f"{name}={place}" for name, place in parts.items())
        _check_pair(experts, text)
        stack.pop_all()
    return Checkpoint(text, experts, allow_non_finite=allow_non_finite)


def parse_model(path: ModelPath) -> Path | dict[str, Path]:
    """A path, or role -> path for a mapping and for the form `high_noise=FILE,low_noise=FILE`.

    Raises:
        UsageError: an unknown role, a role twice, an empty path, `single` beside another role, one place for two roles.
    """
    if isinstance(path, Mapping):
        pairs = [(role, os.fspath(place)) for role, place in path.items()]
    elif not isinstance(path, str) or not _ROLE_PAIR.fullmatch(path) or os.path.lexists(path):
        if not os.fspath(path):
            raise UsageError("an empty path", expected="a folder, a file, or high_noise=FILE,low_noise=FILE")
        return Path(path)
    else:
        found = (_ROLE_PAIR.fullmatch(part) for part in _BETWEEN.split(path))
        pairs = [(match[1], match[2]) for match in found if match]
    roles = [role for role, _ in pairs]
    for role, place in pairs:
        if role not in ROLES:
            raise UsageError("unknown role", expected=", ".join(ROLES), found=role)
        if not place:
            raise UsageError("no path for a role", where=role)
    if not roles or len(set(roles)) != len(roles) or (SINGLE in roles and len(roles) > 1):
        raise UsageError(
            "roles that do not go together",
            expected="high_noise and low_noise, one of them, or single",
            found=", ".join(roles) or "none",
        )
    places = [Path(place) for _, place in pairs]
    if len(places) == 2 and all(place.is_file() for place in places) and os.path.samefile(*places):
        raise UsageError("one file for two roles", where=places[0], todo="give each expert its own file")
    return dict(zip(roles, places, strict=True))


def _open_one(path: Path, role: str | None, stack: ExitStack) -> dict[str, Expert]:
    sources = _select(find_sources(path), role, path)
    experts = {}
    for source in sources:
        expert = _open(source, role if len(sources) == 1 else None, "--role", stack)
        experts[expert.role] = expert
    return experts


def _open_mapping(parts: Mapping[str, Path], role: str | None, stack: ExitStack) -> dict[str, Expert]:
    if role is not None and role not in parts:
        raise UsageError("a role that was not given a path", expected=", ".join(parts), found=role)
    experts = {}
    for name, path in parts.items():
        if role in (None, name):
            sources = _select(find_sources(path), name, path)
            experts[name] = _open(sources[0], name, f"given as {name}=", stack)
    return experts


def _select(sources: list[Source], role: str | None, path: Path) -> list[Source]:
    if role is None or len(sources) == 1:
        return sources
    chosen = [source for source in sources if source.role == role]
    if not chosen:
        raise UsageError(
            "a role that this checkpoint does not have",
            where=path,
            expected=" or ".join(str(source.role) for source in sources),
            found=role,
        )
    return chosen


def _open(source: Source, role: str | None, given_by: str, stack: ExitStack) -> Expert:
    opened = open_expert(source)
    for file in opened.files:
        stack.callback(file.close)
    could_be_expert = opened.architecture.could_be_expert()
    if role is not None and role != source.role:
        if role != SINGLE and not could_be_expert:
            raise UsageError("a model that has one transformer", where=source.where, expected="role single", found=role)
        told = f" ({source.role_source} says {source.role})" if source.role else ""
        return Expert(source, role, given_by + told, opened)
    if source.role is not None:
        return Expert(source, source.role, source.role_source, opened)
    if (source.kind == "file" or source.doubt is not None) and could_be_expert:
        raise MissingRoleError(
            "it could be either expert, or a model of its own, and its name does not say which",
            where=source.where,
            expected="high_noise or low_noise in its name",
            found=source.doubt,
            todo="say --role high_noise, --role low_noise or --role single",
        )
    return Expert(source, SINGLE, source.role_source, opened)


def _check_pair(experts: Mapping[str, Expert], where: str) -> None:
    if len(experts) < 2:
        return
    first, second = experts.values()
    if first.architecture == second.architecture:
        return
    shapes = first.architecture.tensors()
    others = second.architecture.tensors()
    for name in (*shapes, *others):
        if shapes.get(name) != others.get(name):
            raise ShapeMismatchError(
                "the two experts are of different models",
                where=f"{where}: {name}",
                expected=f"{shapes.get(name, 'none')} as in {first.role}",
                found=f"{others.get(name, 'none')} in {second.role}",
            )
    a, b = first.architecture, second.architecture
    for field, one, other in (
        ("model_type", a.model_type, b.model_type),
        ("heads", a.num_heads if a.heads_known else None, b.num_heads if b.heads_known else None),
        ("vace_layers", a.vace_layers, b.vace_layers),
    ):
        if one is not None and other is not None and one != other:
            raise ConfigMismatchError(
                "the config.json of the two experts disagree",
                where=f"{where}: {field}",
                expected=f"{one} as in {first.role}",
                found=f"{other} in {second.role}",
            )
