"""Selections in deltas: what is stored of them, analyses that do not fit, forgeries, and what a registry reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from made import forge, write_calibration
from synthetic import write_checkpoint
from test_recipe import recipe
from test_selection import DEEP, DEPTH, REST, ROLES, SITES, TOP, Change, converted, edited, kept_blocks, selecting

import hfq
from hfq.cli import run
from hfq.convert.analyze import analyze
from hfq.convert.dry_run import dry_run
from hfq.convert.journal import Journal
from hfq.convert.progress import Silent
from hfq.convert.recipe import load_recipe
from hfq.registry.folder import read_delta_folder
from hfq.schema.documents import read_document
from hfq.schema.errors import (
    AnalysisBaseError,
    HfqError,
    InconsistentDeltaError,
    MalformedFileError,
    MissingAnalysisError,
    RecipeError,
    ResumeMismatchError,
    SchemaViolationError,
    WrongIdError,
    WrongRoleError,
)


class Notes(Silent):
    """A progress that remembers its notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts of six blocks."""
    return Path(write_checkpoint(tmp_path_factory.mktemp("base") / "wan", DEEP, "original-2.2"))


@pytest.fixture(scope="module")
def deep_calibration(deep_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with hfq.open_checkpoint(deep_base) as checkpoint:
        return write_calibration(tmp_path_factory.mktemp("calibration") / "deep", checkpoint)


@pytest.fixture(scope="module")
def deep_analysis(deep_base: Path, deep_calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real analysis of it, without errors of whole blocks."""
    out = tmp_path_factory.mktemp("analysis") / "deep"
    with hfq.open_checkpoint(deep_base) as checkpoint:
        analyze(checkpoint, deep_calibration, out=out, model_errors=False)
    return out


@pytest.fixture(scope="module")
def top_delta(deep_base: Path, deep_analysis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of each expert kept by score, one by rule."""
    out = tmp_path_factory.mktemp("delta") / "top"
    rules = (TOP, {"select": "random", "k": 4, "seed": 3, "to": "quantize", "expert": "low_noise"})
    converted(deep_base, selecting(*rules), out, analysis=deep_analysis).close()
    return out


def test_a_delta_stores_what_decided(top_delta: Path, deep_base: Path, deep_analysis: Path) -> None:
    analysis = read_document(deep_analysis / "analysis.json", "analysis")
    document = json.loads((top_delta / "ptq_state.json").read_bytes())
    stored = document["selection"]
    assert stored["analysis"]["id"] == analysis["id"]
    assert stored["analysis"]["calibration"] == analysis["calibration"]["id"]
    assert stored["analysis"]["prompts"] == analysis["calibration"]["prompts"] == ["1" * 64]
    for role in ROLES:
        scores = analysis["experts"][role]["scores"]["weight_nmse"]
        assert stored["analysis"]["scores"][role] == {"weight_nmse": [scores[f"blocks.{n}"] for n in range(DEPTH)]}
        best = sorted(int(name[7:]) for name in sorted(scores, key=lambda name: -scores[name])[:2])
        assert stored["experts"][role][0] == {
            "rule": 0, "select": "top-k", "score": "weight_nmse", "k": 2, "blocks": best,
        }  # fmt: skip
        for block in best:
            reason = f"top-2 by weight_nmse: block {block} ({scores[f'blocks.{block}']:.4g})"
            entry = {"route": "keep", "rule": 0, "reason": reason}
            assert document["sites"][role][f"blocks.{block}.cross_attn.o"] == entry
        with hfq.load_delta(top_delta) as delta:
            assert kept_blocks(delta.routes[role]) == set(best)
    assert [entry["rule"] for entry in stored["experts"]["low_noise"]] == [0, 1]
    assert len(stored["experts"]["high_noise"]) == 1
    with hfq.open_checkpoint(deep_base) as checkpoint:
        assert hfq.verify(top_delta, checkpoint).ok


def test_the_file_and_the_folder_are_one_analysis(deep_base: Path, deep_analysis: Path, tmp_path: Path) -> None:
    ids = set()
    for name, analysis in (("a", deep_analysis), ("b", deep_analysis / "analysis.json")):
        with converted(deep_base, selecting(TOP), tmp_path / name, analysis=analysis) as delta:
            ids.add(delta.id)
    assert len(ids) == 1


def test_the_registry_reads_the_kept_sites(top_delta: Path) -> None:
    facts = read_delta_folder(top_delta)
    document = json.loads((top_delta / "ptq_state.json").read_bytes())
    outside = sum(not name.startswith("blocks.") for name in SITES)
    assert outside == 6
    assert len(facts.kept) == 2 * 2 * 10
    assert facts.quantized == 2 * (len(SITES) - 20)
    for kept in facts.kept:
        assert kept.reason == document["sites"][kept.expert][kept.site]["reason"]
        assert kept.reason.startswith("top-2 by weight_nmse: block ")


def test_scores_are_missing_before_any_work(deep_base: Path, deep_analysis: Path, tmp_path: Path) -> None:
    def refused(error: type[HfqError], words: str, rule: dict[str, Any], **options: Any) -> None:
        with hfq.open_checkpoint(deep_base) as checkpoint:
            # A scan would be work.
            for expert in checkpoint.experts.values():
                expert.scan = None  # type: ignore[method-assign, assignment]
            with pytest.raises(error, match=words):
                hfq.quantize(checkpoint, selecting(rule), out=tmp_path / "out", **options)

    refused(MissingAnalysisError, "--analysis ANALYSIS", TOP)
    known = "expected act_channel_ratio, .*weight_nmse, found wait_nmse"
    refused(RecipeError, known, {**TOP, "score": "wait_nmse"}, analysis=deep_analysis)
    skipped = "errors of whole blocks are missing: not asked for"
    refused(RecipeError, skipped, {**TOP, "score": "propagated"}, analysis=deep_analysis)

    def drop(document: dict[str, Any]) -> None:
        del document["experts"]["low_noise"], document["base"]["experts"]["low_noise"]

    one = edited(deep_analysis, tmp_path / "one.json", drop)
    refused(MissingAnalysisError, "does not have this expert.*without --role", TOP, analysis=one)

    def shorten(document: dict[str, Any]) -> None:
        del document["experts"]["low_noise"]["scores"]["weight_nmse"]["blocks.5"]

    short = edited(deep_analysis, tmp_path / "short.json", shorten)
    refused(AnalysisBaseError, "expected 6 blocks, found 5", TOP, analysis=short)

    def gap(document: dict[str, Any]) -> None:
        scores = document["experts"]["low_noise"]["scores"]["weight_nmse"]
        scores["blocks.7"] = scores.pop("blocks.5")

    hole = edited(deep_analysis, tmp_path / "gap.json", gap)
    refused(MalformedFileError, "not numbered from 0", TOP, analysis=hole)
    rootless = edited(
        deep_analysis, tmp_path / "rootless.json", lambda document: document["base"]["experts"].pop("low_noise")
    )
    refused(MalformedFileError, "expected high_noise, found high_noise, low_noise", TOP, analysis=rootless)
    changed = json.loads((deep_analysis / "analysis.json").read_bytes())
    changed["experts"]["low_noise"]["scores"]["weight_nmse"]["blocks.5"] += 1
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    refused(WrongIdError, "changed", TOP, analysis=tmp_path / "changed.json")
    left = ["changed.json", "gap.json", "one.json", "rootless.json", "short.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def with_model(document: dict[str, Any]) -> None:
    """Errors of blocks as an analysis measures them: two blocks stand out, which of the others is third is open."""
    ranks = [[1, 1], [3, 5], [3, 6], [2, 2], [3, 6], [4, 6]]
    values = [9e-2, 3e-3, 2e-3, 5e-2, 1e-3, 9e-4]
    for expert in document["experts"].values():
        names = ("isolated", "isolated_contribution", "propagated")
        expert["model"] = {
            "calls": [{"step": 0, "t": 999.0, "branch": "cond", "bin": 0, "prompt": "1" * 64, "movement": 0.1}],
            "sample": {"pairs": 12, "weak": []},
            "blocks": {
                f"blocks.{n}": {
                    **dict.fromkeys(names, values[n]), "bins": {}, "intervals": dict.fromkeys(names),
                    "ranks": dict.fromkeys(names, ranks[n]),
                }
                for n in range(DEPTH)
            },
            "arms": {},
        }  # fmt: skip
        expert["model_skipped"] = None
        expert["scores"]["propagated"] = {f"blocks.{n}": values[n] for n in range(DEPTH)}


def test_a_delta_stores_a_tie_and_convert_says_it(deep_base: Path, deep_analysis: Path, tmp_path: Path) -> None:
    """In the plan, in the report and in the document, where a reader checks it; a forged tie is refused."""
    analysis = edited(deep_analysis, tmp_path / "a.json", with_model)
    rule, progress = {**TOP, "score": "propagated", "k": 3}, Notes()
    words = "top-3 by propagated cuts through a tie: the analysis cannot tell the chosen 1 from 2, 4, 5"
    with hfq.open_checkpoint(deep_base) as checkpoint:
        planned = dry_run(checkpoint, selecting(rule), None, analysis=analysis, progress=progress)
    assert planned is not None
    assert any(f"warning: high_noise: {words}" in line for line in progress.lines)
    with converted(deep_base, selecting(rule), tmp_path / "delta", analysis=analysis) as delta:
        stored = delta.document["selection"]
    assert stored["experts"]["low_noise"][0]["tied"] == [1, 2, 4, 5]
    assert stored["analysis"]["ranks"]["low_noise"]["propagated"][3] == [2, 2]
    report = json.loads((tmp_path / "delta" / "report.json").read_bytes())
    assert any(words in line for line in report["warnings"])
    assert run(["verify", str(tmp_path / "delta"), "--base", str(deep_base)]) == 0
    forged = forge(
        tmp_path / "delta",
        tmp_path / "forged",
        lambda d: d["selection"]["experts"]["low_noise"][0].update(tied=[]),
    )
    with pytest.raises(InconsistentDeltaError, match="selection"), hfq.open_checkpoint(deep_base) as checkpoint:
        hfq.verify(forged, checkpoint)


def test_a_negative_zero_is_zero_in_every_reason(deep_base: Path, deep_analysis: Path, tmp_path: Path) -> None:
    def flatten(document: dict[str, Any]) -> None:
        for expert in document["experts"].values():
            expert["scores"]["weight_nmse"] = {f"blocks.{block}": -0.0 for block in range(DEPTH)}

    flat = edited(deep_analysis, tmp_path / "flat.json", flatten)
    assert "-0.0" in flat.read_text()
    with converted(deep_base, selecting(TOP), tmp_path / "delta", analysis=flat) as delta:
        assert delta.routes["low_noise"]["blocks.1.ffn.0"].reason == "top-2 by weight_nmse: block 1 (0)"


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (lambda roots: roots["low_noise"].update(bf16_root="0" * 64), AnalysisBaseError),
        (lambda roots: roots.update(low_noise=roots["high_noise"], high_noise=roots["low_noise"]), WrongRoleError),
    ],
    ids=["another base", "exchanged experts"],
)
def test_an_analysis_of_another_base_is_refused_and_leaves_nothing(
    edit: Change, error: type[HfqError], deep_base: Path, deep_analysis: Path, deep_calibration: Path, tmp_path: Path
) -> None:
    strange = edited(deep_analysis, tmp_path / "a.json", lambda document: edit(document["base"]["experts"]))
    with pytest.raises(error, match="the base"):
        converted(deep_base, selecting(TOP), tmp_path / "delta", analysis=strange)
    # Where a root is known without reading the base, no weight is read.
    smooth = selecting(TOP, stage=[{"kind": "smooth", "statistic": "max"}])
    with hfq.open_checkpoint(deep_base) as checkpoint, pytest.raises(error, match="deep"):
        dry_run(checkpoint, smooth, deep_calibration, analysis=strange)
    with hfq.open_checkpoint(deep_base) as checkpoint:
        checkpoint.experts["low_noise"].identity()
        with pytest.raises(error):
            dry_run(checkpoint, selecting(TOP), analysis=strange)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    # An expert whose scores decide nothing may be another one.
    if error is AnalysisBaseError:
        rule = {**TOP, "expert": "high_noise"}
        converted(deep_base, selecting(rule), tmp_path / "delta", analysis=strange).close()


def test_an_unneeded_analysis_and_another_format_are_noted(
    deep_base: Path, deep_analysis: Path, tmp_path: Path
) -> None:
    notes = Notes()
    first = selecting({"select": "first+last", "first": 1, "last": 1, "to": "keep"})
    with converted(deep_base, first, tmp_path / "a", analysis=deep_analysis, progress=notes) as delta:
        assert delta.document["selection"]["analysis"] is None
        assert delta.document["selection"]["experts"]["low_noise"] == [
            {"rule": 0, "select": "first+last", "first": 1, "last": 1, "blocks": [0, 5]}
        ]
    assert notes.lines == ["the recipe mine needs no analysis; the given one is ignored"]
    notes.lines.clear()
    with hfq.open_checkpoint(deep_base) as checkpoint:
        dry_run(checkpoint, load_recipe(recipe(route=[TOP, REST])), None, notes, analysis=deep_analysis)
    assert notes.lines == ["warning: the analysis measured hif8; the recipe mine has hif4 weights"]


def test_another_analysis_cannot_resume(
    deep_base: Path, deep_analysis: Path, top_delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = selecting(*json.loads((top_delta / "ptq_state.json").read_bytes())["recipe"]["route"][:-1])
    add, done = Journal.add, []

    def failing(self: Journal, entry: Any, state: Any) -> None:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(entry)
        add(self, entry, state)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", failing)
        with pytest.raises(KeyboardInterrupt):
            converted(deep_base, made, tmp_path / "delta", analysis=deep_analysis)

    def more_prompts(document: dict[str, Any]) -> None:
        document["calibration"]["prompts"].append("5" * 64)

    # The same scores, hence the same choice, from another analysis: another delta all the same.
    other = edited(deep_analysis, tmp_path / "other.json", more_prompts)
    with pytest.raises(ResumeMismatchError, match=r"selection\.analysis"):
        converted(deep_base, made, tmp_path / "delta", analysis=other, resume=True)
    converted(deep_base, made, tmp_path / "delta", analysis=deep_analysis, resume=True).close()
    assert (tmp_path / "delta/ptq_state.json").read_bytes() == (top_delta / "ptq_state.json").read_bytes()


def test_a_recipe_that_needs_an_analysis_is_exit_2(
    deep_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "mine.json"
    made.write_text(json.dumps(selecting(TOP).document))
    arguments = ["convert", str(deep_base), "--recipe", str(made), "-o", str(tmp_path / "out"), "--json"]
    assert run(arguments) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "missing-analysis"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


# --- forged deltas ---------------------------------------------------------------------------------------------------


def exchange(document: dict[str, Any]) -> None:
    """Claim another block than the scores choose, with the routes to match."""
    entry = document["selection"]["experts"]["high_noise"][0]
    sites = document["sites"]["high_noise"]
    kept, other = entry["blocks"][0], min(set(range(DEPTH)) - set(entry["blocks"]))
    entry["blocks"] = sorted({other, *entry["blocks"][1:]})
    for name in SITES:
        if name.startswith(f"blocks.{kept}."):
            twin = name.replace(f"blocks.{kept}.", f"blocks.{other}.")
            sites[name], sites[twin] = sites[twin], sites[name]


def raise_score(document: dict[str, Any]) -> None:
    values = document["selection"]["analysis"]["scores"]["low_noise"]["weight_nmse"]
    chosen = document["selection"]["experts"]["low_noise"][0]["blocks"]
    values[min(set(range(DEPTH)) - set(chosen))] = 2 * max(values)


def scores_of(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["selection"]["analysis"]["scores"]
    return found


@pytest.mark.parametrize(
    "edit",
    [
        exchange,
        raise_score,
        lambda d: d.update(selection=None),
        lambda d: d["selection"].update(analysis=None),
        lambda d: d["selection"]["experts"].pop("low_noise"),
        lambda d: d["selection"]["experts"]["low_noise"].pop(),
        lambda d: d["selection"]["experts"]["low_noise"].reverse(),
        lambda d: d["selection"]["experts"]["low_noise"][1].update(seed=4),
        lambda d: d["selection"]["experts"]["low_noise"][1].update(rule=2),
        lambda d: scores_of(d)["high_noise"]["weight_nmse"].pop(),
        lambda d: scores_of(d)["high_noise"]["weight_nmse"].__setitem__(0, math.nextafter(1e9, 0)),
        lambda d: scores_of(d)["high_noise"].update(act_max=[1.0] * DEPTH),
        lambda d: scores_of(d).pop("high_noise"),
        lambda d: d["recipe"]["route"][0].update(k=3),
        lambda d: d["recipe"].update(max_kept_blocks=1),
    ],
)  # fmt: skip
def test_a_forged_selection(edit: Change, top_delta: Path, tmp_path: Path) -> None:
    with pytest.raises(InconsistentDeltaError):
        hfq.load_delta(forge(top_delta, tmp_path / "forged", edit))


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.pop("selection"),
        lambda d: d["selection"].pop("analysis"),
        lambda d: d["selection"].update(note=""),
        lambda d: scores_of(d)["high_noise"]["weight_nmse"].__setitem__(0, "1"),
        lambda d: d["selection"]["analysis"].update(prompts=[]),
        lambda d: d["selection"]["experts"]["low_noise"][0].update(blocks=[-1]),
        lambda d: d["selection"]["experts"]["low_noise"][0].update(select="blocks"),
    ],
)
def test_a_malformed_selection(edit: Change, top_delta: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaViolationError):
        hfq.load_delta(forge(top_delta, tmp_path / "forged", edit))


def test_the_id_covers_the_selection(top_delta: Path, tmp_path: Path) -> None:
    path = forge(top_delta, tmp_path / "forged", lambda document: None) / "ptq_state.json"
    document = json.loads(path.read_bytes())
    document["selection"]["analysis"]["prompts"] = ["3" * 64]
    path.write_text(json.dumps(document))
    with pytest.raises(WrongIdError):
        hfq.load_delta(path.parent)


def test_one_calibration_has_one_list_of_prompts(
    deep_base: Path, deep_analysis: Path, deep_calibration: Path, tmp_path: Path
) -> None:
    made = selecting(TOP, stage=[{"kind": "smooth", "statistic": "max", "match": ["blocks.*.ffn.2"]}])
    converted(deep_base, made, tmp_path / "a", deep_calibration, analysis=deep_analysis).close()
    edit: Change = lambda d: d["selection"]["analysis"].update(prompts=["3" * 64])  # noqa: E731
    with pytest.raises(InconsistentDeltaError, match="other prompts of the same calibration"):
        hfq.load_delta(forge(tmp_path / "a", tmp_path / "forged", edit))
