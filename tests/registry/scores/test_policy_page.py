"""docs/policy.md: the policy and the files that it shows are such, and it knows the default policy and all ranges."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfq.registry.scores.detect import read_score_file
from hfq.registry.scores.opens2v import NATURAL
from hfq.registry.scores.policy import load_policy, parse_policy
from hfq.registry.scores.ranges import LIMITS
from hfq.registry.scores.values import prompt_hash

PAGE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text(encoding="utf-8")


def test_the_policy_of_the_page_is_one() -> None:
    policy = parse_policy(PAGE.split("```toml\n")[1].split("```")[0].encode(), "docs/policy.md")
    assert [workload.name for workload in policy.workloads] == ["sketches"]
    assert f"{policy.workload('sketches').gates[0].min_retained:g} needed (ours: an example)" in PAGE


def test_the_page_names_the_workloads_and_the_id_of_the_default_policy() -> None:
    policy = load_policy()
    assert [workload.name for workload in policy.workloads if workload.name not in PAGE] == []
    assert f"policy:{policy.id[:12]}" in PAGE


def test_the_files_of_the_page_are_read(tmp_path: Path) -> None:
    texts = [part.split("```")[0] for part in PAGE.split("```json\n")[1:]]
    assert len(texts) == 5
    files = [tmp_path / f"{index}.json" for index in range(5)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    subject, imaging = read_score_file(files[0], files[1], prompt_set="vbench")
    assert (subject.recomputed, imaging.recomputed) == (pytest.approx(0.95), pytest.approx(0.61))
    assert {(one.metric_suite, one.prompt_set, one.stated_agrees) for one in (subject, imaging)} == {
        ("vbench", "vbench", True)
    }
    assert {video.category for video in subject.videos} == {"shapes"}
    (gme,), (natural,) = (read_score_file(file, files[4]) for file in files[2:4])
    assert (gme.metric, natural.metric, gme.prompt_set) == ("gme_score", NATURAL, "opens2v-eval")
    assert gme.videos[0].prompt_sha256 == prompt_hash("a red toy on a table")


def test_the_page_has_the_range_of_every_metric() -> None:
    table = PAGE.split("| --- | --- | --- |\n")[1].split("\n\n")[0]
    for suite, metrics in (("VBench", LIMITS["vbench"]), ("OpenS2V-Eval", LIMITS["opens2v"])):
        for metric, limits in metrics.items():
            if suite == "OpenS2V-Eval" or limits != (0.0, 1.0):
                (row,) = [line for line in table.splitlines() if metric in line]
                assert row.startswith(f"| {suite} ")
                assert all(f"{bound:g}" in row for bound in limits if bound is not None)
