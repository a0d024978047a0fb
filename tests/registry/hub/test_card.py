"""The model card: what it must say, what the Hub must be able to read, and what free text must not become."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from factory import make_delta, make_document
from pushing import add_report

from hfq.registry.hub import CardFacts, Recorded, Score, card_facts, check_card, render_card
from hfq.registry.scores.values import Measurement, ReviewCounts
from hfq.schema.documents import read_document
from hfq.schema.errors import ModelCardError, UsageError

BASE = "Wan-AI/Wan2.2-T2V-A14B"
FACTS = CardFacts("someone/wan22-tail", (BASE,), "apache-2.0", "text-to-video", "delta-0123456789ab")


@pytest.fixture
def documents(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    make_delta(tmp_path / "delta", kept=3, quantized=2, percentile=99.5, description="masks | for *tails*")
    add_report(tmp_path / "delta")
    return (
        read_document(tmp_path / "delta" / "ptq_state.json", "ptq-state"),
        read_document(tmp_path / "delta" / "report.json", "report"),
    )


def front(card: str) -> dict[str, Any]:
    """The front matter as an independent YAML reader sees it."""
    data = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(data, dict)
    return data


def body(card: str) -> str:
    return card.split("---\n", 2)[2].lstrip("\n")


def test_front_matter_is_what_the_hub_links_by(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    card = render_card(*documents, FACTS)
    assert (
        front(card)
        == dict(check_card(card))
        == {
            "base_model": [BASE],
            "base_model_relation": "quantized",
            "library_name": "hfq",
            "license": "apache-2.0",
            "pipeline_tag": "text-to-video",
            "tags": ["hfq", "ptq-delta", "wan", "hifloat4", "w4a4", "tail-aware-hif4"],
        }
    )


def test_first_line_says_which_base_is_needed(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    first = body(render_card(*documents, replace(FACTS, base_models=(BASE, "a/copy")))).splitlines()[0]
    assert first.startswith(f"> Needs its base model [{BASE}](https://huggingface.co/{BASE}) or [a/copy](")


def test_figures_are_those_of_the_documents(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    document, _ = documents
    card = render_card(*documents, FACTS)
    assert f"| id | `{document['id']}` |" in card
    assert "smooth (activation floor 1e-05, alpha 0.5" in card
    assert "percentile 99.5" in card
    for role, expert in document["base"]["experts"].items():
        assert f"| {role} | `{expert['bf16_root']}` | 5 |" in card
        assert f"| {role} | keep | 3 | 3 | rule 0: boundary |" in card
        assert f"| {role} | quantize | 2 | 2 | rule 1 |" in card
    assert "| high_noise | 9.10e-03 | not measured | `blocks.3.self_attn.q` 1.23e-02 |" in card
    assert "| low_noise | 9.10e-03 | 1.10e-02 | `blocks.3.self_attn.q` 1.23e-02 |" in card
    assert "- few rows\\_kept" in card
    assert "hfq pull someone/wan22-tail --revision delta-0123456789ab -o delta" in card


def test_a_tied_base_is_linked_by_its_commit(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    facts = card_facts(
        documents[0], repo=FACTS.repo, base_model=BASE, license="apache-2.0", base_commits={BASE: commit}
    )
    plain, card = render_card(*documents, replace(facts, base_commits=())), render_card(*documents, facts)
    check_card(card)
    assert body(card).splitlines()[0] == body(plain).splitlines()[0]
    assert f"https://huggingface.co/{BASE}/tree/{commit}" in card
    assert commit not in plain
    for odd in ({BASE: "main"}, {"other/base": commit}):
        with pytest.raises(UsageError, match="commit"):
            card_facts(documents[0], repo=FACTS.repo, base_model=BASE, license="mit", base_commits=odd)


def test_scores_stand_beside_those_of_the_base(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    scores = (
        Score("VBench total", 0.8123, "prompts-64", "vbench 0.1.5", 64, 0.83, "none of 64", "64 are registered"),
        Score("PSNR", 27.9, None, "s", 8),
    )
    costs = (
        Measurement("latency", 41.25, "H200 | x", "simulated", {"steps": 40, "frames": 81}),
        Measurement("peak-memory", 58.2e9, "H200", "real", {}),
    )
    card = render_card(*documents, replace(FACTS, recorded=Recorded(scores, costs, ReviewCounts(9, 9, 7))))
    check_card(card)
    assert "| VBench total | 0.8123 | 0.83 | prompts-64 | vbench 0.1.5 | 64 |" in card
    assert "| PSNR | 27.9 |  | not named | s | 8 |" in card
    assert "Prompts: none of 64." in card
    assert "Clips: 64 are registered." in card
    assert "| latency | 41.25 s/clip | H200 \\| x | simulated | frames 81, steps 40 |" in card
    assert "| peak-memory | 58.20 GB | H200 | real | not recorded |" in card
    assert "People looked at 9 clips and accepted 7 of them." in card


def test_no_scores_and_no_registry_are_two_things(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    unknown, empty = (render_card(*documents, replace(FACTS, recorded=found)) for found in (None, Recorded()))
    assert "This card carries no scores" in unknown
    assert "No scores of generated clips are recorded" in empty


def test_a_base_that_nobody_compared_is_the_uploaders_word(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    facts = replace(FACTS, base_models=(BASE, "a/copy"))
    said = "holds these weights is what the uploader says: its files were not compared"
    assert f"That {BASE} or a/copy {said}" in render_card(*documents, facts)
    assert f"That a/copy {said}" in render_card(*documents, replace(facts, base_commits=((BASE, commit),)))
    assert said not in render_card(*documents, replace(FACTS, base_commits=((BASE, commit),)))


def test_same_documents_same_bytes(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert render_card(*documents, FACTS) == render_card(*documents, FACTS)


def test_without_a_report_the_card_says_so(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    card = render_card(documents[0], None, FACTS)
    check_card(card)
    assert "no `report.json`" in card


@pytest.mark.parametrize("name", ["null", "1e3", "0x10", "yes", "1.5", "2026-01-01"])
def test_a_recipe_with_an_odd_name_stays_a_tag(name: str) -> None:
    card = render_card(make_document(name=name), None, FACTS)
    assert front(card)["tags"][-1] == name
    check_card(card)


HOSTILE = (
    "x | y\n---\nlicense: mit\n---\n# Heading\n<script>alert(1)</script> ![i](https://evil.example/i.png) "
    "[click](javascript:x) https://evil.example www.evil.example `code` \u202e\x1b[31m @everyone"
)


def test_free_text_becomes_words_only() -> None:
    document = make_document(description=HOSTILE, reason=HOSTILE[:200])
    card = render_card(document, None, FACTS)
    check_card(card)
    assert front(card)["license"] == "apache-2.0"
    text = body(card)
    assert not re.search(
        r"(?<!\\)<|(?<!\\)!\[|(?<!\\)\[click|https?://evil|www\.evil|javascript:x\)", text.replace("\\)", "")
    )
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# wan22-tail"]
    assert all(character.isprintable() or character == "\n" for character in text)
    unescaped = re.compile(r"(?<!\\)\|")
    rows = [line for line in text.splitlines() if "rule" not in line and line.startswith("| high_noise | keep")]
    assert [len(unescaped.findall(row)) for row in rows] == [6]


@pytest.mark.parametrize(
    ("kind", "tag"), [("t2v", "text-to-video"), ("i2v", "image-to-video"), ("flf2v", "image-to-video")]
)
def test_pipeline_tag_follows_from_a_model_of_one_task(kind: str, tag: str) -> None:
    facts = card_facts(make_document(model_type=kind), repo="a/b", base_model=BASE, license="mit")
    assert facts.pipeline_tag == tag


def test_pipeline_tag_is_not_guessed() -> None:
    document = make_document(model_type="vace")
    with pytest.raises(UsageError, match="vace"):
        card_facts(document, repo="a/b", base_model=BASE, license="mit")
    chosen = card_facts(document, repo="a/b", base_model=BASE, license="mit", pipeline_tag="video-to-video")
    assert chosen.pipeline_tag == "video-to-video"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('base_model_relation: "quantized"', 'base_model_relation: "banana"'),
        ('base_model_relation: "quantized"', 'base_model_relation: "finetune"'),
        ('base_model_relation: "quantized"\n', ""),
        ('license: "apache-2.0"', "license: 123"),
        ('license: "apache-2.0"', 'license: "apache"'),
        ('license: "apache-2.0"', 'license: "apache-2.0"\nlicense: "mit"'),
        ('license: "apache-2.0"', 'license: "apache-2.0"\nwidget: []'),
        ('pipeline_tag: "text-to-video"', 'pipeline_tag: "not-a-task"'),
        (f'- "{BASE}"\n', ""),
        (f'- "{BASE}"', '- "Wan2.2"'),
        (f'- "{BASE}"', "- 7"),
        (f'- "{BASE}"', '- "other/base"'),
        ('- "wan"', "- 4"),
        ('- "wan"', '- "hfq"'),
        ('- "wan"', '- "Two words"'),
        ("tags:", "tags: ["),
        ("---\n", ""),
        ("> Needs its base model", "> Is based on"),
        ("## Scores", "## Scores\n" + "x" * (1 << 20)),
    ],
)
def test_a_card_that_the_hub_would_misread_is_refused(
    documents: tuple[dict[str, Any], dict[str, Any]], old: str, new: str
) -> None:
    card = render_card(*documents, FACTS)
    assert old in card
    with pytest.raises(ModelCardError):
        check_card(card.replace(old, new, 1))
