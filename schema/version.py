"""The release that is installed; documents record it."""

from __future__ import annotations

import importlib.metadata
from typing import Final

__all__ = ["VERSION"]

VERSION: Final = importlib.metadata.version("hfq")
