"""What a pipeline is made of besides its transformers: a digest per part, for the identity of a calibration.

A text encoder decides what the transformers see as much as a prompt does. Digests are of the parts in memory, so that
they do not depend on how a folder was written; paths and software versions, which configurations also hold, are left
out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from hfq.schema.canonical import canonical_json, sha256_hex
from hfq.schema.errors import UsageError

from .tensor_bytes import tensor_bytes

__all__ = ["digest_components"]

_TRANSFORMERS: Final = ("transformer", "transformer_2")
# What a fast tokenizer remembers of its last call.
_TOKENIZER_STATE: Final = ("truncation", "padding")


def digest_components(pipeline: Any) -> dict[str, str]:
    """name -> hex digest of each part of a pipeline: class, configuration, vocabulary and every weight as it is in
    memory; and under `pipeline` the pipeline's own flags.

    Raises:
        UsageError: a part whose weights are not in memory.
    """
    found = {"pipeline": _digest_config(_flags(pipeline.config))}
    for name, part in sorted(pipeline.components.items()):
        if part is None or name in _TRANSFORMERS:
            continue
        lines: list[Any] = [type(part).__name__, _digest_config(_configuration(part)), _digest_vocabulary(part)]
        if isinstance(part, nn.Module):
            for key, value in sorted(part.state_dict().items()):
                if value.is_meta:
                    raise UsageError(
                        "a pipeline whose weights are not in memory",
                        where=f"{name}: {key}",
                        todo="give it before offloading is enabled",
                    )
                digest = hashlib.sha256(tensor_bytes(value)).hexdigest()
                lines.append([key, str(value.dtype), list(value.shape), digest])
        found[name] = sha256_hex(canonical_json(lines))
    return found


def _flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """The boundary is a setting of the run, and the rest of a pipeline's configuration lists its parts."""
    return {name: value for name, value in config.items() if name == "expand_timesteps" and value}


def _configuration(part: Any) -> Mapping[str, Any]:
    config = getattr(part, "config", part)
    if hasattr(config, "to_dict"):
        found: Mapping[str, Any] = config.to_dict()
        return found
    if isinstance(config, Mapping):
        return config
    return vars(config) if config is not part else {}


def _digest_config(config: Mapping[str, Any]) -> str:
    kept = {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and name not in ("name_or_path", "transformers_version")
    }
    return sha256_hex(json.dumps(kept, sort_keys=True, default=str).encode())


def _digest_vocabulary(part: Any) -> str | None:
    if hasattr(part, "backend_tokenizer"):
        state = json.loads(part.backend_tokenizer.to_str())
        return _digest_config({name: value for name, value in state.items() if name not in _TOKENIZER_STATE})
    if hasattr(part, "get_vocab"):
        return _digest_config(part.get_vocab())
    if hasattr(part, "vocabulary"):
        words = dataclasses.asdict(part.vocabulary)
        return _digest_config({name: sorted(value) if name == "filler" else value for name, value in words.items()})
    return None
