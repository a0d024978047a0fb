"""`hfq score`, `compare`, `gate` and `route`, as they are typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))
sys.path.insert(0, str(Path(__file__).parents[1] / "registry" / "scores"))
from factory import make_delta
from score_files import entry, write

import hfq
from hfq.cli import run

Capture = pytest.CaptureFixture[str]
SETTINGS = {"steps": 40, "guidance": 5.0, "shift": 5.0, "frames": 81, "height": 480, "width": 832, "scheduler": "unipc"}
PROMPTS = [f"prompt {number}" for number in range(24)]  # the factory calibrates on the first three
POLICY = """
schema = "hfq.policy/1"
name = "mine"

[[workload]]
name = "drafts"
suitability = "high"
control = "a person looks"
prefer = "cheapest"
escalate_to = "base"
min_videos = 4
min_prompts = 4
min_paired_share = 1.0
held_out = true
required_categories = []
content_class = "optional"
min_category_videos = 2
review_in_use = 0.5

[[workload.gate]]
metric = "subject_consistency"
suites = ["vbench"]
min_retained = 0.9
each_category = false
source = "ours"
"""


def flags(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in ("--setting", f"{name}={value}")]


def typed(capsys: Capture, *arguments: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def text(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFQ_REGISTRY", str(tmp_path / "registry.sqlite"))
    for name in ("good", "bad"):
        make_delta(tmp_path / name, seed=name)
        hfq.open_registry().register(tmp_path / name, aliases=[f"m@{name}"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").write_text(POLICY)
    return tmp_path


def result_file(
    path: Path, value: float, *, dims: Sequence[str] = ("subject_consistency", "motion_smoothness")
) -> Path:
    """VBench's result file; every prompt's value is off by its own amount, the same for all variants."""
    listed = [
        entry(f"{prompt}-0", value + (index % 5) / 1000, **({"image_path": "x"} if "i2v" in path.name else {}))
        for index, prompt in enumerate(PROMPTS)
    ]
    return write(path, {name: [value, listed] for name in dims})


@pytest.fixture
def prompts(home: Path) -> Path:
    """VBench's full_info file, with categories."""
    return write(home / "run_full_info.json", [
        {"prompt_en": prompt, "dimension": ["subject_consistency"], "category": "people" if n % 2 else "places",
         "video_list": [f"/data/videos/{prompt}-0.mp4"]}
        for n, prompt in enumerate(PROMPTS)
    ])  # fmt: skip


def imported(home: Path, prompts: Path, who: str, value: float, *more: str, **changes: Any) -> None:
    path = result_file(home / f"{who.replace('@', '-')}{len(more)}_eval_results.json", value)
    arguments = ["score", "import", who, str(path), "--full-info", str(prompts), "--prompt-set", "vbench"]
    assert run([*arguments, *flags(SETTINGS | changes), *more]) == 0


@pytest.fixture
def scored(home: Path, prompts: Path) -> Path:
    imported(home, prompts, "m@good", 0.9, "--of-base")
    imported(home, prompts, "m@good", 0.897)
    imported(home, prompts, "m@bad", 0.6)
    return home


def test_an_import_says_what_it_read_and_that_it_knew_it(home: Path, prompts: Path, capsys: Capture) -> None:
    file = result_file(home / "run_eval_results.json", 0.9)
    arguments = ["score", "import", "m@good", file, "--full-info", prompts, "--setting", "steps=40"]
    code, found = typed(capsys, *arguments)
    assert (code, found["new"], found["variant"]["kind"]) == (0, 2, "delta")
    score = found["scores"][1]
    assert (score["metric_suite"], score["metric"], score["videos"], score["stated"]) == (
        "vbench", "subject_consistency", 24, 0.9,
    )  # fmt: skip
    assert score["mean"] == pytest.approx(0.9 + sum(n % 5 for n in range(24)) / 24 / 1000)
    assert score["overlap"] == "of 24 prompts 3 are in the calibration and 0 in the selection"
    code, out, err = text(capsys, *arguments)
    assert (code, "already imported, nothing changed" in out, err) == (0, True, "")
    code, shown = typed(capsys, "show", "m@good")
    assert [one["metric"] for one in shown["scores"]] == ["motion_smoothness", "subject_consistency"]
    code, out, _ = text(capsys, "show", "m@good")
    assert "vbench subject_consistency  0.9019  (24 videos, the file says 0.9000)" in out
    assert "of 24 prompts 3 are in the calibration" in out
    (home / "good" / "ptq_state.json").unlink()
    kept = "of 24 prompts 3 are in the calibration and 0 in the selection\n"
    assert kept in text(capsys, "show", "m@good")[1], "what was registered outlives the folder"


def test_the_suite_is_known_by_its_structure(home: Path, capsys: Capture) -> None:
    result_file(home / "one_i2v.json", 0.9, dims=["subject_consistency", "i2v_subject"])
    write(home / "two.json", {"singleobj_1": {"gme_score": 0.5}, "humanobj_2": {"gme_score": 0.7}})
    assert typed(capsys, "score", "import", "m@good", "one_i2v.json")[1]["scores"][0]["metric_suite"] == "vbench-i2v"
    score = typed(capsys, "score", "import", "m@good", "two.json")[1]["scores"][0]
    assert (score["metric_suite"], score["prompt_set"], score["mean"]) == (
        "opens2v",
        "opens2v-eval",
        pytest.approx(0.6),
    )


def test_a_comparison_is_paired_and_by_category(scored: Path, capsys: Capture) -> None:
    code, found = typed(capsys, "compare", "m@bad", "m@good")
    assert (code, found["comparison"], found["settings"]) == (0, True, [])
    metric = next(one for one in found["metrics"] if one["metric"] == "subject_consistency")
    assert metric["overall"]["mean"] == pytest.approx(-0.297)
    # Every pair differs by the same amount: what is left is a collapse of one side that 24 prompts may miss.
    interval, hidden = metric["overall"]["interval"], 1 - 0.025 ** (1 / 24)
    assert interval["low"] == pytest.approx(-0.297 - hidden * 0.703, abs=0.005)
    assert interval["high"] == pytest.approx(-0.297 + hidden * 1.297, abs=0.005)
    assert {name: one["no_interval"] for name, one in metric["by_category"].items()} == {
        "people": "12 prompts, 20 needed", "places": "12 prompts, 20 needed",
    }  # fmt: skip
    assert {name: one["videos"] for name, one in metric["by_category"].items()} == {"people": 12, "places": 12}
    assert metric["overlap"]["A"].startswith("of 24 prompts 3 are in the calibration")
    code, out, _ = text(capsys, "compare", "m@good", f"base:{hfq.open_registry().get('m@good').base.id[:12]}")
    assert code == 0
    assert "0.8989 against 0.9019: -0.0030, 95% interval -0.1" in out
    assert "-0.0030, no interval (12 prompts, 20 needed)  (12 videos, 12 prompts)" in out


def test_other_settings_are_no_comparison_without_anyway(home: Path, prompts: Path, capsys: Capture) -> None:
    imported(home, prompts, "m@good", 0.9)
    imported(home, prompts, "m@bad", 0.8, shift=12.0, seed=3)
    code, out, err = text(capsys, "compare", "m@good", "m@bad")
    assert (code, out) == (2, "")
    assert "shift: 5 against 12" in err
    assert "[settings-differ]" in err
    code, found = typed(capsys, "compare", "m@good", "m@bad", "--anyway")
    assert (code, found["comparison"]) == (0, False)
    assert [(one["name"], one["kind"]) for one in found["settings"]] == [("shift", "decisive"), ("seed", "minor")]
    assert "NOT A COMPARISON" in text(capsys, "compare", "m@good", "m@bad", "--anyway")[1]


def test_a_setting_that_one_side_leaves_out_does_not_pass(home: Path, prompts: Path, capsys: Capture) -> None:
    """Leaving out --setting must not be a way round the check."""
    imported(home, prompts, "m@good", 0.9, "--of-base")
    file = result_file(home / "silent_eval_results.json", 0.9)
    silent = ["score", "import", "m@good", str(file), "--full-info", str(prompts), "--prompt-set", "vbench"]
    assert run(silent) == 0
    order = ["gate", "m@good", "--workload", "drafts", "--policy", "policy.toml"]
    code, found = typed(capsys, *order)
    assert code == 4
    assert len(found["reasons"]) == len(SETTINGS)
    assert "not known to be generated with the base's settings: steps: not recorded against 40" in found["reasons"]
    base = f"base:{found['base']}"
    code, out, err = text(capsys, "compare", "m@good", base)
    assert (code, out) == (2, "")
    assert "does not record a setting that decides scores" in err
    code, found = typed(capsys, "compare", "m@good", base, "--anyway")
    assert (code, found["comparison"]) == (0, False)
    assert "are not known to be generated alike" in text(capsys, "compare", "m@good", base, "--anyway")[1]
    assert run([*silent, "--of-base"]) == 0  # now neither side says: a note
    code, found = typed(capsys, *order)
    assert (code, found["passed"]) == (0, True)
    assert "setting steps: not recorded against not recorded" in found["notes"]
    assert typed(capsys, "compare", "m@good", base)[0] == 0


def test_scores_without_a_prompt_set_are_not_held_against_a_named_one(
    home: Path, prompts: Path, capsys: Capture
) -> None:
    imported(home, prompts, "m@good", 0.9, "--of-base")
    file = result_file(home / "unnamed_eval_results.json", 0.9)
    assert run(["score", "import", "m@good", str(file), "--full-info", str(prompts), *flags(SETTINGS)]) == 0
    order = ["gate", "m@good", "--workload", "drafts", "--policy", "policy.toml"]
    code, found = typed(capsys, *order)
    assert (code, found["reasons"]) == (4, ["subject_consistency of vbench: not measured"])
    assert found["notes"][0] == (
        "vbench subject_consistency (no prompt set named): the base has none on an unnamed prompt set, "
        "only on 'vbench': name it with --prompt-set"
    )
    assert typed(capsys, "route", "--workload", "drafts", "--policy", "policy.toml")[1]["variant"] is None
    code, found = typed(capsys, "compare", "m@good", f"base:{found['base']}")
    assert (code, found["error"]["code"]) == (2, "not-comparable")
    imported(home, prompts, "m@good", 0.4)  # a second set beside the unnamed one, and a bad one
    code, found = typed(capsys, *order)
    assert list(found["overlap"]) == [
        "vbench subject_consistency (no prompt set named)", "vbench subject_consistency on vbench",
    ]  # fmt: skip
    assert code == 4
    assert "vbench subject_consistency on vbench: 0.44" in found["reasons"][0]
    shown = text(capsys, "show", "m@good")[1]
    assert "vbench subject_consistency (no prompt set named)  0.9019" in shown
    assert "vbench subject_consistency on vbench  0.4019" in shown


def test_per_cent_is_no_share(home: Path, prompts: Path, capsys: Capture) -> None:
    """95.5 against the base's 0.97 would keep 98 times what the base has."""
    file = result_file(home / "percent_eval_results.json", 95.5)
    code, found = typed(capsys, "score", "import", "m@good", file, "--full-info", prompts)
    assert (code, found["error"]["code"], found["error"]["expected"]) == (1, "score-range", "0..1")
    assert found["error"]["where"] == f"{file}: subject_consistency"
    assert found["error"]["found"] == "95.5 for its aggregate and 24 more"
    assert "divide the aggregate and every video by 100" in found["error"]["todo"]
    assert typed(capsys, "show", "m@good")[1]["scores"] == []


def test_a_stated_mean_that_its_videos_contradict_is_named(home: Path, capsys: Capture) -> None:
    listed = [entry(f"{prompt}-0", 0.9502) for prompt in PROMPTS]
    write(home / "odd_eval_results.json", {"subject_consistency": [0.99, listed], "color": [0.95, listed]})
    _, out, err = text(capsys, "score", "import", "m@good", "odd_eval_results.json")
    assert "vbench subject_consistency: the file states 0.9900, the mean of its 24 videos is 0.9502" in err
    assert "vbench color" not in err
    assert "the file says 0.9900; ITS VIDEOS CONTRADICT THAT" in out
    color, subject = typed(capsys, "show", "m@good")[1]["scores"]
    assert (subject["stated"], subject["mean"], subject["stated_agrees"]) == (0.99, pytest.approx(0.9502), False)
    assert color["stated_agrees"] is True


def test_a_comparison_names_the_metric_that_a_setting_is_of(home: Path, prompts: Path, capsys: Capture) -> None:
    for who in ("m@good", "m@bad"):
        imported(home, prompts, who, 0.9)
        write(home / f"{who}.json", {"singleobj_1": {"gme_score": 0.5}, "humanobj_2": {"gme_score": 0.7}})
        assert run(["score", "import", who, str(home / f"{who}.json")]) == 0
    code, found = typed(capsys, "compare", "m@good", "m@bad")
    assert code == 0
    named = {one["name"]: one["metrics"] for one in found["settings"]}
    assert named == {name: ["opens2v gme_score on opens2v-eval"] for name in SETTINGS}
    lines = text(capsys, "compare", "m@good", "m@bad")[1].splitlines()
    assert (
        "setting      unknown  steps: not recorded against not recorded (of opens2v gme_score on opens2v-eval)" in lines
    )


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_a_prompt_file_of_generate_is_no_full_info(home: Path, capsys: Capture, name: str) -> None:
    lines = {"prompts.txt": "a red cat\na dog\n", "prompts.jsonl": '{"prompt": "a cat"}\n{"prompt": "a dog"}\n'}
    (home / name).write_text(lines[name], "utf-8")
    file = result_file(home / "run_eval_results.json", 0.9)
    code, found = typed(capsys, "score", "import", "m@good", file, "--full-info", name)
    assert (code, found["error"]["code"], found["error"]["where"]) == (1, "score-file", name)
    assert "not a suite's prompt file" in found["error"]["what"]
    assert "VBench's JSON list of {prompt_en, video_list}" in found["error"]["expected"]


def test_a_gate_passes_or_ends_with_4_and_the_reasons(scored: Path, capsys: Capture) -> None:
    code, found = typed(capsys, "gate", "m@good", "--workload", "drafts", "--policy", "policy.toml")
    assert (code, found["passed"], found["reasons"]) == (0, True, [])
    assert found["conditions"][0] == "a person looks"
    assert any("3 videos left out, their prompts were calibrated" in line for line in found["notes"])
    code, found = typed(capsys, "gate", "m@bad", "--workload", "drafts", "--policy", "policy.toml")
    assert (code, found["passed"], found["error"]["code"], found["error"]["exit_code"]) == (4, False, "gate-failed", 4)
    assert [check["kind"] for check in found["checks"] if not check["passed"]] == ["retained"]
    code, out, err = text(capsys, "gate", "m@bad", "--workload", "drafts", "--policy", "policy.toml")
    assert code == 4
    assert "FAIL       vbench subject_consistency on vbench: 0.66" in out
    assert "[gate-failed]" in err


def test_a_policy_that_asks_for_a_bound_never_passes_on_means(scored: Path, capsys: Capture) -> None:
    bounded = POLICY.replace('name = "mine"', 'name = "mine"\nconfidence = 0.95', 1)
    Path("bounded.toml").write_text(bounded)
    order = ["gate", "m@good", "--workload", "drafts", "--policy"]
    code, found = typed(capsys, *order, "bounded.toml")
    assert (code, found["error"]["code"]) == (1, "policy")
    assert "min_prompts of at least 20" in text(capsys, *order, "bounded.toml")[2]
    Path("bounded.toml").write_text(bounded.replace("= 4\n", "= 20\n"))
    code, found = typed(capsys, *order, "bounded.toml")
    assert (code, found["confidence"]) == (4, 0.95)
    assert [check["basis"] for check in found["checks"] if check["kind"] == "retained"] == ["bound"]
    assert "; 21 prompts may miss a collapse of 13.3% of all, at least " in found["reasons"][0]
    code, found = typed(capsys, *order, "policy.toml")
    assert (code, found["confidence"]) == (0, None)
    assert [check["basis"] for check in found["checks"] if check["kind"] == "retained"] == ["mean"]
    out = text(capsys, *order, "policy.toml")[1]
    assert out.splitlines()[0].endswith(" passes drafts by means, without a confidence bound")
    assert "0.9 needed (ours); means of 21 prompts, no confidence bound" in out


def test_two_workloads_of_the_default_policy_answer_differently(scored: Path, capsys: Capture) -> None:
    assert typed(capsys, "gate", "m@good", "--workload", "mood-boards")[0] == 0
    code, found = typed(capsys, "gate", "m@good", "--workload", "regulated-identity")
    assert code == 4
    assert any("human review: not measured" in reason for reason in found["reasons"])
    assert any("the content class of the job is not named" in reason for reason in found["reasons"])
    code, found = typed(capsys, "gate", "m@good", "--workload", "background-atmosphere")
    assert code == 4
    assert found["reasons"][0].startswith("background_consistency of vbench or vbench-i2v: not measured")


def test_clips_generated_otherwise_than_the_base_fail(home: Path, prompts: Path, capsys: Capture) -> None:
    imported(home, prompts, "m@good", 0.9, "--of-base")
    imported(home, prompts, "m@good", 0.9, steps=20)
    code, found = typed(capsys, "gate", "m@good", "--workload", "drafts", "--policy", "policy.toml")
    assert (code, found["reasons"]) == (4, ["generated with other settings than the base: steps: 20 against 40"])


def measured(who: str, seconds: float, *more: str, kernels: str = "real") -> None:
    arguments = ["score", "add", who, "--latency", str(seconds), "--device", "H200", "--kernels", kernels]
    assert run([*arguments, "--setting", "frames=81", *more]) == 0


def test_a_route_names_the_variant_and_its_cost(scored: Path, capsys: Capture) -> None:
    order = ["route", "--workload", "drafts", "--policy", "policy.toml"]
    good = hfq.open_registry().resolve("m@good")
    code, found = typed(capsys, *order)
    assert (code, found["variant"], found["costs"][good]["accepted_clip_s"]) == (0, good, None)
    assert "not measured" in found["reason"]
    measured("m@good", 100, "--of-base")
    measured("m@good", 40)
    lines = [json.dumps({"video": f"{prompt}-0", "accepted": n % 4 != 0}) for n, prompt in enumerate(PROMPTS)]
    (scored / "review.jsonl").write_text("\n".join(lines))
    assert run(["score", "review", "m@good", "review.jsonl"]) == 0
    assert run(["score", "review", "m@good", "review.jsonl"]) == 0  # the same people did not decide twice
    code, found = typed(capsys, *order)
    cost = found["costs"][good]
    # 40 s, and for every fourth clip 100 s more.
    assert (cost["fallback"], cost["accepted_clip_s"]) == (pytest.approx(0.25), pytest.approx(65.0))
    assert cost["break_even_fallback"] == pytest.approx(0.6)
    assert any(
        hfq.open_registry().resolve("m@bad")[:12] in note and "fails the gate" in note for note in found["notes"]
    )
    code, out, _ = text(capsys, *order)
    assert "per accepted clip    65 s on H200" in out
    assert "break-even rate      60.0%" in out
    assert typed(capsys, *order, "--budget", "64")[1]["variant"] is None
    assert typed(capsys, *order, "--budget", "66")[1]["variant"] == good
    for wrong in ("nan", "0", "-1"):
        code, refused = typed(capsys, *order, "--budget", wrong)
        assert (code, refused["error"]["code"]) == (2, "usage")


def test_a_route_falls_back_to_the_base(scored: Path, capsys: Capture) -> None:
    code, found = typed(capsys, "route", "--workload", "background-atmosphere")
    assert (code, found["variant"]) == (0, None)
    assert found["reason"] == "no variant passes the gate; the base, whose cost per clip is not measured"
    assert len(found["unscored"]) == 0
    code, out, _ = text(capsys, "route", "--workload", "brand-character")
    assert code == 0
    assert out.startswith(f"brand-character: base:{found['base'][:12]}\n  reason     the policy serves brand-character")


def test_speed_of_simulated_kernels_is_no_cost(scored: Path, capsys: Capture) -> None:
    measured("m@good", 100, "--of-base")
    measured("m@good", 1, kernels="simulated")
    found = typed(capsys, "route", "--workload", "drafts", "--policy", "policy.toml")[1]
    cost = found["costs"][hfq.open_registry().resolve("m@good")]
    assert (cost["clip_s"], cost["missing"][0]) == (None, "latency: not measured with real kernels")


def test_a_route_falls_back_to_the_variant_that_the_policy_names(scored: Path, capsys: Capture) -> None:
    make_delta(scored / "strong", seed="strong")
    hfq.open_registry().register(scored / "strong", aliases=["m@strong"])
    policy = POLICY.replace('escalate_to = "base"', 'escalate_to = "m@strong"').replace("0.9\n", "1.5\n")
    Path("strong.toml").write_text(policy)
    measured("m@good", 100, "--of-base")
    measured("m@strong", 60)
    strong = hfq.open_registry().resolve("m@strong")
    order = ["route", "--workload", "drafts", "--policy", "strong.toml"]
    code, found = typed(capsys, *order)
    assert (code, found["variant"], found["escalates_to"]) == (0, strong, {"name": "m@strong", "delta": strong})
    assert found["reason"] == (
        f"no variant passes the gate; delta:{strong[:12]}, which the policy escalates to although it has no score to "
        "pass by, at 60 s per clip on H200 with frames 81"
    )
    assert text(capsys, *order)[1].startswith(f"drafts: delta:{strong[:12]}\n")
    base = hfq.open_registry().get("m@good").base.id
    make_delta(scored / "foreign", seed="foreign", base="wan21")
    hfq.open_registry().register(scored / "foreign", aliases=["m@foreign"])
    Path("foreign.toml").write_text(policy.replace("m@strong", "m@foreign"))
    code, found = typed(capsys, *order[:-1], "foreign.toml", "--base", base)
    assert (code, found["error"]["code"]) == (5, "unknown-id")
    assert found["error"]["what"] == "the policy escalates to a delta of another base"


def test_several_bases_need_to_be_told_apart(scored: Path, capsys: Capture) -> None:
    make_delta(scored / "other", seed="other", base="wan21")
    hfq.open_registry().register(scored / "other")
    assert typed(capsys, "route", "--workload", "mood-boards")[1]["error"]["code"] == "ambiguous-id"
    code, found = typed(capsys, "route", "--workload", "mood-boards", "--base", "m@good")
    assert (code, found["variant"]) == (0, hfq.open_registry().resolve("m@good"))
    code, found = typed(capsys, "route", "--workload", "mood-boards", "--base", scored / "other")
    assert (code, found["variant"], len(found["unscored"])) == (0, None, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["gate", "m@good", "--workload", "films"], 2, "unknown-workload"),
        (["route", "--workload", "films"], 2, "unknown-workload"),
        (["gate", "nobody", "--workload", "mood-boards"], 5, "unknown-id"),
        (["gate", "base:", "--workload", "mood-boards"], 2, "usage"),
        (["compare", "m@good", "m@bad"], 2, "not-comparable"),
        (["score", "import", "m@good", "policy.toml"], 1, "malformed"),
        (["score", "import", "m@good", "good/ptq_state.json"], 1, "score-file"),
        (["score", "import", "m@good", "absent.json"], 2, "missing-path"),
        (["score", "import", "m@good", "absent.json", "--prompt-set", "a\nb"], 2, "usage"),
        (["score", "add", "m@good", "--device", "H200", "--kernels", "real"], 2, "usage"),
        (["score", "add", "m@good", "--latency", "0", "--device", "H200", "--kernels", "real"], 2, "measurement"),
        (["score", "add", "m@good", "--latency", "1", "--device", "d", "--kernels", "real", "--setting", "a=nan"],
         2, "usage"),
        (["score", "review", "m@good", "policy.toml"], 1, None),
        (["score", "measure", "base:0123456789ab", "--clips", ".", "--reference", "."], 5, "unknown-id"),
        (["score", "measure", "m@good", "--clips", ".", "--reference", "."], 2, "clip-mismatch"),
        (["score", "measure", "m@good", "--clips", "absent", "--reference", "."], 2, "missing-path"),
    ],
)  # fmt: skip
def test_bad_input_gets_its_exit_code(
    home: Path, capsys: Capture, arguments: list[str], code: int, error: str | None
) -> None:
    base = hfq.open_registry().get("m@good").base.id
    found, document = typed(capsys, *(base if argument == "base:" else argument for argument in arguments))
    assert found == code, document
    assert error in (None, document["error"]["code"])
