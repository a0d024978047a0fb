"""`hfq push` and `hfq pull`, as they are typed, against a stand-in on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hfq
from hfq.cli import run
from hfq.registry.clips.clip_document import Variant

REGISTRY_TESTS = Path(__file__).parents[1] / "registry"
sys.path[:0] = [str(REGISTRY_TESTS), str(REGISTRY_TESTS / "hub")]

from scored import score  # noqa: E402
from stand_in import TOKEN, StandIn  # noqa: E402

REPO = "someone/small-delta"
BASE = ("--base-model", "Wan-AI/Wan2.2-T2V-A14B", "--license", "apache-2.0")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    server = StandIn()
    monkeypatch.setenv("HFQ_REGISTRY", str(tmp_path / "registry.sqlite"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # What HF_ENDPOINT sets when the client is imported.
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.close()


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_pushed_delta_comes_back_and_its_history_says_so(
    hub: StandIn, small_delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delta_id = hfq.open_registry().register(small_delta, aliases=["small@test"])
    code, pushed = document(capsys, "push", "small@test", REPO, *BASE)
    assert (code, pushed["id"], pushed["tag"]) == (0, delta_id, f"delta-{delta_id}")
    code, pulled = document(capsys, "pull", REPO, "-o", str(tmp_path / "copy"))
    assert (code, pulled["id"], pulled["commit"]) == (0, delta_id, pushed["commit"])
    assert (tmp_path / "copy" / "ptq_state.json").read_bytes() == (small_delta / "ptq_state.json").read_bytes()
    history = {event.kind: event.detail for event in hfq.open_registry().get(delta_id).events}
    assert history["pushed"] == {"repo": REPO, "commit": pushed["commit"], "tag": pushed["tag"]}
    assert history["pulled"] == {"repo": REPO, "commit": pushed["commit"]}


def test_a_dry_run_shows_the_card_and_contacts_nobody(
    hub: StandIn, small_delta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(small_delta), REPO, *BASE, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert 'base_model_relation: "quantized"' in shown
    assert "nothing was uploaded" in shown
    assert hub.requests == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["pull", "someone/nothing-here", "-o", "copy"], 5),
        (["pull", "not a name", "-o", "copy"], 2),
        (["push", "DELTA", "someone/x", "--license", "apache-2.0"], 2),
        (["push", "DELTA", "someone/x", *BASE[:2], "--license", "banana"], 2),
        (["push", "nobody@here", "someone/x", *BASE], 5),
    ],
)
def test_bad_input_gets_its_exit_code_and_leaves_nothing(
    arguments: list[str], code: int, hub: StandIn, small_delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([str(small_delta) if part == "DELTA" else part for part in arguments]) == code
    assert not (tmp_path / "copy").exists()


def test_the_card_has_what_the_registry_has(
    hub: StandIn, small_delta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def card(*arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        assert run(["push", *arguments, REPO, *BASE, "--dry-run", "--json"]) == 0
        out, err = capsys.readouterr()
        return json.loads(out)["card"], err

    text, err = card(str(small_delta))
    assert "This card carries no scores: it was made without a registry that knows the delta." in text
    assert "Wan-AI/Wan2.2-T2V-A14B: its files were not compared with the delta's base" in err
    assert "--base-hub Wan-AI/Wan2.2-T2V-A14B compares them" in err

    registry = hfq.open_registry()
    delta = Variant("delta", registry.register(small_delta, aliases=["small@test"]))
    base = Variant("base", registry.get(delta.id).base.id)
    assert "No scores of generated clips are recorded." in card("small@test")[0]
    prompts = [f"{n:064x}" for n in range(3)]
    # Beside the base's mean only where that is of the same videos: of one more it is another mean.
    score(registry, delta, [0.9, 0.8, 0.7], prompts=prompts, prompt_set="mine")
    score(registry, base, [0.9, 0.9, 0.9], prompts=prompts, prompt_set="mine")
    score(registry, delta, [0.5, 0.5, 0.5], prompts=prompts, name="motion_smoothness")
    score(registry, base, [0.5] * 4, prompts=[*prompts, f"{3:064x}"], name="motion_smoothness")
    assert run(["score", "add", "small@test", "--latency", "41.5", "--device", "H200", "--kernels", "simulated"]) == 0
    text, _ = card("small@test")
    assert "| subject\\_consistency | 0.8 | 0.9 | mine | vbench | 3 |" in text
    assert "| motion\\_smoothness | 0.5 |  | not named | vbench | 3 |" in text
    assert "| latency | 41.5 s/clip | H200 | simulated | not recorded |" in text
    assert "\nPrompts: " in text
