"""`db check` of clips and scores: rows are damaged behind the registry's back, and the finding names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factory import digest, make_delta
from scored import register_delta, score
from test_registry_check import change, codes

from hfq.cli import run
from hfq.registry import Registry
from hfq.registry.clips.clip_document import ClipDocument, Variant
from hfq.registry.clips.evidence import Evidence
from hfq.registry.clips.signature import SIGNATURE_BYTES, Signature
from hfq.registry.clips.store import record_clip
from hfq.registry.clips.stream import StreamFacts
from hfq.registry.scores.values import Measurement, ReviewOutcome


def record(registry: Registry, who: Variant, *, name: str = "clip", signed: bool = False) -> None:
    """A clip of a delta as `hfq generate` records it, without a file."""
    roots = {expert.role: expert.bf16_root for expert in registry.get(who.id).base.experts}
    document = ClipDocument(who.id, roots, digest("a prompt"), None, 3, {"steps": 40})
    evidence = Evidence(
        digest(name), 1000, "mp4", StreamFacts(digest(f"{name} frames"), 9, 24, 24), Signature(bytes(SIGNATURE_BYTES))
    )
    with registry.database.writing() as session:
        record_clip(
            session, evidence, document, name=f"{name}.mp4", manifest=b"manifest" if signed else None, signed=signed
        )


@pytest.fixture
def delta(registry: Registry, tmp_path: Path) -> Variant:
    """A delta with two clips, two imports of one metric and one of another, a cost and a review; its base is scored."""
    who = register_delta(registry, tmp_path / "delta")
    record(registry, who)
    record(registry, who, name="signed", signed=True)
    score(registry, who, [0.9, 0.8, 0.7])
    score(registry, who, [0.9, 0.8, 0.6])
    score(registry, who, [0.5], name="color")
    score(registry, registry.variant(who.id, of_base=True), [0.95, 0.9, 0.9])
    registry.add_measurement(who, Measurement("latency", 41.2, "H200", "real", {}))
    registry.add_reviews(who, [ReviewOutcome("video 0", True)], digest("review"))
    return who


def test_sound_clips_and_scores_have_no_findings(registry: Registry, delta: Variant) -> None:
    assert codes(registry) == []


OTHER = "'" + "ab" * 32 + "'"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (f"UPDATE clip SET document = json_set(document, '$.delta', {OTHER}) WHERE signed", {("clip-document", 3)}),
        ("UPDATE clip SET document = json_set(document, '$.seed', 4) WHERE signed", {("clip-document", 3)}),
        ("UPDATE clip SET scene = 'another' WHERE signed", {("clip-document", 3)}),
        ("UPDATE clip SET document = json_set(document, '$.seed', 'x') WHERE signed", {("clip-document", 1)}),
        ("UPDATE clip SET document = 'not JSON' WHERE signed", {("clip-document", 1)}),
        ("UPDATE clip SET manifest = NULL WHERE signed", {("clip-manifest", 1)}),
        ("UPDATE clip_signature SET data = x'00ff' WHERE clip_key = 1", {("clip-signature", 1)}),
        ("DELETE FROM clip_signature WHERE clip_key = 1", {("clip-signature", 1)}),
        ("UPDATE score SET scale = 'other' WHERE metric = 'color'", {("score-changed", 3)}),
        ("UPDATE score SET stated = 0.5 WHERE metric = 'color'", {("score-changed", 3)}),
        (f"UPDATE score SET id = {OTHER} WHERE metric = 'color'", {("score-changed", 3)}),
        ("UPDATE score_settings SET document = 'not JSON'", {("score-changed", 3)}),
        ("UPDATE score_settings SET document = json_set(document, '$.steps', 4)", {("score-changed", 3)}),
        ("UPDATE score_video SET stem = 'video 1' WHERE score_key = 1", {("score-changed", 3)}),
        ("UPDATE score SET mean = 0.75 WHERE metric = 'color'", {("score-videos", 1)}),
        ("UPDATE score SET videos = 2 WHERE metric = 'color'", {("score-videos", 1)}),
        (f"UPDATE score SET prompts_sha256 = {OTHER} WHERE metric = 'color'", {("score-videos", 1)}),
        ("UPDATE score_video SET value = 0.1 WHERE score_key = 3", {("score-changed", 3), ("score-videos", 1)}),
        ("DELETE FROM score_video WHERE score_key = 3", {("score-changed", 3), ("score-videos", 1)}),
        ("UPDATE score SET counts = 1", {("score-order", 1)}),
        ("UPDATE score SET counts = 0 WHERE metric = 'color'", {("score-order", 1)}),
        ("UPDATE score_import SET withdrawn_at = imported_at, reason = 'x' WHERE key = 2", {("score-order", 1)}),
        ("UPDATE score_import SET imported_at = '2020-01-01' WHERE key = 1", {("import-changed", 3)}),
        ("UPDATE score_import SET kind = 'cost' WHERE key = 1", {("import-changed", 3)}),
        ("UPDATE measurement SET value = 4.0", {("import-changed", 3)}),
        ("UPDATE measurement SET import_key = 1", {("import-changed", 3)}),
        ("UPDATE review SET accepted = 0", {("import-changed", 3)}),
        (f"UPDATE review SET variant_id = {OTHER}", {("score-import", 1), ("unknown-variant", 0)}),
        ("DELETE FROM score_import_item WHERE import_key = 1", {("import-changed", 3), ("score-import", 1)}),
        (
            f"UPDATE score SET variant_id = {OTHER} WHERE key = 1",
            {("score-changed", 3), ("score-base", 1), ("score-import", 1), ("score-order", 1), ("unknown-variant", 0)},
        ),
        ("UPDATE score SET base_key = NULL WHERE variant_kind = 'base'", {("score-base", 1)}),
        ("UPDATE score SET base_key = NULL WHERE metric = 'color'", {("score-base", 1)}),
        ("INSERT INTO score_video (score_key, position, stem) VALUES (99, 0, 'x')", {("damaged", 1)}),
        ("INSERT INTO clip_signature VALUES (99, x'00')", {("damaged", 1)}),
        (
            f"INSERT INTO edge VALUES ({OTHER}, 'made-by', {OTHER}, 'delta', 'recipe')",
            {("edges", 1)},
        ),
    ],
)
def test_rows_that_are_not_what_was_recorded_are_found(
    registry: Registry, delta: Variant, statement: str, expected: set[tuple[str, int]]
) -> None:
    change(registry, statement)
    assert set(codes(registry)) == expected


def test_a_finding_names_the_row(registry: Registry, delta: Variant) -> None:
    change(
        registry,
        "UPDATE clip SET scene = 'another' WHERE signed",
        "UPDATE score SET mean = 0.75 WHERE metric = 'color'",
    )
    clip, found = registry.check()
    assert clip.where == f"clip {digest('signed')[:12]} of {delta}"
    assert found.where == f"{delta} vbench color"


def test_results_of_variants_that_are_not_registered_are_notes(
    registry: Registry, delta: Variant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = Variant("delta", make_delta(tmp_path / "late", seed="late"))
    base = Variant("base", digest("a base of which nothing is registered"))
    score(registry, late, [0.5])
    registry.add_measurement(late, Measurement("latency", 41.2, "H200", "real", {}))
    registry.add_reviews(base, [ReviewOutcome("video 0", True)], digest("file"))
    notes = [(found.code, found.where, found.what, found.exit_code) for found in registry.check()]
    assert notes == [
        ("unknown-variant", str(base), "not registered; 1 outcomes of it", 0),
        ("unknown-variant", str(late), "not registered; 1 scores, 1 measurements of it", 0),
    ]
    assert run(["db", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    registry.register(tmp_path / "late")
    assert [found.where for found in registry.check()] == [str(base)]
