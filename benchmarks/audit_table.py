"""The tables of docs/audit.md, made from the look-ups of `audit_shares.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from result_table import replace_tables

from hfq.registry.clips.match import VARIANT_MARGIN

__all__ = ["BEGIN", "END", "MARGINS", "replace_figures", "summarise", "tables"]

BEGIN: Final = "<!-- figures: begin -->"
END: Final = "<!-- figures: end -->"
MARGINS: Final = (1.5, 2.0, 3.0, 5.0, 10.0)

_PICTURES_ALONE: Final = ("CRF 28", "half size, CRF 23", "half size, CRF 32", "trimmed, CRF 18")

Row = Mapping[str, Any]


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts of all look-ups; `wrong_names` must be zero."""
    kinds = _by(rows, "kind")
    registered, unregistered, unknown = (kinds.get(kind, []) for kind in ("registered", "unregistered", "unknown"))
    return {
        "look_ups": {"registered": len(registered), "unregistered": len(unregistered), "unknown": len(unknown)},
        "wrong_names": sum(row["named"] is not None and row["named"] != row["group"] for row in rows),
        "registered": {name: _registered(some) for name, some in _by(registered, "transform").items()},
        "unregistered": {name: _others(some) for name, some in _by(unregistered, "transform").items()},
        "unregistered_variants": {name: _others(some) for name, some in _by(unregistered, "group").items()},
        "unknown": {name: _others(some) for name, some in _by(unknown, "group").items()},
        "margins": {half: _margins(registered, unregistered, parity) for parity, half in enumerate(("even", "odd"))},
    }


def tables(document: Mapping[str, Any]) -> str:
    """Five tables in Markdown."""
    registered = _table(
        ("clip of a registered variant", "look-ups", "named, right", "named, wrong", "exit 3", "nearest is right",
         f"margin above {VARIANT_MARGIN:g}: right", "wrong"),
        [[name, *_shown(found, ("named_right", "named_wrong", "exit_3", "nearest_right", "decided_right",
                                "decided_wrong"))] for name, found in document["registered"].items()],
    )  # fmt: skip
    names = ("named", "exit_3", "scene_known", "decided")
    head = ("look-ups", "named", "exit 3", "scene known", f"margin above {VARIANT_MARGIN:g}", "largest margin")
    parts = [registered]
    for title, member in (
        ("clip of an unregistered variant", "unregistered"), ("the same, by variant", "unregistered_variants"),
        ("unknown clip", "unknown"),
    ):  # fmt: skip
        parts.append(
            _table(
                (title, *head),
                [[name, *_shown(found, names), _largest(found)] for name, found in document[member].items()],
            )
        )
    halves = document["margins"]
    lines = [
        [f"{margin:g}", *(cell for half in halves.values() for cell in _margin_cells(half[str(margin)]))]
        for margin in MARGINS
    ]
    head = tuple(
        f"{what}, {half}" for half in ("even scenes", "odd scenes") for what in ("right", "wrong", "unregistered")
    )
    parts.append(_table(("margin above", *head), lines))
    return "\n\n".join(parts)


def replace_figures(page: str, text: str) -> str:
    """A page with the figures between its two marks replaced; see `replace_tables`."""
    return replace_tables(page, text, BEGIN, END)


def _by(rows: Sequence[Row], member: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[member], []).append(row)
    return found


def _is_decided(row: Row, margin: float = VARIANT_MARGIN) -> bool:
    return row["margin"] is not None and row["margin"] > margin


def _registered(rows: Sequence[Row]) -> dict[str, int]:
    nearest = [bool(row["candidates"]) and row["candidates"][0][0] == row["group"] for row in rows]
    decided = [_is_decided(row) for row in rows]
    return {
        "look_ups": len(rows),
        "named_right": sum(row["named"] == row["group"] for row in rows),
        "named_wrong": sum(row["named"] not in (None, row["group"]) for row in rows),
        "exit_3": sum(row["exit_code"] == 3 for row in rows),
        "nearest_right": sum(nearest),
        "decided_right": sum(a and b for a, b in zip(decided, nearest, strict=True)),
        "decided_wrong": sum(a and not b for a, b in zip(decided, nearest, strict=True)),
    }


def _others(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "look_ups": len(rows),
        "named": sum(row["named"] is not None for row in rows),
        "exit_3": sum(row["exit_code"] == 3 for row in rows),
        "scene_known": sum(bool(row["candidates"]) for row in rows),
        "decided": sum(_is_decided(row) for row in rows),
        "largest_margin": max((row["margin"] for row in rows if row["margin"] is not None), default=None),
        "exit_codes": dict(sorted(Counter(str(row["exit_code"]) for row in rows).items())),
    }


def _margins(registered: Sequence[Row], unregistered: Sequence[Row], parity: int) -> dict[str, dict[str, int]]:
    """What a margin would decide for re-encoded clips of the scenes of one parity."""
    mine, others = (
        [row for row in rows if row["transform"] in _PICTURES_ALONE and row["scene"] % 2 == parity]
        for rows in (registered, unregistered)
    )
    found = {}
    for margin in MARGINS:
        right = [row["candidates"][0][0] == row["group"] for row in mine if _is_decided(row, margin)]
        found[str(margin)] = {
            "look_ups": len(mine),
            "right": sum(right),
            "wrong": len(right) - sum(right),
            "unregistered_look_ups": len(others),
            "unregistered": sum(_is_decided(row, margin) for row in others),
        }
    return found


def _shown(found: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [str(found["look_ups"]), *(_share(found[name], found["look_ups"]) for name in names)]


def _largest(found: Mapping[str, Any]) -> str:
    return "none" if found["largest_margin"] is None else f"{found['largest_margin']:.2f}"


def _margin_cells(found: Mapping[str, int]) -> list[str]:
    mine = [_share(found[name], found["look_ups"]) for name in ("right", "wrong")]
    return [*mine, _share(found["unregistered"], found["unregistered_look_ups"])]


def _share(count: int, of: int) -> str:
    return "0" if count == 0 else f"{count} ({100 * count / of:.0f} %)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
