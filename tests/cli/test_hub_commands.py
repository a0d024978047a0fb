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

REGISTRY_TESTS = Path(__file__).parents[1] / "registry"
sys.path[:0] = [str(REGISTRY_TESTS), str(REGISTRY_TESTS / "hub")]

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
    assert (code, pushed["id"], pushed["tag"]) == (0, delta_id, f"delta-{delta_id[:12]}")
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
