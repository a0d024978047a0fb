"""The table of `make bench`, on a terminal and in docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from bench_commands import COMMANDS
from bench_floors import Bound, Row, bounds_of, changes, is_kernel, key_of, shortfall
from result_table import replace_tables

__all__ = ["NOTHING", "replace_figures", "table", "tables"]

BEGIN: Final = "<!-- figures: begin -->"
END: Final = "<!-- figures: end -->"
LIMITS: Final = ("copy_", "fill_", "sha256")
NAMES: Final[Mapping[str, str]] = {
    "eager": "our eager twin",
    "copy_": "limit: copy_",
    "fill_": "limit: fill_",
    "sha256": "limit: SHA-256",
    "limit": "limit: SHA-256 and kernel",
    "plain": "plain forward",
    "bf16": "BF16 clip",
}
HEAD: Final = ("work", "threads", "against", "M elements/s", "GB/s", "times faster [least, most]", "bound", "committed")
NOTHING: Final = "No figures yet: `make bench` puts them here."
BUSY: Final = 0.1
"""Above this share of the cores' time in other processes, figures are shown with a warning."""
RED: Final = "\x1b[31m"
PLAIN: Final = "\x1b[0m"


def table(document: Mapping[str, Any], commands: Sequence[Row], committed: Sequence[Row], *, colour: bool) -> str:
    """Every row and what it was measured against, one line each, for a terminal.

    Args:
        document: of bench.py.
        commands: rows of other scripts.
        committed: rows that ratios are compared with.
        colour: whether a regression stands in red; it is named "slower" either way.
    """
    rows = [*document["rows"], *document["sizes"], *commands]
    old = {(key_of(change.row), change.other): change for change in changes(rows, committed)}
    lines: list[tuple[str, ...]] = [HEAD]
    red = [False]
    for row in rows:
        own = _rates(row, row["seconds"][0], row["elements"])
        lines.append((_label(document, row), str(row["threads"]), "", *own, "", "", ""))
        red.append(False)
        for other, found in row["against"].items():
            change = old.get((key_of(row), other))
            was = "" if change is None else f"{change.before:.2f}" + (" slower" if change.is_regression else "")
            rates = _rates(row, found["seconds"][0], found.get("elements"), bytes_known=other in ("eager", *LIMITS))
            bound = bounds_of(row).get(other)
            verdict = "" if bound is None else _verdict(row, other, bound)
            lines.append(("", "", _other(row, other), *rates, _interval(found["ratio"]), verdict, was))
            red.append(change is not None and change.is_regression)
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    shown = [f"{RED}{text}{PLAIN}" if mark and colour else text for text, mark in zip(shown, red, strict=True)]
    return "\n".join([*shown, "", _machine(document)])


def tables(document: Mapping[str, Any], commands: Mapping[str, Sequence[Row]]) -> str:
    """All tables, in Markdown.

    Args:
        commands: title of a command's table -> its rows, none when it was not measured.
    """
    everything = [*document["rows"], *(row for rows in commands.values() for row in rows)]
    parts = [
        f"**What was promised**\n\n{_bounds(document, everything)}",
        f"**Kernels against the eager twin and the limits**\n\n{_kernels(document)}",
        f"**Kernels against peers**\n\n{_peers(document)}",
        f"**Tensor size**\n\n{_sizes(document)}",
        f"**First use**\n\n{_first_use(document)}",
        *(f"**{command.title}**\n\n{_commands(commands[command.title], command)}" for command in COMMANDS),
        f"**The peers**\n\n{_peer_list(document)}",
        _machine(document),
    ]
    return "\n\n".join(parts)


def replace_figures(page: str, text: str) -> str:
    """A page with the figures between its two marks replaced; see `replace_tables`."""
    return replace_tables(page, text, BEGIN, END)


def _bounds(document: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A line per kind of bound: in how many rows it holds, and the rows that miss it, with how much is missing."""
    kinds: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        for other, bound in bounds_of(row).items():
            group = "kernels" if is_kernel(row) else row["work"]
            kinds.setdefault((group, other, bound.ratio), []).append(row)
    lines = []
    for (_, other, _), held in kinds.items():
        missed = [row for row in held if shortfall(row, other)]
        words = [
            f"{_label(document, row)}, {_plural(row['threads'])}: {_found(row, other)}, "
            f"misses it by {_share(shortfall(row, other))}{_ceiling(row, other)}"
            for row in missed
        ]
        if len(missed) > _NAMED:
            shares = sorted(shortfall(row, other) or 0.0 for row in missed)
            words = [f"{len(missed)} rows, by {_share(shares[0])} to {_share(shares[-1])}; bold ratios below hold it"]
        bound = bounds_of(held[0])[other]
        lines.append((_promise(held[0], other, bound), f"{len(held) - len(missed)} of {len(held)}", "; ".join(words)))
    measured = {row["work"] for row in rows}
    lines += [(promise, "not measured", "") for work, promise in _UNMEASURED.items() if work not in measured]
    return _markdown(("promise", "rows that hold it", "rows that miss it"), lines)


_NAMED: Final = 4
"""Rows that are named; of more the page would be a wall of text."""

_UNMEASURED: Final[Mapping[str, str]] = {
    "inspect": "`hfq inspect`: at most 1.15 times the limit",
    "convert": "`hfq convert --recipe rtn-hif4`: at most 1.5 times the limit",
    "statistics": "calibration statistics: at most 10 % over a plain forward",
    "generate tail-aware-hif4": "clips of the tiny Wan, `tail-aware-hif4`: at most 1.6 times a BF16 clip",
    "generate boundary-hif8": "clips of the tiny Wan, `boundary-hif8`: at most 1.6 times a BF16 clip",
}


def _promise(row: Row, other: str, bound: Bound) -> str:
    if not is_kernel(row):
        return _UNMEASURED[row["work"]]
    if other == "copy_":
        return "aim: every kernel at least a third as fast as `copy_` of as many bytes"
    return f"every kernel at least {bound.ratio:g} times as fast as our eager twin"


def _found(row: Row, other: str) -> str:
    ratio = row["against"][other]["ratio"][0]
    return f"{ratio:.2f} times" if is_kernel(row) else f"{1 / ratio:.2f} times as long"


def _ceiling(row: Row, other: str) -> str:
    """How many times faster than the eager twin writing the result alone is, where not even that holds the bound."""
    if other != "eager":
        return ""
    ceiling = row["against"]["eager"]["seconds"][0] / row["against"]["fill_"]["seconds"][0]
    return f" (`fill_` of the result alone: {ceiling:.1f} times)" if ceiling < bounds_of(row)[other].ratio else ""


def _kernels(document: Mapping[str, Any]) -> str:
    lines = []
    for row in document["rows"]:
        lines.append(
            (
                _label(document, row),
                str(row["threads"]),
                *_rates(row, row["seconds"][0], row["elements"]),
                *(_marked(row, other) for other in ("eager", *LIMITS)),
                _share(row["system_share"]),
            )
        )
    columns = ("work", "threads", "M elements/s", "GB/s", "eager twin", "`copy_`", "`fill_`", "SHA-256", "system")
    return _markdown(columns, lines)


def _marked(row: Row, other: str) -> str:
    """A ratio, bold where a bound for it holds."""
    text = _interval(row["against"][other]["ratio"])
    return f"**{text}**" if other in bounds_of(row) and not shortfall(row, other) else text


def _peers(document: Mapping[str, Any]) -> str:
    """A line per peer and work, the cells for one thread and for all cores side by side."""
    threads = sorted({row["threads"] for row in document["rows"]})
    found = {(row["work"], row["threads"]): row for row in document["rows"]}
    lines = []
    for work, label in document["works"].items():
        rows = [found[work, count] for count in threads if (work, count) in found]
        for peer in document["peers"]:
            if not rows or any(peer not in row["against"] for row in rows):
                continue
            cells = []
            for row in rows:
                other = row["against"][peer]
                cells += [_rates(row, other["seconds"][0], other["elements"])[0], _interval(other["ratio"])]
            part = "" if all(row["against"][peer]["elements"] == row["elements"] for row in rows) else " *"
            lines.append((label, f"{peer}{part}", *cells))
    columns = [name for count in threads for name in (f"{_plural(count)}: M elements/s", "ours is times as fast")]
    note = (
        f"\\* timed on the leading rows of the tensor, as many as it does in {document['settings']['peer_s']:g} s; "
        "figures are per element."
    )
    return f"{_markdown(('work', 'peer', *columns), lines)}\n\n{note}"


def _sizes(document: Mapping[str, Any]) -> str:
    """M elements/s, and in brackets how many times the eager twin's that is, over the sizes."""
    sizes = sorted({row["elements"] for row in document["sizes"]})
    found = {key_of(row): row for row in document["sizes"]}
    lines = []
    for work, threads in dict.fromkeys((row["work"], row["threads"]) for row in document["sizes"]):
        cells = []
        for size in sizes:
            row = found[work, size, threads]
            rate = _rates(row, row["seconds"][0], size)[0]
            cells.append(f"{rate} ({row['against']['eager']['ratio'][0]:.1f})")
        lines.append((document["works"][work], str(threads), *cells))
    return _markdown(("work", "threads", *(_size(size) for size in sizes)), lines)


def _first_use(document: Mapping[str, Any]) -> str:
    found = document["first_use"]
    if not found:
        return "Not measured."
    words = {"cold": "nothing compiled yet", "warm": "compiled by an earlier process"}
    lines = []
    for state in words:
        if state in found:
            seconds = [_interval(found[state][key]) for key in ("import", "hif4", "hif8")]
            lines.append((f"{words[state]} ({_plural(found[state]['runs'], 'run')})", *seconds))
    columns = ("a new process", "importing `hfq.formats`, s", "first HiF4 calls, s more", "first HiF8 calls, s more")
    loaded = "loads" if found["numba_imported"] else "does not load"
    return _markdown(columns, lines) + f"\n\nThe import alone {loaded} numba."


def _commands(rows: Sequence[Row], command: Any) -> str:
    if not rows:
        return f"Not measured (`benchmarks/{command.script}`)."
    lines = []
    for row in rows:
        for other, found in row["against"].items():
            times = sorted(1 / value for value in found["ratio"][1:])
            lines.append(
                (
                    row["label"],
                    str(row["threads"]),
                    f"{row['seconds'][0]:.2f}",
                    f"{found['seconds'][0]:.2f}",
                    f"{1 / found['ratio'][0]:.3f} [{times[0]:.3f}, {times[1]:.3f}]",
                    _at_most(row, other),
                    f"{row['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in row else "",
                )
            )
    columns = ("work", "threads", "s", "limit, s", "times the limit", "promised", "peak memory, GB")
    return f"{_markdown(columns, lines)}\n\nLimit: {command.over}."


def _at_most(row: Row, other: str) -> str:
    bound = bounds_of(row).get(other)
    if bound is None:
        return ""
    return f"{1 / bound.ratio:g}, {_verdict(row, other, bound)}"


def _peer_list(document: Mapping[str, Any]) -> str:
    lines = [
        (name, f"{peer['package']} {peer['version']}", peer["call"], peer["differs"])
        for name, peer in document["peers"].items()
    ]
    lines += [(name, "not measured", why, "") for name, why in document["missing_peers"].items()]
    return _markdown(("peer", "package", "calls", "what it does otherwise"), lines)


def _machine(document: Mapping[str, Any]) -> str:
    machine, settings = document["machine"], document["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in document["packages"].items())
    others = machine["other_processes"]
    busy = "not known" if others is None else f"{100 * others:.0f} % of the cores' time"
    return (
        f"Machine: {machine['cpu']}, {_plural(machine['cores'], 'core')}, {machine['memory_gb']:.0f} GB, "
        f"{machine['system']}; Python {document['python']}, {packages}. {settings['rounds']} rounds. "
        f"Work of other processes meanwhile: {busy}.{_warning(document)}"
    )


def _warning(document: Mapping[str, Any]) -> str:
    """What OpenMP's threads make of a busy machine: they wait for each other, and every peer looks slow."""
    others = document["machine"]["other_processes"]
    if others is None or others <= BUSY:
        return ""
    return " **The machine was busy: these figures are worth little, those with several threads nothing.**"


def _rates(row: Row, seconds: float, elements: int | None, *, bytes_known: bool = True) -> tuple[str, str]:
    """M elements/s and GB/s; seconds of a command."""
    if elements is None:
        return f"{seconds:.2f} s", ""
    rate = elements / seconds / 1e6
    shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    return shown, f"{row['bytes_moved'] / seconds / 1e9:.2f}" if bytes_known else ""


def _label(document: Mapping[str, Any], row: Row) -> str:
    if not is_kernel(row):
        return str(row["label"])
    label = str(document["works"][row["work"]])
    return label if row["elements"] == document["settings"]["elements"] else f"{label}, {_size(row['elements'])}"


def _other(row: Row, other: str) -> str:
    found = row["against"][other]
    name = NAMES.get(other, other)
    return name if found.get("elements") == row["elements"] else f"{name}, first {found['elements']:,}"


def _verdict(row: Row, other: str, bound: Bound) -> str:
    missing = shortfall(row, other)
    word = "aim" if bound.aim else "bound"
    return "held" if not missing else f"{word} missed by {_share(missing)}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _interval(ratio: Sequence[float]) -> str:
    form = ".2f" if ratio[0] < 10 else ".0f"
    return f"{ratio[0]:{form}} [{ratio[1]:{form}}, {ratio[2]:{form}}]"


def _plural(count: int, word: str = "thread") -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _size(elements: int) -> str:
    power = elements.bit_length() - 1
    return f"2^{power}" if elements == 1 << power else f"{elements:,}"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines(columns, rows))


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(cells)} |"
