"""What a graph says about itself: which delta, base, expert and part it was made from, and where its sites are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hfq.convert.clip import BINS
from hfq.convert.delta import Delta
from hfq.schema.documents import parse_json
from hfq.schema.errors import GraphMetadataError, MalformedFileError, UsageError

from .onnx_file import OnnxFile
from .scope import Scope

__all__ = ["Origin", "Places", "profile_of", "read_origin"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ROLES: Final = ("high_noise", "low_noise", "single")
_PLACES: Final = ("input", "qdq", "product", "output")
_REQUIRED: Final = ("version", "delta", "base_root", "role", "scope", "profile", "recipe", "sites")


@dataclass(frozen=True)
class Places:
    """Names of a site's values in a graph: its input, that input quantized, the bare product, the output."""

    input: str
    qdq: str
    product: str
    output: str


@dataclass(frozen=True)
class Origin:
    """The metadata of a graph, as far as their form is right; whether they are true is another question.

    Attributes:
        delta, base_root: 64 hex digits.
        role: expert.
        scope: part of the model.
        bin: timestep bin, or None when the graph holds for all of them.
        profile, recipe, version: as the exporter wrote them.
        sites: quantized site -> its places.
    """

    delta: str
    base_root: str
    role: str
    scope: Scope
    bin: int | None
    profile: str
    recipe: str
    version: str
    sites: Mapping[str, Places]


def profile_of(delta: Delta) -> str:
    """The entry `hfq.profile` of a delta's graphs: its HiFloat4 profiles, or "hif8"."""
    tables = [table for table in (delta.recipe.weight, delta.recipe.activation) if table["format"] == "hif4"]
    return ", ".join(sorted({str(table["profile"]) for table in tables})) or "hif8"


def read_origin(file: OnnxFile) -> Origin:
    """Read a graph's metadata.

    Raises:
        GraphMetadataError: an entry is missing or has another form; the message names it.
    """
    found: dict[str, str] = {}
    for name in _REQUIRED:
        key = f"hfq.{name}"
        if key not in file.metadata:
            todo = "export it with `hfq export onnx`"
            raise GraphMetadataError("the graph does not say what it was made from", where=_at(file, key), todo=todo)
        found[name] = file.metadata[key]
    for name in ("delta", "base_root"):
        if not _DIGEST.fullmatch(found[name]):
            raise _odd(file, name, "64 hex digits", found[name])
    if found["role"] not in _ROLES:
        raise _odd(file, "role", " or ".join(_ROLES), found["role"])
    index = file.metadata.get("hfq.bin")
    if index is not None and index not in [str(number) for number in range(BINS)]:
        raise _odd(file, "bin", f"0 to {BINS - 1}", index)
    try:
        scope = Scope.parse(found["scope"])
    except UsageError as error:
        raise _odd(file, "scope", error.expected, error.found) from None
    return Origin(
        found["delta"],
        found["base_root"],
        found["role"],
        scope,
        None if index is None else int(index),
        found["profile"],
        found["recipe"],
        found["version"],
        _sites(file, found["sites"]),
    )


def _sites(file: OnnxFile, text: str) -> dict[str, Places]:
    try:
        sites: Any = parse_json(text.encode(), _at(file, "hfq.sites"))
    except MalformedFileError as error:
        raise _odd(file, "sites", "a JSON object", error.what) from None
    entries = sites.items() if isinstance(sites, dict) else [("", sites)]
    for site, places in entries:
        right = isinstance(places, dict) and sorted(places) == sorted(_PLACES)
        if not right or not all(isinstance(value, str) and value for value in places.values()):
            raise _odd(file, "sites", f"SITE -> names of {', '.join(_PLACES)}", f"{site}: {places}")
    return {site: Places(**places) for site, places in entries}


def _at(file: OnnxFile, key: str) -> str:
    return f"{file.path}: {key}"


def _odd(file: OnnxFile, name: str, expected: object, found: object) -> GraphMetadataError:
    return GraphMetadataError(
        "an entry that no export writes", where=_at(file, f"hfq.{name}"), expected=expected, found=found
    )
