"""Where a delta comes from, in three renderings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from factory import digest, make_delta

from hfq.registry import Lineage, Registry, render_mermaid, render_text


@pytest.fixture
def lineage(registry: Registry, tmp_path: Path) -> Lineage:
    delta_id = ""
    for number, how in enumerate(
        [
            {"percentile": 99.0},
            {"base": "wan21", "percentile": 99.5},
            {"percentile": None, "prompts": None, "name": "plain-max"},
            {"percentile": 99.9},
        ]
    ):
        make_delta(tmp_path / str(number), seed=str(number), **how)
        delta_id = registry.register(tmp_path / str(number))
    registry.set_alias("wan22@prod", delta_id)
    registry.set_alias("wan22@fallback", registry.list()[0][3].id)
    return registry.lineage(delta_id)


def test_siblings_share_a_base_or_a_calibration(lineage: Lineage, registry: Registry) -> None:
    _, plain, _other_base, low = registry.list()[0]
    assert [(sibling.id, sibling.same_base, sibling.same_calibration) for sibling in lineage.siblings] == [
        (plain.id, True, False),
        (low.id, True, True),
    ]
    assert lineage.siblings_total == 2
    assert lineage.siblings[1].aliases == ("wan22@fallback",)


def test_edges_lead_to_base_recipe_and_calibration(lineage: Lineage) -> None:
    delta = lineage.delta
    assert delta.calibration is not None
    assert {(edge.relation, edge.parent_kind, edge.parent_id) for edge in lineage.edges} == {
        ("bound-to", "base", delta.base.id),
        ("made-by", "recipe", delta.recipe.id),
        ("calibrated-by", "calibration", delta.calibration.id),
    }
    assert {edge.child_id for edge in lineage.edges} == {delta.id}


def test_text_names_roots_files_parameters_and_siblings(lineage: Lineage) -> None:
    text = render_text(lineage)
    for expected in (
        lineage.delta.id,
        "wan22@prod",
        digest("wan22 low_noise bf16"),
        digest("low_noise exact wan22"),
        "low_noise_model/m.safetensors",
        "57000000000 bytes",
        "layout wan22",
        "3 prompts",
        "smooth percentile 99.9 alpha 0.5",
        "weights hif4/ref, activations hif4/ref",
        "4 quantized, 4 kept",
        "high_noise: 2 kept, rule 0: boundary",
        "plain-max  same base\n",
        "same base and calibration  (wan22@fallback)",
    ):
        assert expected in text


def test_json_holds_every_digit(lineage: Lineage) -> None:
    document = json.loads(json.dumps(lineage.to_json()))
    assert document["delta"]["base"]["experts"][0]["bf16_root"] == digest("wan22 high_noise bf16")
    assert document["delta"]["base"]["experts"][0]["witnesses"][0]["sha256"] == digest("high_noise file wan22")
    assert document["delta"]["recipe"]["document"]["stage"][0]["percentile"] == 99.9
    assert {edge["parent"]["kind"] for edge in document["edges"]} == {"base", "recipe", "calibration"}
    assert [sibling["same_base"] for sibling in document["siblings"]] == [True, True]


# One statement of the Mermaid that we write: a node with a quoted label, or an arrow between two nodes.
_NODE = re.compile(r'  (\w+)(?:\["[^"]*"\]|\(\["[^"]*"\]\))')
_ARROW = re.compile(r'  (\w+) (?:-->|-\.->)(?:\|"[^"]*"\|)? (\w+)')


def read_mermaid(text: str) -> tuple[set[str], set[tuple[str, str]]]:
    """Node names and arrows; fails on any line that is neither."""
    header, *lines = text.split("\n")
    assert header == "flowchart LR"
    nodes, arrows = set(), set()
    for line in lines:
        if node := _NODE.fullmatch(line):
            nodes.add(node[1])
        else:
            arrow = _ARROW.fullmatch(line)
            assert arrow, line
            arrows.add((arrow[1], arrow[2]))
    assert {end for arrow in arrows for end in arrow} <= nodes
    return nodes, arrows


def test_mermaid_leads_from_the_files_to_the_delta(lineage: Lineage) -> None:
    nodes, arrows = read_mermaid(render_mermaid(lineage))
    assert {"delta", "base", "recipe", "calibration", "expert_high_noise", "file_low_noise_0", "alias_0"} <= nodes
    assert {
        ("file_high_noise_0", "expert_high_noise"), ("expert_high_noise", "base"), ("base", "delta"),
        ("recipe", "delta"), ("calibration", "delta"), ("alias_0", "delta"),
    } <= arrows  # fmt: skip


def test_mermaid_labels_cannot_become_markup(registry: Registry, tmp_path: Path) -> None:
    hostile = 'high_noise"]; click base "javascript:alert(1)" %% <script>`#quot;\n\x1b[31m--> x'
    delta_id = make_delta(tmp_path / "delta", file_name=hostile, model_type='"]<br>&\x9b')
    registry.register(tmp_path / "delta")
    text = render_mermaid(registry.lineage(delta_id))
    nodes, _ = read_mermaid(text)
    assert len(nodes) == 8
    assert "script>" not in text
    assert all(character.isprintable() for character in text.replace("\n", ""))
