"""Verification against the right base, the wrong one, the wrong expert, and a base that changed in one bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from made import forge, forge_state, write_base
from synthetic import tiny, write_checkpoint

import hfq
from hfq.convert.restore import restore_site
from hfq.convert.verify import Verification
from hfq.schema.errors import DigestMismatchError, UsageError, WrongBaseError, WrongRoleError


def verified(delta: Path, base: Any, role: str | None = None, given: str | None = None) -> Verification:
    with hfq.load_delta(delta) as opened, hfq.open_checkpoint(base, role=given) as checkpoint:
        return hfq.verify(opened, checkpoint, role=role)


def test_the_right_base(small_delta: Path, small_base: Path) -> None:
    result = verified(small_delta, small_base)
    assert result.ok
    assert result.sites == {"high_noise": 20, "low_noise": 20}
    assert result.kept == {"high_noise": 6, "low_noise": 6}
    assert result.to_json()["mismatches"] == []


def test_one_expert_of_two(small_delta: Path, small_base: Path) -> None:
    assert list(verified(small_delta, small_base, role="low_noise").sites) == ["low_noise"]
    folder = small_base / "high_noise_model"
    assert verified(small_delta, folder, role="high_noise").ok
    with pytest.raises(UsageError, match="--expert"):
        verified(small_delta, folder)


def test_the_right_file_under_the_wrong_role(small_delta: Path, small_base: Path) -> None:
    folder = small_base / "high_noise_model"
    with pytest.raises(WrongRoleError, match="give them as high_noise"):
        verified(small_delta, folder, given="single")
    result = verified(small_delta, folder, given="low_noise", role="low_noise")
    assert isinstance(result.mismatches[0].error, WrongRoleError)


def test_swapped_experts_name_the_right_role(small_delta: Path, small_base: Path) -> None:
    swapped = {"high_noise": small_base / "low_noise_model", "low_noise": small_base / "high_noise_model"}
    result = verified(small_delta, swapped)
    error = result.mismatches[0].error
    assert isinstance(error, WrongRoleError)
    assert error.exit_code == 3
    assert "these are the weights of the expert low_noise" in str(error)
    with pytest.raises(WrongRoleError):
        result.raise_first()


def test_another_base_is_named_by_its_first_differing_tensor(small_delta: Path, tmp_path: Path) -> None:
    result = verified(small_delta, write_base(tmp_path / "other", seed=1))
    assert len(result.mismatches) > 100
    assert isinstance(result.mismatches[0].error, WrongBaseError)
    assert result.mismatches[0].name in str(result.mismatches[0].error)


@pytest.mark.parametrize("name", ["blocks.1.ffn.2.weight", "blocks.0.norm3.bias", "head.head.weight"])
def test_one_flipped_bit_is_found_and_named(name: str, small_delta: Path, tmp_path: Path) -> None:
    def flip(canonical: str, values: torch.Tensor) -> torch.Tensor:
        rounded = values.bfloat16()
        if canonical == name:
            rounded.view(-1).view(torch.int16)[-1] ^= 1
        return rounded.float()

    result = verified(small_delta, write_base(tmp_path / "base", change=flip))
    assert [(entry.role, entry.name) for entry in result.mismatches] == [("high_noise", name), ("low_noise", name)]
    assert isinstance(result.mismatches[0].error, WrongBaseError)


def test_a_bit_below_bf16_is_not_another_base(small_delta: Path, tmp_path: Path) -> None:
    def nudge(canonical: str, values: torch.Tensor) -> torch.Tensor:
        bits = values.view(torch.int32)
        return torch.where(bits & 0xFFFF == 0x1234, bits ^ 1, bits).view(torch.float32)

    assert verified(small_delta, write_base(tmp_path / "base", change=nudge)).ok


def test_a_deeper_model_is_another_base(small_delta: Path, tmp_path: Path) -> None:
    result = verified(small_delta, write_checkpoint(tmp_path / "base", tiny(num_layers=3), "original-2.2"))
    assert {entry.error.code for entry in result.mismatches} == {"digest-mismatch"}
    assert all("blocks.2." in entry.name for entry in result.mismatches)


def test_a_lying_site_digest_is_found(small_delta: Path, small_base: Path, tmp_path: Path) -> None:
    site = "blocks.1.cross_attn.o"
    lie = forge(
        small_delta, tmp_path / "lie", lambda document: document["sites"]["low_noise"][site].update(digest="0" * 64)
    )
    result = verified(lie, small_base)
    assert [(entry.role, entry.name) for entry in result.mismatches] == [("low_noise", site)]
    assert isinstance(result.mismatches[0].error, DigestMismatchError)


def test_a_mask_that_was_exchanged_is_found(small_delta: Path, small_base: Path, tmp_path: Path) -> None:
    name = "high_noise/blocks.0.ffn.0/mask"
    lie = forge_state(small_delta, tmp_path / "lie", lambda state: state.update({name: state[name] * 2}))
    result = verified(lie, small_base)
    assert [(entry.role, entry.name) for entry in result.mismatches] == [("high_noise", "blocks.0.ffn.0")]


def test_stopping_at_the_first(small_delta: Path, tmp_path: Path) -> None:
    with hfq.open_checkpoint(write_base(tmp_path / "other", seed=1)) as checkpoint:
        result = hfq.verify(small_delta, checkpoint, first_only=True)
    assert len(result.mismatches) == sum(result.tensors.values()) == 1
    assert result.sites == {"high_noise": 0}


@pytest.mark.parametrize("place", [0, 7, 19])
def test_nothing_after_the_first_is_restored(
    place: int, small_delta: Path, small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored: list[str] = []

    def restore(delta: Any, role: str, site: str, weight: Any) -> Any:
        restored.append(f"{role}/{site}")
        return restore_site(delta, role, site, weight)

    monkeypatch.setattr("hfq.convert.verify.restore_site", restore)
    with hfq.open_checkpoint(small_base) as checkpoint:
        assert hfq.verify(small_delta, checkpoint, first_only=True).ok
        order = [*restored]
        assert len(order) == 40
        role, site = order[place].split("/")
        lie = forge(small_delta, tmp_path / "lie", lambda d: d["sites"][role][site].update(digest="0" * 64))
        restored.clear()
        result = hfq.verify(lie, checkpoint, first_only=True)
    assert [(entry.role, entry.name) for entry in result.mismatches] == [(role, site)]
    assert restored == order[: place + 1]
    assert result.sites == {role: place + 1}


def test_an_expert_that_the_delta_does_not_have(small_delta: Path, small_base: Path) -> None:
    with pytest.raises(UsageError, match="no such expert"):
        verified(small_delta, small_base, role="single")
