"""The results document's intervals, and the Markdown of docs/results.md made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from result_arms import COMPARISONS, FAMILIES, all_arms
from result_statistics import Interval, bootstrap, paired_difference, paired_ratio

__all__ = ["compare", "replace_tables", "summarise_rows", "tables"]

BEGIN: Final = "<!-- table: begin -->"
END: Final = "<!-- table: end -->"
ROLES: Final = ("high_noise", "low_noise")
SHOWN: Final = "over_prompts"
"""Which of the two intervals of an NMSE ratio the tables show: "over_calls" or the wider "over_prompts"."""
SLOTS: Final = ("shape", "colour", "direction", "shape_colour_direction")


def summarise_rows(rows: Sequence[Mapping[str, Any]], forced: int) -> dict[str, Any]:
    """Every interval that the tables show, from the raw figures of the rows.

    Args:
        rows: results of `measure_arm`; arms without figures are passed over.
        forced: prompts with teacher-forced calls.

    Returns:
        `arms`: key -> NMSE per expert, PSNR, and the comparison with the family's plain rounding (None where there is
        none); `comparisons`: name -> list of comparisons.
    """
    measured = {row["key"]: row for row in rows if "psnr_db" in row}
    plain = {arm.key: arm.plain for arm in all_arms()}
    arms = {}
    for key, row in measured.items():
        other = plain.get(key)
        arms[key] = {
            "expert_nmse": {role: bootstrap(row["expert_nmse"][role]) for role in ROLES},
            "psnr_db": bootstrap(row["psnr_db"]),
            "to_plain": compare(row, measured[other], forced) if other in measured else None,
        }
    comparisons = {
        comparison.name: [
            compare(measured[arm], measured[against], forced)
            for arm, against in comparison.pairs
            if arm in measured and against in measured
        ]
        for comparison in COMPARISONS
    }
    return {"arms": arms, "comparisons": comparisons}


def compare(row: Mapping[str, Any], against: Mapping[str, Any], forced: int) -> dict[str, Any]:
    """One arm against another, paired by call and by clip.

    Returns:
        keys of both; per expert the geometric mean of the NMSE's ratio with an interval over calls and one over
        prompts; difference of PSNR in dB.
    """
    return {
        "arm": row["key"],
        "against": against["key"],
        "nmse_ratio": {
            role: {
                "over_calls": paired_ratio(row["expert_nmse"][role], against["expert_nmse"][role]),
                "over_prompts": paired_ratio(row["expert_nmse"][role], against["expert_nmse"][role], forced),
            }
            for role in ROLES
        },
        "psnr_db": paired_difference(row["psnr_db"], against["psnr_db"]),
    }


def tables(document: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    parts = [_quality(document), _clips(document), _sizes(document)]
    labels = {row["key"]: row["arm"] for row in document["rows"]}
    for comparison in COMPARISONS:
        found = document["figures"]["comparisons"][comparison.name]
        if found:
            parts.append(_comparison(comparison.title, found, labels))
    return "\n\n".join(parts)


def replace_tables(page: str, text: str, begin_mark: str = BEGIN, end_mark: str = END) -> str:
    """A page with what stands between its two marks replaced.

    Raises:
        ValueError: a page without the marks, in that order.
    """
    head, begin, rest = page.partition(begin_mark)
    _, end, tail = rest.partition(end_mark)
    if not begin or not end:
        raise ValueError(f"the page lacks {begin_mark} or {end_mark} after it")
    return f"{head}{begin_mark}\n{text}\n{end_mark}{tail}"


def _quality(document: Mapping[str, Any]) -> str:
    rows: list[list[str] | None] = []
    for row in document["rows"]:
        found = document["figures"]["arms"].get(row["key"])
        if found is None:
            why = [f"{word}: {row[word]}" for word in ("refused", "failed") if word in row]
            rows.append([row["arm"], *why] if why else None)
            continue
        plain = found["to_plain"]
        cells = [row["arm"]]
        for role in ROLES:
            ratio = None if plain is None else plain["nmse_ratio"][role][SHOWN]
            cells += [_interval(found["expert_nmse"][role], ".3g"), _interval(ratio, ".3f")]
        rows.append([*cells, _interval(found["psnr_db"], ".2f"), _interval(plain and plain["psnr_db"], "+.2f")])
    columns = (
        "arm", "high noise: output NMSE", "its ratio to plain", "low noise: output NMSE", "its ratio to plain",
        "PSNR to BF16, dB", "difference to plain, dB",
    )  # fmt: skip
    return _by_family(document, columns, rows)


def _clips(document: Mapping[str, Any]) -> str:
    rows: list[list[str] | None] = []
    for row in document["rows"]:
        cells = [row["arm"]]
        for slot in SLOTS:
            found = row.get("accuracy", {}).get(slot)
            if found is not None:
                low, high = found["wilson_95"]
                cells.append(f"{100 * found['share']:.1f} % [{100 * low:.0f}, {100 * high:.0f}]")
        rows.append(cells if len(cells) > 1 else None)
    return _by_family(document, ("arm", "shape", "colour", "direction", "all three"), rows)


def _sizes(document: Mapping[str, Any]) -> str:
    rows: list[list[str] | None] = []
    for row in document["rows"]:
        if "convert_seconds" not in row:
            rows.append(None)
            continue
        stored = row.get("stored_bits_per_weight")
        rows.append(
            [
                row["arm"],
                _pair(row.get("weight_nmse")),
                _pair(row.get("linear_output_nmse")),
                "no delta" if stored is None else f"{row['delta_bytes'] / 1000:.0f} kB",
                "" if stored is None else f"{stored:.3f}",
                f"{row['packed_bits_per_weight']:.3f}",
                f"{row['block_bits_per_weight']:.3f}",
                f"{row['convert_seconds']:.1f}",
            ]
        )
    columns = (
        "arm", "weight NMSE, high / low", "linear output NMSE, high / low", "delta", "bits per weight, stored",
        "packed", "packed, kept blocks included", "conversion, s",
    )  # fmt: skip
    return _by_family(document, columns, rows)


def _comparison(title: str, found: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    rows = [
        [
            labels[entry["arm"]],
            labels[entry["against"]],
            *(_interval(entry["nmse_ratio"][role][SHOWN], ".3f") for role in ROLES),
            _interval(entry["psnr_db"], "+.2f"),
        ]
        for entry in found
    ]
    columns = ("arm", "against", "high noise: NMSE ratio", "low noise: NMSE ratio", "PSNR difference, dB")
    return f"**{title}**\n\n" + "\n".join(_lines(columns, rows))


def _by_family(document: Mapping[str, Any], columns: Sequence[str], rows: Sequence[list[str] | None]) -> str:
    """A table with a line above the first row of each family; a row of None is left out."""
    shown: list[list[str]] = []
    family = "base"
    for row, cells in zip(document["rows"], rows, strict=True):
        if cells is None:
            continue
        if row["family"] != family:
            family = row["family"]
            shown.append([f"*{FAMILIES[family][0]}*"])
        shown.append(cells)
    return "\n".join(_lines(columns, shown))


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    padded = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *padded)]


def _interval(found: Interval | None, form: str) -> str:
    return "" if found is None else f"{found[0]:{form}} [{found[1]:{form}}, {found[2]:{form}}]"


def _pair(found: Mapping[str, float | None] | None) -> str:
    values = [] if found is None else [found[role] for role in ROLES]
    if not values or None in values:
        return "not measured"
    return " / ".join(f"{value:.2e}" for value in values)
