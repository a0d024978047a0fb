"""docs/policy.md: the policy that it shows is one, and it knows the default policy's workloads."""

from __future__ import annotations

from pathlib import Path

from hfq.registry.scores.policy import load_policy, parse_policy

PAGE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text(encoding="utf-8")


def test_the_policy_of_the_page_is_one() -> None:
    policy = parse_policy(PAGE.split("```toml\n")[1].split("```")[0].encode(), "docs/policy.md")
    assert [workload.name for workload in policy.workloads] == ["sketches"]
    assert f"{policy.workload('sketches').gates[0].min_retained:g} needed (ours: an example)" in PAGE


def test_the_page_names_the_workloads_and_the_id_of_the_default_policy() -> None:
    policy = load_policy()
    assert [workload.name for workload in policy.workloads if workload.name not in PAGE] == []
    assert f"policy:{policy.id[:12]}" in PAGE
