"""What tests of the Hub share: a delta's report, and a push to the stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from factory import write_json
from stand_in import TOKEN, StandIn

from hfq.registry.hub import Pushed, push
from hfq.schema.documents import read_document

REPO = "someone/wan22-tail"
BASE = "Wan-AI/Wan2.2-T2V-A14B"


def push_to(hub: StandIn, folder: Path, **how: Any) -> Pushed:
    given: dict[str, Any] = {"base_model": BASE, "license": "apache-2.0", "endpoint": hub.url, "token": TOKEN, **how}
    return push(folder, REPO, **given)


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
