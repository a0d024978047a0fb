"""Pulling: a folder appears when everything in it is right, and not otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from factory import make_delta, make_document, write_json
from stand_in import TOKEN, Repo, StandIn

from hfq.registry import Registry
from hfq.registry.hub import Pulled, pull, push, session
from hfq.schema.errors import (
    DigestMismatchError,
    HfqError,
    HubAccessError,
    HubBusyError,
    HubError,
    HubListingError,
    HubNotFoundError,
    HubUnavailableError,
    MalformedFileError,
    OutputExistsError,
    TooLargeError,
    TrailingBytesError,
    TruncatedFileError,
    UnreadableFileError,
    UsageError,
    WrongIdError,
)

REPO = "someone/wan22-tail"
STATE = "ptq_state.safetensors"
NAMES = ("ptq_state.json", STATE, "provenance.json", "report.json", "README.md")


@pytest.fixture
def repo(hub: StandIn, delta: Path) -> Repo:
    """A repository that `push` made."""
    push(delta, REPO, base_model="Wan-AI/Wan2.2-T2V-A14B", license="apache-2.0", endpoint=hub.url, token=TOKEN)
    hub.requests.clear()
    return hub.repos[REPO]


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where to pull to. Whatever happens, nothing stays behind beside it but what the next pull goes on from."""
    home = tmp_path / "home"
    home.mkdir()
    yield home / "pulled"
    assert {path.name for path in home.iterdir()} <= {"pulled", "pulled.partial"}


def pull_from(hub: StandIn, out: Path, **how: Any) -> Pulled:
    return pull(REPO, out, **{"endpoint": hub.url, **how})


def refused(hub: StandIn, out: Path, failure: type[HfqError], match: str | None = None, **how: Any) -> HfqError:
    with pytest.raises(failure, match=match) as caught:
        pull_from(hub, out, **how)
    assert not out.exists()
    # What is wrong on the Hub's side is not built on; what only stopped half-way is.
    goes_on = isinstance(caught.value, HubUnavailableError | HubBusyError | UsageError)
    assert goes_on or not out.with_name("pulled.partial").exists()
    assert "\n" not in str(caught.value)
    return caught.value


def downloads(hub: StandIn) -> list[str]:
    return [path.rpartition("/")[2] for method, path, _ in hub.requests if "/resolve/" in path]


def test_pulled_delta_is_the_pushed_one_and_registers(
    hub: StandIn, repo: Repo, delta: Path, out: Path, registry: Registry
) -> None:
    pulled = pull_from(hub, out)
    assert (pulled.folder, pulled.commit, pulled.files, pulled.ignored) == (out, repo.head().oid, NAMES, ())
    for name in NAMES[:-1]:
        assert (out / name).read_bytes() == (delta / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES)
    assert registry.register(out) == registry.register(delta) == pulled.id


def test_files_are_asked_for_by_commit(hub: StandIn, repo: Repo, out: Path) -> None:
    pull_from(hub, out)
    assert hub.count(f"GET /{REPO}/resolve/{repo.head().oid}/") == len(NAMES)
    assert hub.count("/resolve/main") == 0
    encodings = {headers["accept-encoding"] for _, path, headers in hub.requests if "/resolve/" in path}
    assert encodings == {"identity"}  # a compressed answer could be of any size


def test_a_revision_is_pulled_as_it_was(hub: StandIn, repo: Repo, out: Path, tmp_path: Path) -> None:
    first, tag = repo.head().oid, next(iter(repo.tags))
    other = make_delta(tmp_path / "other", seed="b")
    push(tmp_path / "other", REPO, base_model="a/b", license="mit", endpoint=hub.url, token=TOKEN)
    assert pull_from(hub, out).id == other
    for number, revision in enumerate((tag, first)):
        pulled = pull_from(hub, out.parent / "pulled" / str(number), revision=revision)
        assert (pulled.commit, pulled.id) == (first, tag.removeprefix("delta-"))


def test_other_files_are_named_and_never_asked_for(hub: StandIn, repo: Repo, out: Path) -> None:
    repo.put({"model.pkl": b"\x80\x04.", "run.py": b"print()", "sub/ptq_state.json": b"{}"})
    pulled = pull_from(hub, out)
    assert pulled.ignored == ("model.pkl", "run.py", "sub/ptq_state.json")
    assert set(downloads(hub)) == set(NAMES)
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES)


def test_a_delta_without_report_and_card_is_whole(hub: StandIn, out: Path, tmp_path: Path) -> None:
    make_delta(tmp_path / "bare")
    hub.add(REPO).put({path.name: path.read_bytes() for path in (tmp_path / "bare").iterdir()})
    assert pull_from(hub, out).files == NAMES[:3]


@pytest.mark.parametrize(
    "name",
    [
        "../ptq_state.json",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "./ptq_state.json",
        "..",
        "",
        "a\\..\\b",
        "C:/x",
        "PTQ_STATE.JSON",
        "ptq_state.json.",
        "Report.json",
        "ptq_state.json",
        "a\nb",
        "a\x1b[31m",
        "\u202egnp.json",
        "x" * 2000,
    ],
)
def test_a_hostile_list_is_refused_before_any_download(hub: StandIn, repo: Repo, out: Path, name: str) -> None:
    repo.siblings.append({"rfilename": name, "size": 2, "blobId": "0" * 40})
    error = refused(hub, out, HubListingError)
    assert error.exit_code == 1
    assert str(error).isprintable()
    assert downloads(hub) == []


@pytest.mark.parametrize(
    "entry",
    [
        {"rfilename": "x", "size": -1, "blobId": "0" * 40},
        {"rfilename": "x", "size": None, "blobId": "0" * 40},
        {"rfilename": "x", "size": "9", "blobId": "0" * 40},
        {"rfilename": "x", "size": 2},
        {"rfilename": "x", "size": 2, "blobId": "../../x"},
        {"rfilename": 7, "size": 2, "blobId": "0" * 40},
        {"rfilename": "x", "size": 2, "lfs": {"sha256": "0" * 63, "size": 2, "pointerSize": 1}},
        {"rfilename": "x", "size": 2, "lfs": {"sha256": "0" * 64, "size": 3, "pointerSize": 1}},
    ],
)
def test_a_list_with_odd_entries_is_refused(hub: StandIn, repo: Repo, out: Path, entry: dict[str, Any]) -> None:
    repo.siblings.append(entry)
    refused(hub, out, HubListingError)
    assert downloads(hub) == []


def test_an_answer_that_is_no_list_is_one_line(hub: StandIn, repo: Repo, out: Path) -> None:
    repo.siblings.append({"name": "without rfilename"})
    refused(hub, out, HubError, "cannot read")


def test_endless_lists_are_refused(hub: StandIn, repo: Repo, out: Path) -> None:
    repo.siblings += [{"rfilename": f"f{i}", "size": 1, "blobId": "0" * 40} for i in range(10_000)]
    refused(hub, out, HubListingError, "too many")


@pytest.mark.parametrize("name", ["ptq_state.json", "provenance.json", "report.json", "README.md"])
def test_documents_beyond_their_size_are_not_fetched(hub: StandIn, repo: Repo, out: Path, name: str) -> None:
    head = repo.head().files
    del head[name]
    repo.siblings.append({"rfilename": name, "size": 33 << 20, "blobId": "0" * 40})
    refused(hub, out, HubListingError, "too large")
    assert downloads(hub) == []


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_repository_without_a_delta_is_unknown(hub: StandIn, repo: Repo, out: Path, name: str) -> None:
    del repo.head().files[name]
    assert refused(hub, out, HubNotFoundError, "no delta").exit_code == 5
    assert downloads(hub) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_file_swapped_on_the_server_is_refused(hub: StandIn, repo: Repo, out: Path, name: str) -> None:
    data = bytearray(repo.head().files[name].data)
    data[-3] ^= 1
    repo.swapped[name] = bytes(data)
    error = refused(hub, out, DigestMismatchError, name)
    assert error.exit_code == 3


@pytest.mark.parametrize("name", NAMES)
def test_more_or_fewer_bytes_than_listed_are_refused(hub: StandIn, repo: Repo, out: Path, name: str) -> None:
    data = repo.head().files[name].data
    repo.swapped[name] = data + b" " * 100_000
    refused(hub, out, TooLargeError, name)
    repo.swapped[name] = data[:-1]
    refused(hub, out, TruncatedFileError, name)


def test_a_state_file_of_another_delta_is_not_fetched(hub: StandIn, repo: Repo, out: Path, tmp_path: Path) -> None:
    make_delta(tmp_path / "other", seed="b")
    same_size = (tmp_path / "other" / STATE).read_bytes()
    for data, failure in (
        (same_size, DigestMismatchError),
        (same_size[:-1], TruncatedFileError),
        (same_size + b"\0", TrailingBytesError),
    ):
        repo.put({STATE: data})
        hub.requests.clear()
        refused(hub, out, failure, STATE)
        assert downloads(hub) == ["ptq_state.json"]


def test_an_edited_document_is_refused(hub: StandIn, repo: Repo, out: Path) -> None:
    document = json.loads(repo.head().files["ptq_state.json"].data)
    document["recipe"]["description"] = "better"
    repo.put({"ptq_state.json": json.dumps(document).encode()})
    refused(hub, out, WrongIdError)
    repo.put({"ptq_state.json": b'{"schema": "hfq.ptq-state/1"'})
    refused(hub, out, TruncatedFileError)


@pytest.mark.parametrize("name", ["provenance.json", "report.json"])
def test_documents_of_two_deltas_do_not_mix(hub: StandIn, repo: Repo, out: Path, name: str) -> None:
    document = json.loads(repo.head().files[name].data)
    repo.put({name: json.dumps({**document, "delta": "0" * 64}).encode()})
    refused(hub, out, DigestMismatchError, "another delta")


def test_a_card_that_is_no_text_is_refused(hub: StandIn, repo: Repo, out: Path) -> None:
    repo.put({"README.md": b"\xff\xfe"})
    refused(hub, out, MalformedFileError, "UTF-8")


def test_a_tag_of_another_delta_is_a_contradiction(hub: StandIn, repo: Repo, out: Path) -> None:
    delta_id = next(iter(repo.tags)).removeprefix("delta-")
    alike = delta_id[:12] + ("0" if delta_id[12] != "0" else "1") * 52  # the twelve digits that people look at
    for tag in ("delta-000000000000", f"delta-{alike}", f"delta-{alike[:13]}"):
        repo.tags[tag] = repo.head().oid
        assert refused(hub, out, DigestMismatchError, "tag", revision=tag).exit_code == 3


def test_tags_of_twelve_digits_and_names_that_are_no_ids_still_serve(hub: StandIn, repo: Repo, out: Path) -> None:
    delta_id = next(iter(repo.tags)).removeprefix("delta-")
    out.mkdir()
    for number, (tag, kept) in enumerate(
        [(f"delta-{delta_id[:12]}", f"delta-{delta_id[:12]}"), ("delta-for-the-fair", None), ("delta-fade", None)]
    ):
        repo.tags[tag] = repo.head().oid
        assert pull_from(hub, out / str(number), revision=tag).tag == kept


def test_a_delta_larger_than_the_disk_is_not_fetched(hub: StandIn, out: Path, tmp_path: Path) -> None:
    size = (1 << 53) - 1
    document = make_document(state={"sha256": "0" * 64, "size_bytes": size, "tensors": 1})
    write_json(tmp_path / "ptq_state.json", document)
    repo = hub.add(REPO)
    repo.put({"ptq_state.json": (tmp_path / "ptq_state.json").read_bytes(), "provenance.json": b"{}"})
    repo.siblings.append(
        {"rfilename": STATE, "size": size, "lfs": {"sha256": "0" * 64, "size": size, "pointerSize": 9}}
    )
    refused(hub, out, UsageError, "no room")
    assert downloads(hub) == ["ptq_state.json"]


def test_a_full_disk_is_one_line(hub: StandIn, repo: Repo, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refused(hub, out, UnreadableFileError, "No space left")


def test_a_download_that_breaks_off_goes_on(
    hub: StandIn, repo: Repo, delta: Path, out: Path, no_waiting: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(session._SWITCHES, "DOWNLOAD_CHUNK_SIZE", 16)
    hub.fault(f"GET .*/{STATE}", "cut", times=2)
    pull_from(hub, out)
    assert (out / STATE).read_bytes() == (delta / STATE).read_bytes()
    ranges = [headers.get("range") for _, path, headers in hub.requests if path.endswith(STATE)]
    starts = [int(text.removeprefix("bytes=").rstrip("-")) if text else 0 for text in ranges]
    assert starts[0] == 0 < starts[1] < starts[2]


def test_a_download_that_always_breaks_off_ends(hub: StandIn, repo: Repo, out: Path, no_waiting: list[float]) -> None:
    hub.fault(f"GET .*/{STATE}", "lose answer", times=999)
    refused(hub, out, HubUnavailableError, STATE)
    assert sum(no_waiting) < 60


def test_a_hub_that_is_not_there_leaves_nothing(hub: StandIn, out: Path, no_waiting: list[float]) -> None:
    hub.close()
    refused(hub, out, HubUnavailableError, "no connection")
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_waited_for(hub: StandIn, repo: Repo, out: Path, no_waiting: list[float], status: int) -> None:
    hub.fault("GET /api/models", status=status, times=1, headers={"Retry-After": "3"})
    hub.fault(f"GET .*/{STATE}", status=status, times=1, headers={"Retry-After": "3"})
    pull_from(hub, out)
    assert len(no_waiting) == 2
    assert all(3 <= pause <= 4 for pause in no_waiting)  # the client adds a second of its own


def test_a_day_is_not_waited(hub: StandIn, repo: Repo, out: Path, no_waiting: list[float]) -> None:
    hub.fault(f"GET .*/{STATE}", status=429, times=99, headers={"Retry-After": "86400"})
    refused(hub, out, HubBusyError, "86400 s")
    assert no_waiting == []


def test_a_private_repository_needs_its_token(hub: StandIn, repo: Repo, out: Path) -> None:
    repo.private = True
    refused(hub, out, HubAccessError, "token")
    refused(hub, out, HubAccessError, "token", token="hf_wrong")
    assert pull_from(hub, out, token=TOKEN).commit == repo.head().oid


@pytest.mark.parametrize(("name", "revision"), [("someone/else", None), (REPO, "nowhere"), (REPO, "f" * 40)])
def test_unknown_names_are_unknown(hub: StandIn, repo: Repo, out: Path, name: str, revision: str | None) -> None:
    with pytest.raises(HubNotFoundError) as caught:
        pull(name, out, revision=revision, endpoint=hub.url, token=TOKEN)
    assert caught.value.exit_code == 5


def test_the_token_does_not_follow_to_the_storage(hub: StandIn, repo: Repo, delta: Path, out: Path) -> None:
    hub.storage = StandIn()
    try:
        pull_from(hub, out, token=TOKEN)
        assert (out / STATE).read_bytes() == (delta / STATE).read_bytes()
        assert len(hub.storage.requests) == 1
        assert "authorization" not in hub.storage.requests[0][2]
    finally:
        hub.storage.close()


def test_what_is_there_is_not_touched(hub: StandIn, repo: Repo, out: Path, tmp_path: Path) -> None:
    for taken in (out, out.parent / "pulled.partial"):
        taken.mkdir()
        with pytest.raises(OutputExistsError):
            pull_from(hub, out)
        assert list(taken.iterdir()) == []
        taken.rmdir()
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError):
        pull_from(hub, out)
    with pytest.raises(UsageError):
        pull_from(hub, tmp_path / "absent" / "pulled")
    assert hub.requests == []


def test_an_output_that_appears_meanwhile_is_kept(
    hub: StandIn, repo: Repo, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appear(*_: Any) -> None:
        out.mkdir(exist_ok=True)

    monkeypatch.setattr("os.fsync", appear)
    with pytest.raises(OutputExistsError, match="meanwhile"):
        pull_from(hub, out)
    assert list(out.iterdir()) == []


def test_digests_agree_with_git() -> None:
    """Against what `git hash-object` prints."""
    from hfq.registry.hub.listing import digests_of

    found = digests_of(b"hello\n")
    assert found.git_sha1 == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert found.sha256 == hashlib.sha256(b"hello\n").hexdigest()
    assert digests_of(b"").git_sha1 == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_an_unwritable_folder_is_one_line(hub: StandIn, repo: Repo, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    with pytest.raises(UnreadableFileError, match="Permission denied"):
        pull_from(hub, out)
