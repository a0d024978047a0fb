"""Real widths: these tests need tens of gigabytes of disk and minutes; `make check-large` runs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

FIGURES = Path(__file__).parents[2] / "benchmarks" / "results" / "large.json"


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, Any]]:
    """Figures that the tests measure; written where the docs quote them from."""
    found: dict[str, Any] = {}
    yield found
    if found:
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        FIGURES.write_text(json.dumps({**before, **found}, indent=1, sort_keys=True) + "\n")
