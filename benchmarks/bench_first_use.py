"""What the first use costs on a machine: kernels compiled into an empty cache, and loaded from a filled one.

    python benchmarks/bench_first_use.py      # the process that is measured; it prints one line of JSON

`first_use` starts such processes, with a cache folder of its own in place of the user's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

from timing import spread

__all__ = ["first_use"]

ELEMENTS: Final = 1 << 20
LIMIT_S: Final = 600.0


def first_use(*, cold: int = 1, warm: int = 7) -> dict[str, Any]:
    """Seconds of a new process, [median, smallest, largest] over processes.

    Args:
        cold: processes that find an empty cache; each has its own.
        warm: processes that find the cache of the last of these.

    Returns:
        `cold` and `warm`, each: `import` of hfq.formats, `hif4` and `hif8` (the first calls of quantize, dequantize
        and quantize-dequantize on 2^20 BF16 elements, less the second calls of the same); and `numba_imported`,
        whether the import alone had loaded numba.

    Raises:
        subprocess.SubprocessError: a process failed.
    """
    found: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    for last in range(cold - 1, -1, -1):
        with tempfile.TemporaryDirectory(prefix="hfq-first-use-") as folder:
            found["cold"].append(_process(folder))
            for _ in range(warm if last == 0 else 0):
                found["warm"].append(_process(folder))
    keys = ("import", "hif4", "hif8")
    return {
        "elements": ELEMENTS,
        "numba_imported": any(process["numba_imported"] for processes in found.values() for process in processes),
        **{
            state: {key: spread([process[key] for process in processes]) for key in keys} | {"runs": len(processes)}
            for state, processes in found.items()
            if processes
        },
    }


def _process(cache: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    return dict(json.loads(done.stdout))


def _measure() -> dict[str, Any]:
    import torch  # without it the next import would be that of torch

    begin = time.perf_counter()
    from hfq.formats import hif4, hif8

    seconds: dict[str, Any] = {"import": time.perf_counter() - begin, "numba_imported": "numba" in sys.modules}
    x = torch.randn(ELEMENTS // 1024, 1024, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for name, module in (("hif4", hif4), ("hif8", hif8)):
        took = []
        for _ in range(2):
            begin = time.perf_counter()
            module.quantize(x).dequantize()
            module.qdq(x)
            took.append(time.perf_counter() - begin)
        seconds[name] = took[0] - took[1]
    return seconds


if __name__ == "__main__":
    print(json.dumps(_measure()))
