"""Documents and tensors of a calibration, changed by somebody who can hash, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from hfq.convert.calibration import file_sha256
from hfq.convert.safetensors_file import SafetensorsFile
from hfq.convert.safetensors_writer import write_safetensors
from hfq.schema.canonical import canonical_json, content_id

Tensors = dict[str, Tensor]


def edit_document(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a document and give it the id that its content has."""
    document = json.loads(path.read_bytes())
    change(document)
    document["id"] = content_id(document)
    path.write_bytes(canonical_json(document))


def rewrite_tensors(path: Path, document: Path, member: str, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of a file, and make the `member` of the document that describes it fit."""
    with SafetensorsFile(path) as file:
        tensors = {name: file.read(name) for name in file.tensors}
    change(tensors)
    path.unlink()
    write_safetensors(path, tensors)
    described = {"sha256": file_sha256(path), "size_bytes": path.stat().st_size}
    edit_document(document, lambda d: d.update({member: described}))
