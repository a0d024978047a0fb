"""The command line: what is printed where, the exit codes, and that nothing raw from a document reaches a terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from factory import make_delta

from hfq.cli import run
from hfq.migrations import HEAD
from hfq.registry import Registry, open_registry

Capture = pytest.CaptureFixture[str]


def hfq(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def hfq_json(capsys: Capture, *arguments: object) -> Any:
    code, out, _ = hfq(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_register_prints_the_id_and_says_when_it_knew_it(capsys: Capture, registry: Registry, tmp_path: Path) -> None:
    delta_id = make_delta(tmp_path / "delta")
    shown = f"delta:{delta_id[:12]}\n"
    code, out, err = hfq(capsys, "register", tmp_path / "delta")
    assert (code, out) == (0, shown)
    assert "already" not in err
    code, out, err = hfq(capsys, "register", tmp_path / "delta")
    assert (code, out) == (0, shown)
    assert "already registered" in err
    shutil.copytree(tmp_path / "delta", tmp_path / "copy")
    document = hfq_json(capsys, "register", tmp_path / "copy", "--alias", "wan22@prod")
    assert (document["id"], document["new"], document["new_folder"]) == (delta_id, False, True)
    assert registry.aliases() == {"wan22@prod": delta_id}


def test_a_delta_is_shown_by_folder_id_and_alias(capsys: Capture, registry: Registry, tmp_path: Path) -> None:
    delta_id = make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta", aliases=["wan22@prod"])
    texts = [hfq(capsys, "show", name) for name in (tmp_path / "delta", delta_id, delta_id[:6], "wan22@prod")]
    assert len(set(texts)) == 1
    code, out, err = texts[0]
    assert (code, err) == (0, "")
    for expected in (delta_id, "wan22@prod", "blocks.1.self_attn.q", str(tmp_path / "delta"), "registered"):
        assert expected in out
    assert hfq_json(capsys, "show", "wan22@prod")["id"] == delta_id


def test_list_is_a_table_that_filters_narrow(capsys: Capture, registry: Registry, tmp_path: Path) -> None:
    code, out, err = hfq(capsys, "list")
    assert (code, out) == (0, "")
    assert "no delta is registered" in err
    assert f"{registry.path}: there is no registry yet" in err
    assert hfq_json(capsys, "list") == {"deltas": [], "total": 0}
    for seed, percentile in (("a", 99.0), ("b", 99.9)):
        make_delta(tmp_path / seed, seed=seed, percentile=percentile)
        registry.register(tmp_path / seed)
    _, out, _ = hfq(capsys, "list")
    header, newest, oldest = out.splitlines()
    assert header.split() == [
        "DELTA", "RECIPE", "W/A", "PERCENTILE", "QUANTIZED", "KEPT", "STATE", "BASE", "REGISTERED", "ALIASES",
    ]  # fmt: skip
    assert ("99.9" in newest, "99 " in oldest) == (True, True)
    assert hfq(capsys, "list", "--percentile", "99.9")[1].splitlines() == [header, newest]
    assert hfq_json(capsys, "list", "--kept", "blocks.0.*", "--limit", 1)["total"] == 2
    _, out, err = hfq(capsys, "list", "--limit", 1)
    assert out.splitlines() == [header, newest]
    assert "1 of 2 shown" in err
    code, out, err = hfq(capsys, "list", "--preset", "nothing")
    assert (code, out) == (0, "")
    assert "no delta passes" in err
    assert hfq(capsys, "list", "--base", "wan22")[0] == 2


def test_lineage_has_three_formats(capsys: Capture, registry: Registry, tmp_path: Path) -> None:
    delta_id = make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    assert delta_id in hfq(capsys, "lineage", delta_id[:8])[1]
    assert hfq(capsys, "lineage", delta_id, "--format", "mermaid")[1].startswith("flowchart LR\n")
    as_json = hfq(capsys, "lineage", delta_id, "--format", "json")[1]
    assert json.loads(as_json) == hfq_json(capsys, "lineage", delta_id)
    assert hfq(capsys, "lineage", delta_id, "--format", "mermaid", "--json")[0] == 2


def test_aliases_are_set_moved_listed_and_removed(capsys: Capture, registry: Registry, tmp_path: Path) -> None:
    ids = []
    for seed in ("a", "b"):
        ids.append(make_delta(tmp_path / seed, seed=seed))
        registry.register(tmp_path / seed)
    assert hfq(capsys, "alias", "set", "wan22@prod", ids[0])[0] == 0
    code, out, err = hfq(capsys, "alias", "set", "wan22@prod", tmp_path / "b")
    assert (code, out) == (0, f"wan22@prod  delta:{ids[1][:12]}\n")
    assert f"was delta:{ids[0][:12]}" in err
    assert hfq(capsys, "alias", "list")[1] == f"wan22@prod  delta:{ids[1][:12]}\n"
    assert hfq_json(capsys, "alias", "list") == {"aliases": {"wan22@prod": ids[1]}}
    assert hfq(capsys, "alias", "rm", "wan22@prod")[0] == 0
    assert hfq(capsys, "alias", "rm", "wan22@prod")[0] == 5
    assert hfq_json(capsys, "alias", "list") == {"aliases": {}}


def test_whoever_asks_a_registry_that_is_not_there_is_told_where_it_would_be(
    capsys: Capture, registry: Registry
) -> None:
    for arguments in (["show", "wan22@prod"], ["lineage", "0123456789ab"], ["alias", "set", "wan22@prod", "0123456"]):
        code, _, err = hfq(capsys, *arguments)
        assert code == 5
        assert str(registry.path) in err
        assert "there is no registry yet" in err
    assert not registry.path.exists()


@pytest.mark.parametrize("arguments", [("show", ""), ("lineage", ""), ("register", ""), ("alias", "set", "a@b", ""),
                                       ("report", "", "-o", "x.html"), ("gate", "", "--workload", "x"),
                                       ("score", "review", "", "x.jsonl")])  # fmt: skip
def test_an_empty_delta_is_not_the_current_folder(
    capsys: Capture, registry: Registry, tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_delta(tmp_path / "delta")
    monkeypatch.chdir(tmp_path / "delta")
    code, _, err = hfq(capsys, *arguments)
    assert (code, "no DELTA given" in err) == (2, True), err


@pytest.mark.parametrize(
    ("arguments", "exit_code", "error_code"),
    [
        (["show", "0123456789ab"], 5, "unknown-id"),
        (["lineage", "nobody@prod"], 5, "unknown-id"),
        (["alias", "set", "abcd", "nobody"], 2, "usage"),
        (["register", "no-such-folder"], 2, "missing-path"),
        (["list", "--base", "?"], 2, "usage"),
        (["list", "--percentile", "high"], 2, "usage"),
    ],
)
def test_failures_have_codes(
    capsys: Capture, registry: Registry, arguments: list[str], exit_code: int, error_code: str
) -> None:
    code, out, err = hfq(capsys, *arguments, "--json")
    assert code == exit_code
    error = json.loads(out)["error"]
    assert (error["code"], error["exit_code"]) == (error_code, exit_code)
    assert err.startswith("hfq: ")
    assert err.count("\n") == 1


def test_a_changed_state_file_is_exit_3_and_a_short_one_exit_1(
    capsys: Capture, registry: Registry, tmp_path: Path
) -> None:
    make_delta(tmp_path / "delta")
    state = tmp_path / "delta" / "ptq_state.safetensors"
    data = state.read_bytes()
    state.write_bytes(data[:-1] + b"\xff")
    assert hfq(capsys, "register", tmp_path / "delta")[0] == 3
    state.write_bytes(data[:-1])
    assert hfq(capsys, "register", tmp_path / "delta")[0] == 1


def test_db_says_where_it_is_and_what_it_holds(capsys: Capture, registry: Registry, tmp_path: Path) -> None:
    assert hfq(capsys, "db", "path")[1] == f"{registry.path}\n"
    assert "absent" in hfq(capsys, "db", "status")[1]
    assert hfq_json(capsys, "db", "status")["state"] == "absent"
    assert not registry.path.exists()
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    status = hfq_json(capsys, "db", "status")
    assert (status["state"], status["revision"], status["counts"]["deltas"]) == ("current", HEAD, 1)
    assert hfq(capsys, "db", "upgrade")[1] == f"already at revision {HEAD}\n"


def test_db_upgrade_names_the_backup(capsys: Capture, old_registry: Registry) -> None:
    code, out, err = hfq(capsys, "list")
    assert (code, out) == (1, "")
    assert "`hfq db upgrade`" in err
    assert hfq_json(capsys, "db", "status")["state"] == "older"
    code, out, err = hfq(capsys, "db", "upgrade")
    assert (code, out) == (0, f"upgraded from revision 0001 to {HEAD}\n")
    assert "registry.sqlite.backup-0001-" in err
    assert hfq_json(capsys, "list")["total"] == 3


def test_db_upgrade_creates_a_registry(capsys: Capture, registry: Registry) -> None:
    assert hfq(capsys, "db", "upgrade")[1] == f"created at revision {HEAD}\n"
    assert registry.status().state == "current"


def test_db_check_reports_by_exit_code(capsys: Capture, registry: Registry, tmp_path: Path) -> None:
    # A check of nothing confirms nothing.
    code, out, err = hfq(capsys, "db", "check")
    assert (code, out) == (2, "")
    assert f"{registry.path}: no registry to check" in err
    code, out, _ = hfq(capsys, "db", "check", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["state"], found["error"]["code"]) == (2, False, "absent", "missing-path")
    assert not registry.path.exists()
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    assert hfq(capsys, "db", "check")[:2] == (0, "the registry is sound\n")
    (tmp_path / "delta" / "ptq_state.safetensors").write_bytes(b"other")
    code, out, _ = hfq(capsys, "db", "check", "--json")
    assert (code, json.loads(out)["ok"], json.loads(out)["findings"][0]["code"]) == (3, False, "folder-changed")
    shutil.rmtree(tmp_path / "delta")
    code, out, _ = hfq(capsys, "db", "check")
    assert code == 0
    assert "folder-gone" in out
    registry.path.write_text("not a database " * 100)
    assert hfq(capsys, "db", "check")[0] == 1


HOSTILE = "\x1b[2J\x1b]0;owned\x07 \x9b31m \u202egnp.exe \r\n high_noise"


def test_nothing_raw_from_a_document_reaches_a_terminal(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "de\x1b[31mlta\n"
    monkeypatch.setenv("HFQ_REGISTRY", str(tmp_path / "registry.sqlite"))
    delta_id = make_delta(
        folder, file_name=HOSTILE, layout=HOSTILE, reason=HOSTILE, model_type="\x1b[31m\u202e", description=HOSTILE
    )
    assert hfq(capsys, "register", folder)[0] == 0
    for arguments in (
        ["register", folder],
        ["list"],
        ["show", delta_id],
        ["lineage", delta_id],
        ["lineage", delta_id, "--format", "mermaid"],
        ["db", "check"],
        ["show", "\x1b[31m"],
        ["alias", "rm", "\x1b[31m"],
        ["register", "\x1b[31m"],
    ):
        _, out, err = hfq(capsys, *arguments)
        raw = {character for character in out + err if not character.isprintable()} - {"\n"}
        assert raw == set(), (arguments, out, err)
    record = hfq_json(capsys, "show", delta_id)
    assert record["base"]["experts"][0]["witnesses"][0]["layout"] == HOSTILE
    assert open_registry().folder(delta_id) == folder


def test_what_a_variant_took_and_what_people_decided_is_shown(
    capsys: Capture, registry: Registry, tmp_path: Path
) -> None:
    delta_id = make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    add = ("score", "add", delta_id, "--kernels", "simulated", "--device", "H200", "--setting", "steps=40")
    for latency in ("50", "41.5"):
        assert hfq(capsys, *add, "--latency", latency)[0] == 0
    outcomes = tmp_path / "reviews.jsonl"
    outcomes.write_text('{"video": "a.mp4", "accepted": true}\n{"video": "b.mp4", "accepted": false}\n')
    assert hfq(capsys, "score", "review", delta_id, outcomes)[0] == 0
    _, out, _ = hfq(capsys, "show", delta_id)
    lines = out.splitlines()
    shown = lines[lines.index("  costs and reviews") + 1 :]
    assert shown == [
        "  latency      41.5 s/clip on H200, simulated kernels, steps 40",
        "  reviews      1 of 2 clips accepted",
    ]
    history = [line for line in lines if "  measured  " in line]
    assert "device H200  kernels simulated  quantity latency  value 50 s/clip" in history[0]
    found = hfq_json(capsys, "show", delta_id)
    assert [(cost["value"], cost["unit"], cost["kernels"]) for cost in found["costs"]] == [
        (41.5, "s/clip", "simulated")
    ]
    assert found["reviews"] == {"clips": 2, "reviewed": 2, "accepted": 1}
