"""hfq: HiFloat4 / HiFloat8 quantization deltas for Wan video models.

The library has the verbs of the command: `open_checkpoint`, `calibrate`, `load_calibration`, `analyze`, `quantize`,
`load_delta`, `verify`, `apply`, `unused_clips`, `export_onnx`, `verify_onnx`, `open_registry`. Names are imported when
they are used, because torch alone takes a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hfq.schema import version

__version__ = version.VERSION

__all__ = [
    "Recipe",
    "Scope",
    "__version__",
    "analyze",
    "apply",
    "calibrate",
    "export_onnx",
    "load_calibration",
    "load_delta",
    "load_recipe",
    "open_checkpoint",
    "open_registry",
    "quantize",
    "unused_clips",
    "verify",
    "verify_onnx",
]

if TYPE_CHECKING:
    from hfq.convert.analyze import analyze
    from hfq.convert.apply import apply
    from hfq.convert.calibrate import calibrate
    from hfq.convert.calibration import load_calibration
    from hfq.convert.checkpoint import open_checkpoint
    from hfq.convert.clip import unused_clips
    from hfq.convert.convert import quantize
    from hfq.convert.delta import load_delta
    from hfq.convert.graphs.export import export_onnx
    from hfq.convert.graphs.scope import Scope
    from hfq.convert.graphs.verify_onnx import verify_onnx
    from hfq.convert.recipe import Recipe, load_recipe
    from hfq.convert.verify import verify
    from hfq.registry import open_registry

_HOMES = {
    "Recipe": "hfq.convert.recipe",
    "Scope": "hfq.convert.graphs.scope",
    "analyze": "hfq.convert.analyze",
    "apply": "hfq.convert.apply",
    "calibrate": "hfq.convert.calibrate",
    "export_onnx": "hfq.convert.graphs.export",
    "load_calibration": "hfq.convert.calibration",
    "load_delta": "hfq.convert.delta",
    "load_recipe": "hfq.convert.recipe",
    "open_checkpoint": "hfq.convert.checkpoint",
    "open_registry": "hfq.registry",
    "quantize": "hfq.convert.convert",
    "unused_clips": "hfq.convert.clip",
    "verify": "hfq.convert.verify",
    "verify_onnx": "hfq.convert.graphs.verify_onnx",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hfq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
