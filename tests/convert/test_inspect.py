"""`hfq inspect` on checkpoints: the document, the text and the exit codes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import released_keys, released_shapes, tiny, write_checkpoint, write_expert

from hfq.cli import run
from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.derive import derive_architecture
from hfq.convert.inspect import inspect_checkpoint


def described(model: Any, **options: Any) -> dict[str, Any]:
    with open_checkpoint(model) as checkpoint:
        document = inspect_checkpoint(checkpoint, **options)
    assert json.loads(json.dumps(document)) == document
    return document


def test_an_expert_of_a14b(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = released_keys("wan2.2-i2v-A14B-expert", "original")
    made = derive_architecture(released_shapes("wan2.2-i2v-A14B-expert"), keys["config"], "x")
    write_checkpoint(tmp_path, made, "original-2.2", seed=None, shards=6)
    document = described(tmp_path, identity=False)
    assert document["layout"] == "original-2.2"
    assert document["architecture"]["model_type"] == "i2v"
    assert document["warnings"] == []
    for role in ("high_noise", "low_noise"):
        expert = document["experts"][role]
        assert expert["sites"] == {"blocks": 400, "vace_blocks": 0, "outside": 6}
        assert (expert["tensors"], expert["parameters"]) == (1095, 14_288_901_184)
        assert expert["dtypes"] == {"F32": {"tensors": 1095, "size_bytes": 57_155_604_736}}
        assert len(expert["files"]) == 6
        assert "bf16_root" not in expert
    assert run(["inspect", str(tmp_path), "--no-hash"]) == 0
    text = capsys.readouterr().out
    assert "406 linears = 400 in blocks + 6 outside" in text
    assert "high_noise (folder high_noise_model)" in text
    assert "14,288,901,184 parameters" in text
    assert "bf16 root" not in text


def test_roots_and_file_hashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path, tiny("vace"), "diffusers-pair", dtype="mixed", shards=2)
    assert run(["inspect", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document == described(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        for role, expert in checkpoint.experts.items():
            found = document["experts"][role]
            assert found["bf16_root"] == expert.identity().bf16_root
            assert found["exact_root"] == expert.identity().exact_root
            assert set(found["dtypes"]) == {"BF16", "F32"}
            assert found["sites"]["vace_blocks"] == 23
            for file in found["files"]:
                data = (tmp_path / file["name"]).read_bytes()
                assert file["sha256"] == hashlib.sha256(data).hexdigest()
                assert file["size_bytes"] == len(data)
    assert run(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for role in ("high_noise", "low_noise"):
        expert = document["experts"][role]
        for shown in (expert["bf16_root"], expert["exact_root"], *(file["sha256"] for file in expert["files"])):
            assert shown in text
    assert "+ 23 in VACE blocks +" in text


def test_an_f16_copy_is_called_another_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_expert(tmp_path, tiny().tensors(), dtype="F16", stem="low_noise")
    assert run(["inspect", str(tmp_path / "low_noise.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "warning: low_noise holds F16" in text
    assert "another base" in text
    assert "number of attention heads is unknown" in text


def test_two_copies_of_one_expert_are_noticed(tmp_path: Path) -> None:
    for folder in ("high_noise_model", "low_noise_model"):
        write_expert(tmp_path / folder, tiny().tensors(), role="high_noise")
    assert any("same weights" in warning for warning in described(tmp_path)["warnings"])


@pytest.mark.parametrize("as_json", [True, False])
def test_failures_have_codes_and_no_traceback(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_checkpoint(tmp_path / "bare", tiny(), "comfyui")
    damaged = tmp_path / "damaged_low_noise.safetensors"
    damaged.write_bytes(Path(bare).read_bytes()[:-1])
    for arguments, exit_code, code in [
        ([bare], 2, "missing-role"),
        ([str(tmp_path / "nothing")], 2, "missing-path"),
        ([str(damaged)], 1, "truncated"),
        ([f"high_noise={bare},high_noise={bare}"], 2, "usage"),
        ([bare, "--role", "middle"], 2, "usage"),
        ([], 2, "usage"),
    ]:
        assert run(["inspect", *arguments, *(["--json"] if as_json else [])]) == exit_code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert code in captured.err
        if as_json:
            assert json.loads(captured.out)["error"]["code"] == code
        else:
            assert captured.out == ""
    assert run(["inspect", bare, "--role", "high_noise", "--no-hash"]) == 0
    assert "high_noise (--role)" in capsys.readouterr().out


def test_sites_lists_every_name_that_a_recipe_can_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path, tiny(), "original-2.1")
    assert run(["inspect", str(tmp_path), "--no-hash", "--sites", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["experts"]["single"]["linears"]
    with open_checkpoint(tmp_path) as checkpoint:
        assert [entry["name"] for entry in listed] == [site.name for site in checkpoint.experts["single"].sites]
    assert {"name": "head.head", "shape": [48, 64], "input_group": "head.head"} in listed
    assert run(["inspect", str(tmp_path), "--no-hash", "--sites"]) == 0
    assert "linear        blocks.0.ffn.2  64x128" in capsys.readouterr().out
