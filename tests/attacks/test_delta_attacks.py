"""Hostile deltas: each is refused with an error of its own and an exit code, before anything of it is used.

Where the document is edited, the attacker also recomputes the id: a right hash proves nothing about what it hashes.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made import forge, forge_state

import hfq
from hfq.cli import run
from hfq.schema.canonical import content_id
from hfq.schema.errors import (
    DigestMismatchError,
    DuplicateKeyError,
    HfqError,
    InconsistentDeltaError,
    MalformedFileError,
    MaskValueError,
    MissingPathError,
    MissingTensorError,
    SchemaViolationError,
    ShapeMismatchError,
    TooLargeError,
    TrailingBytesError,
    TruncatedFileError,
    UnexpectedTensorError,
    UnknownSchemaVersionError,
    UnreadableFileError,
    WrongIdError,
)

SITE = "blocks.1.ffn.2"
MASK = f"high_noise/{SITE}/mask"
Document = dict[str, Any]


def refused(delta: Path, error: type[HfqError], capsys: pytest.CaptureFixture[str], words: str = "") -> None:
    """Check that the library and the command refuse a delta: the class, its code, one line, no traceback."""
    with pytest.raises(error) as caught:
        hfq.load_delta(delta)
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert len(str(caught.value)) < 2000
    capsys.readouterr()
    assert run(["verify", str(delta), "--base", str(delta), "--json"]) == error.exit_code
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == error.code
    assert err.count("\n") == 1
    assert "Traceback" not in err


# --- the text of ptq_state.json --------------------------------------------------------------------------------------


def in_text(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(delta: Path) -> None:
        path = delta / "ptq_state.json"
        path.write_bytes(edit(path.read_bytes()))

    return apply


TEXTS: list[tuple[str, Callable[[Path], None], type[HfqError]]] = [
    ("empty", in_text(lambda text: b""), TruncatedFileError),
    ("cut", in_text(lambda text: text[:1000]), TruncatedFileError),
    ("cut inside a string", in_text(lambda text: text[: text.index(b"high_noise") + 3]), TruncatedFileError),
    ("padded", in_text(lambda text: text + b"{}"), TrailingBytesError),
    ("zeros at the end", in_text(lambda text: text + bytes(100)), TrailingBytesError),
    ("no JSON", in_text(lambda text: b"\x80\x04pickle"), MalformedFileError),
    ("a list", in_text(lambda text: b"[" + text + b"]"), SchemaViolationError),
    ("not UTF-8", in_text(lambda text: text.replace(b"tail", b"t\xffil", 1)), MalformedFileError),
    ("a key twice", in_text(lambda text: text.replace(b'{"base"', b'{"numerics":1,"base"', 1)), DuplicateKeyError),
    ("deep", in_text(lambda text: b'{"a":' * 100_000), MalformedFileError),
    ("deep inside", in_text(lambda text: text.replace(b'"numerics":1', b'"numerics":' + b"[" * 60 + b"]" * 60)),
     MalformedFileError),
    ("huge", in_text(lambda text: text + b" " * (33 << 20)), TooLargeError),
    ("many parts", in_text(lambda text: b"[" + b"[]," * 1_000_001 + b"[]]"), TooLargeError),
    ("NaN", in_text(lambda text: text.replace(b'"alpha":0.5', b'"alpha":NaN')), MalformedFileError),
    ("a number beyond binary64", in_text(lambda text: text.replace(b'"alpha":0.5', b'"alpha":1e999')),
     MalformedFileError),
    ("a number of 5,000 digits", in_text(lambda text: text.replace(b'"alpha":0.5', b'"alpha":' + b"9" * 5000)),
     MalformedFileError),
    ("half a character", in_text(lambda text: text.replace(b"tail-aware-hif4", b"\\ud800", 1)), MalformedFileError),
    ("edited", in_text(lambda text: text.replace(b'"alpha":0.5', b'"alpha":0.6')), WrongIdError),
    ("another id", in_text(lambda text: text.replace(b'"id":"', b'"id":"0123')), SchemaViolationError),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "error"), [case[1:] for case in TEXTS], ids=[case[0] for case in TEXTS])
def test_text(
    edit: Callable[[Path], None], error: type[HfqError], small_delta: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    delta = Path(shutil.copytree(small_delta, tmp_path / "delta"))
    edit(delta)
    refused(delta, error, capsys)


# --- what the document says ------------------------------------------------------------------------------------------


def site(document: Document) -> Document:
    entry: Document = document["sites"]["high_noise"][SITE]
    return entry


def drop_role(part: Document) -> None:
    del part["low_noise"]


def reroot(document: Document) -> None:
    """Make the roots follow from the digests again."""
    from hfq.convert.identity import bf16_root_of

    for expert in document["base"]["experts"].values():
        expert["bf16_root"] = bf16_root_of(
            (name, tuple(entry["shape"]), entry["bf16"]) for name, entry in expert["tensors"].items()
        )


def and_reroot(edit: Callable[[Document], object]) -> Callable[[Document], None]:
    def both(document: Document) -> None:
        edit(document)
        reroot(document)

    return both


def tensors(document: Document) -> Document:
    found: Document = document["base"]["experts"]["high_noise"]["tensors"]
    return found


def rule(document: Document) -> Document:
    found: Document = document["recipe"]["route"][0]
    return found


CLAIMS: list[tuple[str, Callable[[Document], object], type[HfqError], str]] = [
    ("version 2", lambda d: d.update(schema="hfq.ptq-state/2"), UnknownSchemaVersionError, "install hfq 2.x"),
    ("version 0", lambda d: d.update(schema="hfq.ptq-state/0"), UnknownSchemaVersionError, ""),
    ("another document", lambda d: d.update(schema="hfq.report/1"), SchemaViolationError, "another kind"),
    ("unknown key", lambda d: d.update(code="import os"), SchemaViolationError, "code"),
    ("unknown key of a site", lambda d: site(d).update(file="../../etc/passwd"), SchemaViolationError, "file"),
    ("missing key", lambda d: d.pop("calibration"), SchemaViolationError, "calibration"),
    ("numerics of the future", lambda d: d.update(numerics=2), SchemaViolationError, "numerics"),
    ("a line feed after a digest", lambda d: site(d).update(digest="0" * 64 + "\n"), SchemaViolationError, "digest"),
    ("a role of its own", lambda d: d["sites"].update(middle=d["sites"]["low_noise"]), SchemaViolationError, "middle"),
    ("a path as a site", lambda d: d["sites"]["low_noise"].update({"../x": site(d)}), SchemaViolationError, "../x"),
    ("a path as a tensor", lambda d: site(d)["ops"][0].update(tensor="../mask"), SchemaViolationError, "tensor"),
    ("a negative extent", lambda d: tensors(d)["head.head.bias"].update(shape=[-1]), SchemaViolationError, "shape"),
    ("a root that does not follow", lambda d: d["base"]["experts"]["high_noise"].update(bf16_root="0" * 64),
     InconsistentDeltaError, "root"),
    ("a digest that its root does not know", lambda d: tensors(d)["head.head.bias"].update(bf16="0" * 64),
     InconsistentDeltaError, "root"),
    ("a base without a tensor", and_reroot(lambda d: tensors(d).pop("head.head.bias")),
     InconsistentDeltaError, "no whole Wan model"),
    ("a base with a tensor more", and_reroot(lambda d: tensors(d).update(x={"shape": [1], "bf16": "0" * 64})),
     InconsistentDeltaError, "no whole Wan model"),
    ("a base with another shape", and_reroot(lambda d: tensors(d)[f"{SITE}.weight"].update(shape=[128, 64])),
     InconsistentDeltaError, "no whole Wan model"),
    ("a base of another kind", lambda d: d["base"].update(model_type="vace"),
     InconsistentDeltaError, "no whole Wan model"),
    ("an expert without sites", lambda d: drop_role(d["sites"]), InconsistentDeltaError, "different experts"),
    ("sites without an expert", lambda d: drop_role(d["base"]["experts"]), InconsistentDeltaError, "different experts"),
    ("a linear without a route", lambda d: d["sites"]["high_noise"].pop("head.head"),
     InconsistentDeltaError, "without a route"),
    ("a site that is no linear", lambda d: d["sites"]["high_noise"].update({"blocks.0.norm3": site(d)}),
     InconsistentDeltaError, "the base lacks"),
    ("kept where the recipe quantizes",
     lambda d: d["sites"]["high_noise"].update({SITE: {k: site(d)[k] for k in ("rule", "reason")} | {"route": "keep"}}),
     InconsistentDeltaError, "route"),
    ("another reason", lambda d: site(d).update(reason="because"), InconsistentDeltaError, "because"),
    ("another rule", lambda d: site(d).update(rule=1), InconsistentDeltaError, "rule 1"),
    ("another weight format", lambda d: site(d)["weight"].update(profile="amct"),
     InconsistentDeltaError, "amct"),
    ("another activation format", lambda d: site(d)["ops"][-1].update(profile="pto"), InconsistentDeltaError, "pto"),
    ("an activation that is not quantized",
     lambda d: site(d).update(ops=[site(d)["ops"][0], {"op": "qdq", "format": "bf16"}]),
     InconsistentDeltaError, "bf16"),
    ("ops in another order", lambda d: site(d)["ops"].reverse(), InconsistentDeltaError, "ops"),
    ("an op twice", lambda d: site(d)["ops"].insert(0, site(d)["ops"][0]), InconsistentDeltaError, "ops"),
    ("no op", lambda d: site(d).update(ops=[]), SchemaViolationError, "ops"),
    ("an op of its own", lambda d: site(d)["ops"].insert(0, {"op": "eval"}), SchemaViolationError, "eval"),
    ("no calibration", lambda d: d.update(calibration=None), InconsistentDeltaError, "calibration"),
    ("a recipe without stages", lambda d: d["recipe"].update(stage=[]), InconsistentDeltaError, "ops"),
    ("a recipe that routes nothing", lambda d: rule(d).update(match=["nothing.*"]),
     InconsistentDeltaError, "matches no"),
    ("a recipe of the other kind", lambda d: d["recipe"]["route"].reverse(), InconsistentDeltaError, ""),
    ("a recipe with an impossible clamp", lambda d: d["recipe"]["stage"][0].update(mask_min=1e9),
     InconsistentDeltaError, "mask_min"),
    ("a recipe for an expert that is not there", lambda d: rule(d).update(expert="single"), InconsistentDeltaError, ""),
    ("a recipe of 16,000 patterns", lambda d: rule(d).update(match=["*"] * 500, to="keep") or
     d["recipe"].update(route=d["recipe"]["route"] * 32), InconsistentDeltaError, "too many patterns"),
    ("fewer tensors than named", lambda d: d["state"].update(tensors=41), MissingTensorError, "41"),
    ("more tensors than named", lambda d: d["state"].update(tensors=39), UnexpectedTensorError, "39"),
    ("a shorter file than named", lambda d: d["state"].update(size_bytes=d["state"]["size_bytes"] + 1),
     TruncatedFileError, ""),
    ("a longer file than named", lambda d: d["state"].update(size_bytes=d["state"]["size_bytes"] - 1),
     TrailingBytesError, ""),
    ("another file than named", lambda d: d["state"].update(sha256="0" * 64), DigestMismatchError, ""),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "error", "words"), [case[1:] for case in CLAIMS], ids=[case[0] for case in CLAIMS])
def test_claims(
    edit: Callable[[Document], object], error: type[HfqError], words: str, small_delta: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    refused(forge(small_delta, tmp_path / "delta", edit), error, capsys, words)


def test_a_calibration_that_nothing_used(small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hfq.open_checkpoint(small_base) as checkpoint:
        hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / "honest").close()
    lie = forge(tmp_path / "honest", tmp_path / "lie", lambda d: d.update(calibration={"id": "0" * 64, "prompts": []}))
    refused(lie, InconsistentDeltaError, capsys, "calibration")


# --- the state file, with a document that fits it --------------------------------------------------------------------


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state.update({name: value})


def poke(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state[MASK].index_fill_(0, torch.tensor(7), value)


STATES: list[tuple[str, Callable[[dict[str, torch.Tensor]], object], type[HfqError]]] = [
    ("a mask is missing", lambda state: state.pop(MASK), MissingTensorError),
    ("a tensor of a kept linear", put("high_noise/head.head/mask", torch.ones(64)), UnexpectedTensorError),
    ("a tensor of no linear", put("high_noise/blocks.9.ffn.2/mask", torch.ones(128)), UnexpectedTensorError),
    ("a tensor of no expert", put("middle/x/mask", torch.ones(64)), UnexpectedTensorError),
    ("a tensor that no op uses", put(f"high_noise/{SITE}/extra", torch.ones(1)), UnexpectedTensorError),
    ("a tensor with a path for a name", put("../../x", torch.ones(1)), UnexpectedTensorError),
    ("a mask too short", put(MASK, torch.ones(127)), ShapeMismatchError),
    ("a mask of another dtype", put(MASK, torch.ones(128, dtype=torch.float64)), ShapeMismatchError),
    ("a mask of two dimensions", put(MASK, torch.ones(1, 128)), ShapeMismatchError),
    ("NaN in a mask", poke(float("nan")), MaskValueError),
    ("infinity in a mask", poke(float("inf")), MaskValueError),
    ("zero in a mask", poke(0.0), MaskValueError),
    ("a negative in a mask", poke(-1.0), MaskValueError),
    ("a subnormal in a mask", poke(1e-40), MaskValueError),
]


@pytest.mark.parametrize(("edit", "error"), [case[1:] for case in STATES], ids=[case[0] for case in STATES])
def test_states(
    edit: Callable[[dict[str, torch.Tensor]], object], error: type[HfqError], small_delta: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    refused(forge_state(small_delta, tmp_path / "delta", edit), error, capsys)


# --- the state file alone --------------------------------------------------------------------------------------------


def of_bytes(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(edit(path.read_bytes())) and None


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def header_twice(data: bytes) -> bytes:
    """A header that names one tensor twice, of the same length as the honest one."""
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length]
    first, second = (name.encode() for name in sorted(json.loads(header))[:2])
    changed = header.replace(b'"' + second + b'"', b'"' + first + b'"')
    changed = changed.rstrip() + b" " * (length - len(changed.rstrip()))
    return data[:8] + changed + data[8 + length :]


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILES: list[tuple[str, Callable[[Path], None], type[HfqError]]] = [
    ("cut", of_bytes(lambda data: data[:-1]), TruncatedFileError),
    ("cut in the header", of_bytes(lambda data: data[:100]), TruncatedFileError),
    ("empty", of_bytes(lambda data: b""), TruncatedFileError),
    ("padded", of_bytes(lambda data: data + b"\0"), TrailingBytesError),
    ("one bit", of_bytes(flip_last), DigestMismatchError),
    ("a name twice", of_bytes(header_twice), DuplicateKeyError),
    ("a header of exabytes", of_bytes(lambda data: b"\xff" * 8 + data[8:]), TooLargeError),
    ("a FIFO", replace_by_fifo, UnreadableFileError),
    ("a folder", replace_by_folder, UnreadableFileError),
    ("absent", lambda path: path.unlink(), MissingPathError),
]


@pytest.mark.parametrize(("edit", "error"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_files(
    edit: Callable[[Path], None], error: type[HfqError], small_delta: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    delta = Path(shutil.copytree(small_delta, tmp_path / "delta"))
    edit(delta / "ptq_state.safetensors")
    refused(delta, error, capsys)


def test_a_fifo_as_document_does_not_hang(
    small_delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delta = Path(shutil.copytree(small_delta, tmp_path / "delta"))
    replace_by_fifo(delta / "ptq_state.json")
    refused(delta, UnreadableFileError, capsys)


def test_escape_sequences_in_a_reason_do_not_reach_the_terminal(
    small_delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2J\x9b31m\u202e"

    def edit(document: Document) -> None:
        rule(document)["reason"] = evil
        for sites in document["sites"].values():
            for entry in sites.values():
                if entry["rule"] == 0:
                    entry["reason"] = f"blocks.*: {evil}"

    delta = forge(small_delta, tmp_path / "delta", edit)
    for more in ([], ["--json"]):
        assert run(["inspect", str(delta), *more]) == 0
        assert not set(evil) & set("\x1b\x9b\u202e") & set(capsys.readouterr().out)


def test_no_attack_is_the_honest_delta(small_delta: Path, tmp_path: Path) -> None:
    # The forger's tools themselves change nothing that is checked.
    honest = forge_state(small_delta, tmp_path / "delta", lambda state: None)
    with hfq.load_delta(honest) as forged, hfq.load_delta(small_delta) as delta:
        assert forged.id == delta.id == content_id(delta.document)
