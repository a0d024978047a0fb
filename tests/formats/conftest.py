"""Every test of this folder runs twice: with the eager twin, and with the compiled one for tensors of any size."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from hfq.formats import _compiled


@pytest.fixture(scope="module", params=["eager", "compiled"], autouse=True)
def twin(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which twin works."""
    with pytest.MonkeyPatch.context() as patch:
        smallest = 1 if request.param == "compiled" else sys.maxsize
        patch.setattr(_compiled, "LOAD_FROM", smallest)
        patch.setattr(_compiled, "RUN_FROM", smallest)
        if request.param == "compiled":
            assert _compiled._usable()
        yield request.param
