"""Running a command in a process of its own and measuring it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

# Runs the command in a process of its own and prints its peak resident size as the last line of stderr.
_CHILD = """
import resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from hfq.cli import run
code = run(sys.argv[2:])
from hfq.convert.provenance import peak_rss_bytes
print(peak_rss_bytes(), file=sys.stderr)
sys.exit(code)
"""


def run_measured(*arguments: str, data_limit: int = 0) -> tuple[dict[str, Any], int]:
    """Run `hfq ARGUMENTS --json` in a fresh process; returns its document and its peak resident size in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(data_limit), *arguments, "--json"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), int(done.stderr.strip().splitlines()[-1])
