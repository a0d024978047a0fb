"""The table of `make bench`: what is held, what is missed, what fell, and what the page shows."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_commands import COMMANDS, calibration_rows, conversion_rows
from bench_floors import bounds_of, changes, key_of, shortfall
from bench_table import BEGIN, END, NOTHING, PLAIN, RED, replace_figures, table, tables
from timing import Candidate, paired, ratio, spread

ROOT = Path(__file__).resolve().parents[2]


def figure(seconds: float, value: float, elements: int | None = 1 << 20) -> dict[str, Any]:
    return {"seconds": [seconds] * 3, "elements": elements, "ratio": [value, value - 0.5, value + 0.5]}


def row(work: str = "hif4.qdq", elements: int = 1 << 20, threads: int = 1, **ratios: float) -> dict[str, Any]:
    ratios = {"eager": 10.0, "copy_": 0.25, "fill_": 0.5, "sha256": 2.0} | ratios
    against = {name: figure(0.001 * value, value, elements) for name, value in ratios.items()}
    return {
        "work": work, "elements": elements, "threads": threads, "bytes_moved": 4 * elements,
        "seconds": [0.001, 0.0009, 0.002], "system_share": 0.4, "against": against,
    }  # fmt: skip


def document(*rows: dict[str, Any], sizes: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    spreads = {"import": [0.5, 0.4, 0.6], "hif4": [12.0, 11.0, 13.0], "hif8": [2.0, 1.0, 3.0], "runs": 1}
    return {
        "settings": {"elements": 1 << 20, "peer_s": 0.25, "rounds": 7},
        "machine": {"cpu": "a CPU", "cores": 2, "memory_gb": 16.4, "system": "Linux", "other_processes": 0.034},
        "python": "3.11", "packages": {"torch": "2.13"},
        "works": {"hif4.qdq": "HiF4 there and back", "hif8.qdq": "HiF8 there and back"},
        "peers": {"slow": {"package": "slow", "version": "1.2", "call": "`f(x)`", "differs": "all"}},
        "missing_peers": {"gone": "No module named 'gone'"},
        "first_use": {"numba_imported": False, "cold": spreads}, "rows": list(rows), "sizes": list(sizes),
    }  # fmt: skip


def command(work: str, seconds: list[float], limit: list[float]) -> dict[str, Any]:
    """A row of a whole process, from runs that take a second less after imports."""
    pairs = zip(seconds, limit, strict=True)
    runs = [
        {"command_seconds": took, "seconds": took - 1, "limit_seconds": least, "peak_rss_bytes": 10**8 * int(took)}
        for took, least in pairs
    ]
    whole, after = conversion_rows({"threads": 2, "sizes_bytes": {"files": 5_600_000_000}, "runs": {work: runs}})
    assert after["work"] == f"{work} after imports"
    assert after["seconds"][0] == whole["seconds"][0] - 1
    assert not bounds_of(after)
    return dict(whole)


def unmeasured() -> dict[str, list[Any]]:
    return {entry.title: [] for entry in COMMANDS}


def cells(text: str, title: str) -> list[list[str]]:
    """Rows of the table under a title, without its head."""
    part = text.split(f"**{title}**\n\n")[1].split("\n\n")[0]
    found = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in part.splitlines()]
    assert len({len(line) for line in found}) == 1
    return found[2:]


def test_a_ratio_is_taken_within_a_round_and_per_element() -> None:
    # The machine slows down by 10 in the last two rounds: figures of different rounds would give 0.2 to 20.
    assert ratio([2.0, 4.0, 20.0, 20.0], [1.0, 1.0, 10.0, 10.0]) == [2.0, 2.0, 4.0]
    assert ratio([1.0, 1.0, 1.0], [1.0, 2.0, 4.0], scale=8.0) == [4.0, 2.0, 8.0]
    assert spread([5.0, 1.0, 3.0]) == [3.0, 1.0, 5.0]
    for others, ours in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match=r"."):
            ratio(others, ours)


def test_every_candidate_runs_in_every_round_and_in_another_place() -> None:
    order: list[str] = []
    inside: list[str] = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        inside.append("in")
        yield
        inside.append("out")

    def runs(name: str) -> Candidate:
        return Candidate(
            lambda: order.append(name + "".join(inside[-1:])), around if name == "b" else contextlib.nullcontext
        )

    seconds = paired({name: runs(name) for name in "abc"}, rounds=3, sample_s=1e-9)
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(value > 0 for found in seconds.values() for value in found)
    # Two calls of each do not count; then each round begins one further on.
    assert [name[0] for name in order] == [*"aabbcc", *"abc", *"bca", *"cab"]
    assert all(name.endswith("in") for name in order if name[0] == "b")
    assert inside[-1] == "out"
    with pytest.raises(ValueError, match="round"):
        paired({}, rounds=0)


def test_a_short_call_is_repeated_until_the_clock_can_tell() -> None:
    calls = []
    found = paired({"short": Candidate(lambda: calls.append(0))}, rounds=2, sample_s=1e-4)
    assert len(calls) > 10
    assert max(found["short"]) < 1e-4


def test_bounds_are_those_of_the_work() -> None:
    kernel = row(eager=6.0)
    assert shortfall(kernel, "eager") == pytest.approx(0.25)
    assert shortfall(kernel, "copy_") == pytest.approx(0.25)
    assert shortfall(row(eager=8.0), "eager") == 0
    assert shortfall(kernel, "fill_") is None
    # 1.5 times as long as the limit is allowed, 2 times misses by a quarter.
    assert shortfall(command("convert", [3.0], [2.0]), "limit") == pytest.approx(0)
    assert shortfall(command("convert", [4.0], [2.0]), "limit") == pytest.approx(0.25)
    assert not bounds_of({**kernel, "scaling": True})
    assert not bounds_of(row("bf16.round"))
    assert not bounds_of(command("verify", [4.0], [2.0]))


def test_a_fall_of_more_than_a_fifth_is_a_regression() -> None:
    old = [row(eager=10.0, slow=10.0), row(threads=2, eager=100.0)]
    new = [row(eager=8.01, slow=7.99, other=1.0), row(elements=1 << 12, eager=1.0)]
    found = {change.other: change for change in changes(new, old)}
    assert set(found) == {"eager", "copy_", "fill_", "sha256", "slow"}
    assert [name for name, change in found.items() if change.is_regression] == ["slow"]
    assert (found["slow"].now, found["slow"].before) == (7.99, 10.0)
    assert not list(changes(new, []))


def test_a_command_is_compared_as_a_kernel_is() -> None:
    old, new = command("convert", [2.0], [2.0]), command("convert", [3.0], [2.0])
    assert [change.is_regression for change in changes([new], [old])] == [True]


def test_the_terminal_shows_a_regression_in_red_and_in_words() -> None:
    now = document(row(eager=9.0, slow=5.0))
    old = [row(eager=10.0, slow=10.0)]
    text = table(now, [], old, colour=True)
    red = [line for line in text.splitlines() if line.startswith(RED)]
    assert len(red) == 1
    assert red[0].endswith(PLAIN)
    assert re.search(r"slow .* 5\.00 \[4\.50, 5\.50\] .* 10\.00 slower", red[0])
    plain = table(now, [], old, colour=False)
    assert RED not in plain
    assert "10.00 slower" in plain
    eager = next(line for line in plain.splitlines() if "eager" in line)
    assert re.search(r"117\s+0\.47\s+9\.00 \[8\.50, 9\.50\]\s+held\s+10\.00$", eager)
    assert re.search(r"limit: copy_ .* aim missed by 25 %", plain)
    own = plain.splitlines()[1]
    assert re.search(r"HiF4 there and back\s+1\s+1,049\s+4\.19$", own)


def test_the_page_says_what_is_held_and_by_how_much_it_is_missed() -> None:
    text = tables(document(row(), row(threads=2, eager=6.0), row("hif8.qdq", eager=4.0, fill_=0.8)), unmeasured())
    eager, copy, *others = cells(text, "What was promised")
    assert eager[1] == "1 of 3"
    assert eager[2] == (
        "HiF4 there and back, 2 threads: 6.00 times, misses it by 25 %; "
        "HiF8 there and back, 1 thread: 4.00 times, misses it by 50 % (`fill_` of the result alone: 5.0 times)"
    )
    assert copy[0].startswith("aim")
    assert copy[1] == "0 of 3"
    assert [line[1] for line in others] == ["not measured"] * 5
    assert "Not measured (`benchmarks/conversion.py`)" in text
    assert "3 % of the cores' time" in text


def test_the_page_shows_commands_with_what_they_may_take() -> None:
    rows = unmeasured()
    rows["Commands"] = [command("inspect", [11.0, 12.0, 13.0], [10.0] * 3), command("verify", [9.0], [3.0])]
    text = tables(document(row()), rows)
    inspect, verify = cells(text, "Commands")
    assert inspect == [
        "hfq inspect of 5.6 GB",
        "2",
        "12.00",
        "10.00",
        "1.200 [1.100, 1.300]",
        "1.15, bound missed by 4 %",
        "1.30",
    ]
    assert verify == ["hfq verify of 5.6 GB", "2", "9.00", "3.00", "3.000 [3.000, 3.000]", "", "0.90"]
    promised = {line[0]: line[1:] for line in cells(text, "What was promised")}
    assert promised["`hfq inspect`: at most 1.15 times the limit"] == [
        "0 of 1", "hfq inspect of 5.6 GB, 2 threads: 1.20 times as long, misses it by 4 %",
    ]  # fmt: skip


def test_peers_stand_side_by_side_for_each_number_of_threads() -> None:
    one, two = row(slow=4.0), row(threads=2, slow=9.0)
    one["against"]["slow"]["elements"] = two["against"]["slow"]["elements"] = 1 << 10
    text = tables(document(one, two), unmeasured())
    assert cells(text, "Kernels against peers") == [
        ["HiF4 there and back", "slow *", "0.26", "4.00 [3.50, 4.50]", "0.11", "9.00 [8.50, 9.50]"]
    ]
    assert cells(text, "The peers") == [
        ["slow", "slow 1.2", "`f(x)`", "all"], ["gone", "not measured", "No module named 'gone'", ""],
    ]  # fmt: skip
    assert "first 1,024" in table(document(one), [], [], colour=False)


def test_sizes_stand_in_a_line_per_work() -> None:
    sizes = (row(elements=1 << 12, eager=2.0), row(elements=1 << 16, eager=3.0))
    text = tables(document(row(), sizes=sizes), unmeasured())
    assert cells(text, "Tensor size") == [["HiF4 there and back", "1", "4.1 (2.0)", "66 (3.0)"]]


def test_calibration_is_compared_repetition_by_repetition() -> None:
    found = calibration_rows(
        {
            "tokens": 4096, "keep_inputs": 64, "machine": {"threads": 2}, "plain": {"seconds": [1.0, 10.0, 1.0]},
            "statistics": {"seconds": [1.1, 12.5, 1.25]}, "with_kept_rows": {"seconds": [2.0, 20.0, 2.0]},
        }
    )  # fmt: skip
    assert [key_of(entry) for entry in found] == [("statistics", None, 2), ("with_kept_rows", None, 2)]
    assert found[0]["against"]["plain"]["ratio"] == pytest.approx([0.8, 0.8, 1 / 1.1])
    assert shortfall(found[0], "plain") == pytest.approx(0.12)
    assert shortfall(found[1], "plain") is None


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replace_figures(page, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="lacks"):
        replace_figures("no marks", "new")


def test_figures_of_a_busy_machine_come_with_a_warning() -> None:
    quiet, busy = document(row()), document(row())
    busy["machine"]["other_processes"] = 0.5
    for text in (tables(quiet, unmeasured()), table(quiet, [], [], colour=False)):
        assert "was busy" not in text
    for text in (tables(busy, unmeasured()), table(busy, [], [], colour=False)):
        assert "50 % of the cores' time. **The machine was busy" in text


def test_the_page_shows_the_figures_of_the_files() -> None:
    results = ROOT / "benchmarks" / "results"
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    if not (results / "bench.json").exists():
        assert page == replace_figures(page, NOTHING)
        return
    rows = {}
    for entry in COMMANDS:
        path = results / entry.results
        rows[entry.title] = entry.rows(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []
    found = json.loads((results / "bench.json").read_text(encoding="utf-8"))
    assert page == replace_figures(page, tables(found, rows))
    assert {entry["work"] for entry in found["rows"]} == set(found["works"])
