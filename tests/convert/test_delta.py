"""Reading and describing deltas: what is there, what is counted, and which damage gives which error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import released_shapes

import hfq
from hfq.convert.delta import state_name
from hfq.convert.delta_inspect import describe_delta, inspect_delta
from hfq.convert.derive import derive_architecture
from hfq.convert.identity import bf16_root_of
from hfq.convert.routing import route_sites
from hfq.convert.safetensors_writer import write_safetensors
from hfq.schema.canonical import canonical_json, content_id, sha256_hex
from hfq.schema.errors import HfqError, MissingPathError, SchemaViolationError


@pytest.fixture
def delta(small_delta: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(small_delta, tmp_path / "delta"))


def test_what_a_loaded_delta_says(small_delta: Path) -> None:
    with hfq.load_delta(small_delta) as delta:
        assert delta.id == content_id(delta.document) == json.loads((small_delta / "ptq_state.json").read_text())["id"]
        assert delta.roles == ["high_noise", "low_noise"]
        assert len(delta.quantized("low_noise")) == 20
        assert delta.routes["high_noise"]["head.head"].to == "keep"
        assert list(delta.state("high_noise", "blocks.0.ffn.2")) == ["mask"]
        assert delta.state("high_noise", "head.head") == {}
        assert delta.recipe.name == "tail-aware-hif4"


def test_the_summary_counts(small_delta: Path) -> None:
    with hfq.load_delta(small_delta) as delta:
        found = describe_delta(delta)
    assert found["restored_bits_per_weight"] == 4.5
    expected = (
        8
        * (small_delta / "ptq_state.safetensors").stat().st_size
        / found["experts"]["high_noise"]["quantized_weights"]
        / 2
    )
    assert found["stored_bits_per_weight"] == pytest.approx(expected)
    assert found["experts"]["low_noise"]["kept"] == 6
    assert set(found["error"]) == {"high_noise", "low_noise"}


def test_layout_and_whitespace_of_the_json_do_not_matter(delta: Path, small_delta: Path) -> None:
    path = delta / "ptq_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4, sort_keys=False))
    with hfq.load_delta(delta) as opened, hfq.load_delta(small_delta) as original:
        assert opened.id == original.id


def test_links_to_the_files_are_fine(small_delta: Path, tmp_path: Path) -> None:
    # The Hub's cache is made of them.
    (tmp_path / "delta").mkdir()
    for name in ("ptq_state.json", "ptq_state.safetensors"):
        (tmp_path / "delta" / name).symlink_to(small_delta / name)
    hfq.load_delta(tmp_path / "delta").close()


def test_provenance_and_report_are_not_needed(delta: Path) -> None:
    (delta / "provenance.json").unlink()
    (delta / "report.json").unlink()
    found, _ = inspect_delta(delta)
    assert found["error"] == {}


@pytest.mark.parametrize("name", ["ptq_state.json", "ptq_state.safetensors"])
def test_an_absent_file_is_named(delta: Path, name: str) -> None:
    (delta / name).unlink()
    with pytest.raises(MissingPathError, match=name):
        hfq.load_delta(delta)


def test_no_folder_and_a_file_are_no_delta(delta: Path) -> None:
    for path in (delta / "nothing", delta / "ptq_state.json"):
        with pytest.raises(MissingPathError):
            hfq.load_delta(path)


def report_of(delta: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((delta / "report.json").read_text())
    return document


@pytest.mark.parametrize(
    "edit",
    [
        lambda report: report.update(extra=1),
        lambda report: report.update(experts={}),
        lambda report: report.update(delta="0"),
        lambda report: report["experts"].update(middle=report["experts"]["low_noise"]),
        lambda report: report["experts"]["low_noise"].update(weight_nmse="<script>"),
        lambda report: report["experts"]["low_noise"].update(weight_nmse=-1),
        lambda report: report["experts"]["low_noise"]["blocks"].update({"<script>": {"weight_nmse": 1}}),
    ],
)
def test_a_report_outside_its_schema_is_refused_clearly(delta: Path, edit: Any) -> None:
    report = report_of(delta)
    edit(report)
    (delta / "report.json").write_text(json.dumps(report))
    with pytest.raises(SchemaViolationError, match=r"report\.json"):
        inspect_delta(delta)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[" * 100000, b'{"schema": "hfq.report/9"}', b"\xff", b"{}" * 2, b'{"a": 1e999}', b"null"]
)
def test_a_broken_report_is_refused_clearly(delta: Path, data: bytes) -> None:
    (delta / "report.json").write_bytes(data)
    with pytest.raises(HfqError, match=r"report\.json") as caught:
        inspect_delta(delta)
    assert caught.value.exit_code == 1


def test_a_report_of_another_delta_is_not_shown(delta: Path) -> None:
    report = report_of(delta)
    report["delta"] = "0" * 64
    (delta / "report.json").write_text(json.dumps(report))
    assert inspect_delta(delta)[0]["error"] == {}


def test_errors_that_are_unknown_are_left_out(delta: Path) -> None:
    report = report_of(delta)
    report["experts"]["low_noise"].update(weight_nmse=None, output_nmse=None)
    (delta / "report.json").write_text(json.dumps(report))
    _, text = inspect_delta(delta)
    assert "error       high_noise: weight NMSE" in text
    assert "error       low_noise" not in text


def test_a_fifo_as_report_does_not_hang(delta: Path) -> None:
    (delta / "report.json").unlink()
    os.mkfifo(delta / "report.json")
    assert inspect_delta(delta)[0]["error"] == {}


def write_14b(folder: Path) -> Path:
    """The delta of a Wan 2.2 T2V-A14B with every block linear masked: true names, true sizes, no base."""
    shapes = released_shapes("wan2.1-t2v-14B")
    architecture = derive_architecture(shapes, None, "test")
    recipe = hfq.load_recipe("tail-aware-hif4")
    sites = {site.name: site for site in architecture.sites()}
    roles = ("high_noise", "low_noise")
    tensors = {name: {"shape": list(shape), "bf16": sha256_hex(name.encode())} for name, shape in shapes.items()}
    root = bf16_root_of((name, tuple(entry["shape"]), entry["bf16"]) for name, entry in tensors.items())
    routes = route_sites(recipe, dict.fromkeys(roles, sites))
    entries: dict[str, dict[str, Any]] = {role: {} for role in roles}
    state = {}
    for role in roles:
        for name, route in routes[role].items():
            entries[role][name] = {"route": route.to, "rule": route.rule, "reason": route.reason}
            if route.to == "quantize":
                state[state_name(role, name, "mask")] = torch.ones(sites[name].in_features)
                ops = [{"op": "mask", "tensor": "mask"}, {"op": "qdq", **recipe.activation}]
                entries[role][name] |= {"weight": recipe.weight, "ops": ops, "digest": "0" * 64}
    folder.mkdir()
    sha256 = write_safetensors(folder / "ptq_state.safetensors", state)
    size = (folder / "ptq_state.safetensors").stat().st_size
    document: dict[str, Any] = {
        "schema": "hfq.ptq-state/1",
        "numerics": 1,
        "base": {"model_type": "t2v", "experts": {role: {"bf16_root": root, "tensors": tensors} for role in roles}},
        "recipe": recipe.document,
        "calibration": {"id": "0" * 64, "prompts": ["1" * 64] * 1000},
        "selection": None,
        "state": {"sha256": sha256, "size_bytes": size, "tensors": len(state)},
        "sites": entries,
    }
    document["id"] = content_id(document)
    (folder / "ptq_state.json").write_bytes(canonical_json(document))
    return folder


def test_the_delta_of_a_14b_model_is_small_and_is_read(tmp_path: Path) -> None:
    folder = write_14b(tmp_path / "delta")
    with hfq.load_delta(folder) as delta:
        found = describe_delta(delta)
    assert [expert["quantized"] for expert in found["experts"].values()] == [400, 400]
    assert [expert["kept"] for expert in found["experts"].values()] == [6, 6]
    assert (folder / "ptq_state.json").stat().st_size < 1_500_000
    assert 15e6 < found["state_bytes"] < 22e6
    assert found["stored_bits_per_weight"] < 0.01


def test_the_ten_lines_of_the_documentation_restore_a_delta(small_delta: Path, small_base: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "delta-format.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"DELTA"', repr(str(small_delta))).replace('"MODEL"', repr(str(small_base))), names)
    assert names["operand"].dtype == torch.bfloat16
