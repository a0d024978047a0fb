"""Prompts that a delta was made with and is then judged by: such a judgement flatters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hfq.schema.canonical import sha256_hex

from .prompts import Prompt

__all__ = ["compare_prompts", "overlap_line", "prompt_line"]


def compare_prompts(
    evaluation: Sequence[Prompt] | None, calibration: Iterable[str], selection: Iterable[str]
) -> dict[str, Any] | None:
    """What `provenance.json` says about evaluation prompts; None when none were given.

    Args:
        calibration, selection: SHA-256 of the prompts that the calibration has, and that blocks were selected on.
    """
    if evaluation is None:
        return None
    hashes = {prompt.sha256 for prompt in evaluation}
    return {
        "prompts": len(hashes),
        "calibration": sorted(hashes & set(calibration)),
        "selection": sorted(hashes & set(selection)),
    }


def overlap_line(found: Mapping[str, Any] | None) -> str | None:
    """One line about the overlap, or None when there is none."""
    uses = [] if found is None else [use for use in ("calibration", "selection") if found[use]]
    if found is None or not uses:
        return None
    shared = len({prompt for use in uses for prompt in found[use]})
    return (
        f"warning: {shared} of {found['prompts']} evaluation prompts were used for {' and '.join(uses)}: "
        "scores on them flatter this delta"
    )


def prompt_line(document: Mapping[str, Any], prompt: str) -> str | None:
    """One line when a delta was made with this prompt, or None.

    Args:
        document: `ptq_state.json`.
    """
    # A command line may hold bytes that are no UTF-8; no prompt of a delta does.
    digest = sha256_hex(prompt.encode(errors="surrogatepass"))
    selection = document["selection"]
    used = {
        "calibration": document["calibration"],
        "selection": None if selection is None else selection["analysis"],
    }
    uses = [use for use, entry in used.items() if entry is not None and digest in entry["prompts"]]
    if not uses:
        return None
    return f"warning: the delta was made with this prompt ({' and '.join(uses)}): the clip flatters it"
