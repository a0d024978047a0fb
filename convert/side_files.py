"""The small files beside the weights of a model: JSON objects, and what a library makes of them."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hfq.schema.documents import parse_json
from hfq.schema.errors import HfqError, MalformedFileError, is_out_of_memory

from .hub_cache import read_side_file

__all__ = ["make_scheduler", "read_by_library", "read_object"]

_OBJECT_BYTES: Final = 32 << 20  # a tokenizer's vocabulary may have megabytes
_LARGEST: Final = 1_000_000
"""Of a scheduler's numbers; every release has 1,000 timesteps."""


def read_object(path: Path, limit: int = _OBJECT_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes.

    Raises:
        MalformedFileError and its kin, and what `read_side_file` raises
    """
    document = parse_json(read_side_file(path, limit), str(path))
    if not isinstance(document, dict):
        raise MalformedFileError("not a JSON object", where=path, found=type(document).__name__)
    return document


@contextlib.contextmanager
def read_by_library(what: str, where: object) -> Iterator[None]:
    """Say in one line what a library cannot make of somebody's file: each has exceptions of its own.

    Raises:
        MalformedFileError: `what`, for whatever it raises, but for want of memory, which says nothing of the file.
    """
    try:
        yield
    except HfqError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise MalformedFileError(what, where=where, found=f"{type(error).__name__}: {error}") from error


def make_scheduler(made: Any, config: Mapping[str, Any], where: object) -> Any:
    """A diffusers scheduler of a class, from its configuration, which has been tried.

    Raises:
        MalformedFileError: it does not make a schedule.
    """
    # A scheduler makes tables of so many numbers.
    large = [name for name, value in config.items() if type(value) is int and value > _LARGEST]
    if large:
        raise MalformedFileError(
            "not a scheduler's configuration",
            where=where,
            expected=f"numbers up to {_LARGEST}",
            found=f"{large[0]} = {config[large[0]]}",
        )
    with read_by_library("not a scheduler's configuration", where), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers that are none, which are looked for below
        scheduler = made.from_config(dict(config))
        tried = copy.deepcopy(scheduler)
        tried.set_timesteps(4)
        times = [float(t) for t in (*tried.timesteps, *tried.sigmas)]
    if not all(math.isfinite(t) for t in times):
        raise MalformedFileError("a scheduler whose steps are no numbers", where=where, found=times[:4])
    return scheduler
