"""`--trust-witness`: what this machine hashed before is believed while nothing changed, and never otherwise."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from made import bytes_of, write_base
from synthetic import tiny, write_expert

import hfq
from hfq.cli import run
from hfq.convert import scan_parts, witness_store
from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.scan import Scan


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hfq" / "witnesses"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_expert(tmp_path / "base", tiny().tensors(), shards=2)
    return tmp_path / "base"


def scanned(base: Path) -> Scan:
    with open_checkpoint(base) as checkpoint:
        scan = checkpoint.experts["single"].scan(trust_witness=True)
        scan.run()
    return scan


def trusted(scan: Scan) -> list[bool]:
    return [witness.trusted for witness in scan.witnesses]


def test_an_unchanged_file_is_not_read(base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scanned(base)
    assert trusted(first) == [False, False]
    assert cache.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in cache.iterdir())

    def refuse(*_: Any) -> None:
        raise AssertionError("a chunk was hashed")

    monkeypatch.setattr(scan_parts.TensorPass, "digest_chunk", refuse)
    again = scanned(base)
    assert trusted(again) == [True, True]
    assert again.identity == first.identity
    assert [w.sha256 for w in again.witnesses] == [w.sha256 for w in first.witnesses]


def test_without_the_option_every_byte_is_hashed(base: Path) -> None:
    scanned(base)
    with open_checkpoint(base) as checkpoint:
        scan = checkpoint.experts["single"].scan()
        scan.run()
    assert trusted(scan) == [False, False]


def test_the_same_size_and_time_but_other_bytes(base: Path) -> None:
    before = scanned(base)
    path = max(base.glob("*.safetensors"))
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    now = scanned(base)
    assert trusted(now) == [True, False]  # the time of change cannot be set
    assert now.identity.bf16_root != before.identity.bf16_root


def test_a_copy_is_another_file(base: Path, tmp_path: Path) -> None:
    scanned(base)
    shutil.copytree(base, tmp_path / "copy")
    assert trusted(scanned(tmp_path / "copy")) == [False, False]


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.update(version="hfq.witness/1"),
        lambda record: record.update(machine="elsewhere"),
        lambda record: record.update(sha256="0" * 63),
        lambda record: record.update(sha256=None),
        lambda record: record["stamp"].reverse(),
        lambda record: record["tensors"].popitem(),
        lambda record: record["tensors"].update({name: ["x"] for name in record["tensors"]}),
        lambda record: record.update(tensors=[]),
        lambda record: record.pop("non_finite"),
        lambda record: record.update(non_finite={name: {} for name in record["tensors"]}),
        lambda record: record.clear(),
    ],
)
def test_a_damaged_record_counts_as_none(damage: Any, base: Path, cache: Path) -> None:
    expected = scanned(base).identity
    for path in cache.iterdir():
        record = json.loads(path.read_bytes())
        damage(record)
        path.write_text(json.dumps(record))
    found = scanned(base)
    assert trusted(found) == [False, False]
    assert found.identity == expected
    assert trusted(scanned(base)) == [True, True]  # and is replaced


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}{}"])
def test_a_torn_record_counts_as_none(content: bytes, base: Path, cache: Path) -> None:
    scanned(base)
    for path in cache.iterdir():
        path.write_bytes(content)
    assert trusted(scanned(base)) == [False, False]


def test_a_folder_that_others_can_write_to_is_not_believed(base: Path, cache: Path) -> None:
    scanned(base)
    cache.chmod(0o777)
    assert trusted(scanned(base)) == [False, False]


def test_a_cache_that_cannot_be_written_is_no_error(base: Path, cache: Path) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the folder should be")
    assert trusted(scanned(base)) == [False, False]


def test_old_records_go(base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_store, "_MOST_RECORDS", 3)
    cache.mkdir(parents=True, mode=0o700)
    for number in range(4):
        (cache / f"old-{number}.json").write_text("{}")
        os.utime(cache / f"old-{number}.json", ns=(number, number))
    scanned(base)
    left = sorted(path.name for path in cache.iterdir())
    assert len(left) == 3
    assert "old-3.json" in left
    assert "old-2.json" not in left


def test_a_conversion_says_what_it_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base")
    plain = ["convert", str(base), "--recipe", "rtn-hif4", "--json", "-o"]
    assert run([*plain, str(tmp_path / "a")]) == 0
    assert run([*plain, str(tmp_path / "b"), "--trust-witness"]) == 0
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    files = [
        [(file["name"], file["sha256"], file["trusted"]) for expert in document["base"]["experts"].values()
         for file in expert["files"]]
        for document in (json.loads((tmp_path / name / "provenance.json").read_bytes()) for name in "ab")
    ]  # fmt: skip
    assert [entry[:2] for entry in files[0]] == [entry[:2] for entry in files[1]]
    assert not any(entry[2] for entry in files[0])
    assert all(entry[2] for entry in files[1])
    capsys.readouterr()
    assert run(["verify", str(tmp_path / "a"), "--base", str(base), "--trust-witness"]) == 0
    assert run(["inspect", str(base), "--trust-witness", "--json"]) == 0
    assert '"trusted": true' in capsys.readouterr().out
    assert run(["inspect", str(base), "--no-file-hashes", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert all("sha256" not in file for expert in document["experts"].values() for file in expert["files"])
    assert {expert["bf16_root"] for expert in document["experts"].values()} == {
        hfq.load_delta(tmp_path / "a").root(role) for role in ("high_noise", "low_noise")
    }


def test_trust_does_not_hide_another_base(tmp_path: Path) -> None:
    first, second = write_base(tmp_path / "a"), write_base(tmp_path / "b", seed=1)
    assert run(["convert", str(first), "--recipe", "rtn-hif4", "-o", str(tmp_path / "delta")]) == 0
    assert run(["inspect", str(second)]) == 0
    assert run(["verify", str(tmp_path / "delta"), "--base", str(second), "--trust-witness"]) == 3
