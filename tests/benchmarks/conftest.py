"""The scripts of benchmarks/ are no package: their folders are put on the path."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

if BENCHMARKS.exists():
    sys.path.insert(0, str(BENCHMARKS / "tiny_wan"))
    sys.path.insert(0, str(BENCHMARKS))
else:  # they are not part of the installed package
    collect_ignore_glob = ["test_*.py"]
