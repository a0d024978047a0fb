"""Pushing when something goes wrong on the way: how long it waits, what it says, and what is left."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from pushing import REPO, id_of, push_to
from stand_in import Blob, Repo, StandIn

from hfq.schema.errors import (
    HfqError,
    HubAccessError,
    HubBusyError,
    HubConflictError,
    HubError,
    HubUnavailableError,
)


def test_a_branch_that_moves_meanwhile_is_not_overwritten(hub: StandIn, delta: Path) -> None:
    hub.before_commit = lambda repo: repo.put({"README.md": b"theirs"})
    with pytest.raises(HubConflictError, match="has changed") as caught:
        push_to(hub, delta)
    assert caught.value.exit_code == 3
    repo = hub.repos[REPO]
    assert (repo.head().files["README.md"].data, repo.tags) == (b"theirs", {})
    hub.before_commit = None
    push_to(hub, delta)
    assert "ptq_state.json" in repo.head().files


@pytest.mark.parametrize("token", ["hf_wrong", None])
def test_a_wrong_or_missing_token_is_named_as_the_reason(hub: StandIn, delta: Path, token: str | None) -> None:
    hub.add(REPO)
    with pytest.raises(HubAccessError, match="token") as caught:
        push_to(hub, delta, token=token)
    assert caught.value.exit_code == 2
    assert "hf_wrong" not in str(caught.value)
    assert len(hub.repos[REPO].commits) == 1


def test_a_saved_token_is_not_shown_to_another_endpoint(
    hub: StandIn, delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", "hf_saved_for_the_public_hub")
    hub.add(REPO)
    with pytest.raises(HubAccessError):
        push_to(hub, delta, token=None)
    assert hub.requests
    assert not any("authorization" in headers for _, _, headers in hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    with pytest.raises(HubAccessError):
        push_to(hub, delta, token=None)
    assert "Bearer hf_saved_for_the_public_hub" in {headers.get("authorization") for _, _, headers in hub.requests}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("request_line", ["GET .*/revision/main", "POST .*/commit/", "POST .*/tag/", "POST .*create"])
def test_a_busy_hub_is_waited_for_as_long_as_it_asks(
    hub: StandIn, delta: Path, no_waiting: list[float], status: int, request_line: str
) -> None:
    hub.fault(request_line, status=status, times=2, headers={"Retry-After": "7"})
    pushed = push_to(hub, delta)
    assert no_waiting == [7.0, 7.0]
    assert hub.repos[REPO].tags == {pushed.tag: pushed.commit}
    assert len(hub.repos[REPO].commits) == 2


@pytest.mark.parametrize(("status", "failure"), [(429, HubBusyError), (503, HubUnavailableError)])
def test_patience_ends(
    hub: StandIn, delta: Path, no_waiting: list[float], status: int, failure: type[HfqError]
) -> None:
    hub.fault("POST .*/commit/", status=status, times=99)
    with pytest.raises(failure, match=f"status {status}.*5 times") as caught:
        push_to(hub, delta)
    assert caught.value.exit_code == 1
    assert no_waiting == [1.0, 2.0, 4.0, 8.0]
    assert len(hub.repos[REPO].commits) == 1


@pytest.mark.parametrize("request_line", ["GET .*/revision/main", "POST .*/preupload/", "PUT /storage/"])
@pytest.mark.parametrize(
    "headers", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}], ids=["Retry-After", "RateLimit"]
)
def test_a_day_is_not_waited(
    hub: StandIn, delta: Path, no_waiting: list[float], request_line: str, headers: dict[str, str]
) -> None:
    hub.fault(request_line, status=429, times=99, headers=headers)
    with pytest.raises(HubBusyError, match="86400 s"):
        push_to(hub, delta)
    assert no_waiting == []


@pytest.mark.parametrize("request_line", ["POST .*/preupload/", "POST .*/batch", "PUT /storage/"])
def test_what_the_client_repeats_is_not_repeated_again(
    hub: StandIn, delta: Path, no_waiting: list[float], request_line: str
) -> None:
    hub.fault(request_line, times=99)
    with pytest.raises(HubUnavailableError):
        push_to(hub, delta)
    assert hub.count(request_line) == 6
    assert sum(no_waiting) < 60


def test_a_server_that_never_answers_is_left(hub: StandIn, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfq.registry.hub.session.TIMEOUT_S", 0.2)
    hub.fault("POST .*/commit/", "hang")
    with pytest.raises(HubUnavailableError, match="Timeout"):
        push_to(hub, delta)


def test_an_upload_that_breaks_off_is_sent_again_whole(hub: StandIn, delta: Path, no_waiting: list[float]) -> None:
    hub.fault("PUT /storage/", "cut", times=1)
    pushed = push_to(hub, delta)
    assert hub.count("PUT /storage/") == 2
    head = hub.repos[REPO].head()
    assert head.oid == pushed.commit
    assert head.files["ptq_state.safetensors"].data == (delta / "ptq_state.safetensors").read_bytes()


def test_a_commit_that_is_asked_for_again_shows_every_file_from_its_start(
    hub: StandIn, delta: Path, no_waiting: list[float]
) -> None:
    """After five broken uploads and a refusal the client gives up with the file read to its end."""
    hub.fault("PUT /storage/", "cut", times=5)
    hub.fault("PUT /storage/", status=503)
    push_to(hub, delta)
    state = (delta / "ptq_state.safetensors").read_bytes()
    shown = [sample for name, sample in hub.samples if name == "ptq_state.safetensors"]
    assert len(shown) == 2
    assert {base64.b64decode(sample) for sample in shown} == {state[:512]}
    assert hub.repos[REPO].head().files["ptq_state.safetensors"].data == state


def test_an_upload_that_always_breaks_off_leaves_the_repository_alone(
    hub: StandIn, delta: Path, no_waiting: list[float]
) -> None:
    hub.fault("PUT /storage/", "cut", times=99)
    with pytest.raises(HubUnavailableError) as caught:
        push_to(hub, delta)
    assert caught.value.exit_code == 1
    repo = hub.repos[REPO]
    assert (len(repo.commits), repo.tags, hub.objects) == (1, {}, {})
    hub.faults.clear()
    assert push_to(hub, delta).commit == repo.head().oid


def test_a_lost_answer_to_the_commit_is_an_error_and_pushing_again_finishes(hub: StandIn, delta: Path) -> None:
    hub.fault("POST .*/commit/", "lose answer")
    with pytest.raises(HubUnavailableError):
        push_to(hub, delta)
    repo = hub.repos[REPO]
    assert (len(repo.commits), repo.tags) == (2, {})
    again = push_to(hub, delta)
    assert (len(repo.commits), repo.tags) == (2, {again.tag: again.commit})
    assert again.is_new is False


def test_a_commit_without_its_tag_is_said_to_be_made(hub: StandIn, delta: Path) -> None:
    hub.fault("POST .*/tag/", status=403)
    with pytest.raises(HubAccessError, match="is made and not tagged"):
        push_to(hub, delta)
    again = push_to(hub, delta)
    assert hub.repos[REPO].tags == {again.tag: again.commit}


def test_a_tag_that_names_other_files_stops_the_push(hub: StandIn, delta: Path) -> None:
    repo = hub.add(REPO)
    repo.tags[f"delta-{id_of(delta)}"] = repo.put({"ptq_state.json": b"{}"})
    head = repo.head().oid
    with pytest.raises(HubConflictError, match="names other files"):
        push_to(hub, delta)
    assert repo.head().oid == head


def test_files_that_the_repository_ignores_are_noticed(hub: StandIn, delta: Path) -> None:
    hub.add(REPO).gitignore.add("provenance.json")
    with pytest.raises(HubError, match=r"provenance\.json"):
        push_to(hub, delta)
    assert hub.repos[REPO].tags == {}


def test_no_server_is_one_line(hub: StandIn, delta: Path, no_waiting: list[float]) -> None:
    hub.close()
    with pytest.raises(HubUnavailableError, match="no connection") as caught:
        push_to(hub, delta)
    assert "\n" not in str(caught.value)


def test_offline_is_said(hub: StandIn, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE"):
        push_to(hub, delta)
    assert hub.requests == []


def test_a_tag_set_by_somebody_at_the_same_time_is_fine_when_it_is_the_same(hub: StandIn, delta: Path) -> None:
    files = {path.name: Blob(path.read_bytes(), path.suffix == ".safetensors") for path in delta.iterdir()}

    def same_tag(repo: Repo) -> None:
        repo.tags[f"delta-{id_of(delta)}"] = repo.commit(None, files, "theirs")

    hub.before_commit = same_tag
    pushed = push_to(hub, delta)
    assert hub.repos[REPO].head().oid == pushed.commit
