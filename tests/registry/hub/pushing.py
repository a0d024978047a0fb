"""What tests of the Hub share: deltas, a push to the stand-in, the command line, and a look at the rows."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factory import make_document, make_provenance, write_json
from safetensors.numpy import save_file
from stand_in import TOKEN, StandIn

from hfq.cli import run
from hfq.registry import Registry
from hfq.registry.hub import Pushed, push
from hfq.schema.documents import read_document

REPO = "someone/wan22-tail"
BASE = "Wan-AI/Wan2.2-T2V-A14B"
ROLES = ("high_noise", "low_noise")

Capture = pytest.CaptureFixture[str]


def push_to(hub: StandIn, folder: Path, **how: Any) -> Pushed:
    given: dict[str, Any] = {"base_model": BASE, "license": "apache-2.0", "endpoint": hub.url, "token": TOKEN, **how}
    return push(folder, REPO, **given)


def make_large_delta(folder: Path) -> str:
    """A delta of 4 MB: more than the client reads at once."""
    folder.mkdir()
    mask = np.random.default_rng(0).random(1 << 20, dtype=np.float32)
    save_file({"high_noise.blocks.2.self_attn.q.mask": mask}, folder / "ptq_state.safetensors")
    data = (folder / "ptq_state.safetensors").read_bytes()
    state = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data), "tensors": 1}
    document = make_document(state=state)
    write_json(folder / "ptq_state.json", document)
    write_json(folder / "provenance.json", make_provenance(document))
    return str(document["id"])


def id_of(folder: Path) -> str:
    return str(json.loads((folder / "ptq_state.json").read_text())["id"])


def add_report(folder: Path) -> None:
    document = read_document(folder / "ptq_state.json", "ptq-state")
    site = {"weight_nmse": 0.0089, "weight_sqnr_db": 20.5, "output_nmse": None, "bits_per_weight": 4.5}
    worst = {**site, "weight_nmse": 0.0123}
    experts = {
        role: {
            "weight_nmse": 0.0091,
            "output_nmse": 0.011 if role == "low_noise" else None,
            "blocks": {"blocks.2": {"weight_nmse": 0.0091, "output_nmse": None}},
            "sites": {"blocks.2.self_attn.q": site, "blocks.3.self_attn.q": worst},
        }
        for role in document["base"]["experts"]
    }
    report = {"schema": "hfq.report/1", "delta": document["id"], "experts": experts, "warnings": ["few rows_kept"]}
    write_json(folder / "report.json", report)


def hfq(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def hfq_json(capsys: Capture, *arguments: object) -> Any:
    code, out, err = hfq(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def rows(registry: Registry, query: str) -> list[Any]:
    with closing(sqlite3.connect(registry.path)) as connection:
        return connection.execute(query).fetchall()
