"""Deltas: reading what somebody sent, trusting none of it until it has been checked.

A delta is a folder with `ptq_state.json` (schema `hfq.ptq-state/1`), `ptq_state.safetensors` with its tensors, and two
documents about how it was made. Only the first two decide what the delta is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hfq.schema.documents import read_document
from hfq.schema.errors import (
    DigestMismatchError,
    InconsistentDeltaError,
    MissingPathError,
    RecipeError,
    TrailingBytesError,
    TruncatedFileError,
)

from .delta_check import check_content
from .recipe import Recipe
from .routing import Route
from .safetensors_file import SafetensorsFile
from .work_folder import JOURNAL

__all__ = ["DOCUMENT", "PROVENANCE", "REPORT", "STATE", "Delta", "load_delta", "state_name"]

DOCUMENT: Final = "ptq_state.json"
STATE: Final = "ptq_state.safetensors"
PROVENANCE: Final = "provenance.json"
REPORT: Final = "report.json"


def state_name(role: str, site: str, local: str) -> str:
    """Name of a site's tensor in the state file."""
    return f"{role}/{site}/{local}"


class Delta:
    """A checked delta.

    Attributes:
        path: its folder.
        document: the parsed `ptq_state.json`.
        routes: role -> site -> Route.
    """

    def __init__(self, path: Path, document: Mapping[str, Any], state: SafetensorsFile) -> None:
        self.path = path
        self.document = document
        self._state = state
        try:
            self.recipe = Recipe.from_document(document["recipe"], f"{path / DOCUMENT}: recipe")
        except RecipeError as error:
            raise InconsistentDeltaError(error.what, where=error.where, found=error.found) from None
        self.routes: dict[str, dict[str, Route]] = {
            role: {site: Route(entry["route"], entry["rule"], entry["reason"]) for site, entry in sites.items()}
            for role, sites in document["sites"].items()
        }
        self._local: dict[tuple[str, str], list[str]] = {}
        for name in state.tensors:
            role, _, rest = name.partition("/")
            site, _, local = rest.partition("/")
            self._local.setdefault((role, site), []).append(local)

    @property
    def state_sites(self) -> list[tuple[str, str]]:
        """(role, site) of every tensor of the state file, whether or not the document knows them."""
        return list(self._local)

    @property
    def state_tensors(self) -> int:
        """How many tensors the state file holds."""
        return len(self._state.tensors)

    @property
    def id(self) -> str:
        """Content hash, 64 hex digits."""
        return str(self.document["id"])

    @property
    def roles(self) -> list[str]:
        """Experts of the base, high noise first."""
        order = ("high_noise", "low_noise", "single")
        return [role for role in order if role in self.document["base"]["experts"]]

    def base_tensors(self, role: str) -> Mapping[str, Mapping[str, Any]]:
        """name -> shape and bf16 digest of every tensor of the base."""
        tensors: Mapping[str, Mapping[str, Any]] = self.document["base"]["experts"][role]["tensors"]
        return tensors

    def root(self, role: str) -> str:
        """bf16 root of an expert of the base."""
        return str(self.document["base"]["experts"][role]["bf16_root"])

    def site(self, role: str, site: str) -> Mapping[str, Any]:
        """A site's entry: route, reason, and for quantized sites weight format, ops and digest."""
        entry: Mapping[str, Any] = self.document["sites"][role][site]
        return entry

    def quantized(self, role: str) -> list[str]:
        """Names of an expert's quantized sites, in the document's order."""
        return [site for site, route in self.routes[role].items() if route.to == "quantize"]

    def state(self, role: str, site: str) -> dict[str, Tensor]:
        """A site's stored tensors by local name."""
        return {name: self._state.read(state_name(role, site, name)) for name in self._local.get((role, site), [])}

    def state_outline(self, role: str, site: str) -> dict[str, Tensor]:
        """As `state`, with stored codes on the meta device: gigabytes whose values only restoring needs."""
        found = {}
        for name in self._local.get((role, site), []):
            entry = self._state.tensors[state_name(role, site, name)]
            if entry.dtype == "U8":
                found[name] = torch.empty(entry.shape, dtype=torch.uint8, device="meta")
            else:
                found[name] = self._state.read(state_name(role, site, name))
        return found

    def close(self) -> None:
        """Close the state file."""
        self._state.close()

    def __enter__(self) -> Delta:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_delta(path: str | os.PathLike[str]) -> Delta:
    """Open and check a delta folder; nothing in it is executed, and no other file of it is read.

    Raises:
        MissingPathError: no such folder, or a file of it is absent.
        MalformedFileError and subclasses: broken JSON, unknown version, unknown or missing field, broken state file.
        WrongIdError: the document was edited.
        DigestMismatchError: the state file is not the one that the document names.
        and what `check_content` raises
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MissingPathError("no such delta", where=folder, expected=f"a folder with {DOCUMENT}")
    if (folder / JOURNAL).is_file():
        raise MissingPathError(
            "a conversion that is not finished",
            where=folder,
            expected="a delta",
            todo="go on with `hfq convert` and the same arguments and --resume",
        )
    document = read_document(folder / DOCUMENT, "ptq-state")
    state = SafetensorsFile(folder / STATE)
    try:
        _check_state_file(state, document["state"])
        delta = Delta(folder, document, state)
        check_content(delta)
    except BaseException:
        state.close()
        raise
    return delta


def _check_state_file(state: SafetensorsFile, named: Mapping[str, Any]) -> None:
    size = state.size_bytes
    if size != named["size_bytes"]:
        kind = TruncatedFileError if size < named["size_bytes"] else TrailingBytesError
        raise kind(
            "not the size that the document names",
            where=state.path,
            expected=f"{named['size_bytes']} bytes",
            found=size,
        )
    found = state.sha256()
    if found != named["sha256"]:
        raise DigestMismatchError(
            "the state file was changed",
            where=state.path,
            expected=f"{named['sha256'][:12]}…",
            found=f"{found[:12]}…",
            todo="fetch the delta again from where it came",
        )
