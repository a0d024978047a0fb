"""The table of names, both ways, against the key lists of the releases."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import RELEASES, released_keys, tiny

import hfq.convert.keymap
from hfq.convert.keymap import canonical_name, site_of, to_diffusers, to_original
from hfq.schema.errors import UnknownLayoutError


@pytest.mark.parametrize("release", RELEASES)
def test_every_name_of_a_release_maps_both_ways(release: str) -> None:
    original = released_keys(release, "original")["tensors"]
    diffusers = released_keys(release, "diffusers")["tensors"]
    assert {to_diffusers(name) for name in original} == set(diffusers)
    assert {to_original(name) for name in diffusers} == set(original)
    for name, entry in original.items():
        assert to_diffusers(name) == entry["other_layout"]
        assert to_original(entry["other_layout"]) == name


@pytest.mark.parametrize("release", RELEASES)
def test_sites_are_the_linears(release: str) -> None:
    tensors = released_keys(release, "original")["tensors"]
    linears = {name for name, entry in tensors.items() if entry["linear_weight"]}
    assert {name for name in tensors if name.endswith(".weight") and site_of(name)} == linears
    for name in linears:
        assert site_of(name) == name.removesuffix(".weight") == site_of(name.replace(".weight", ".bias"))


@pytest.mark.parametrize("kind", ["t2v", "i2v", "i2v-image", "flf2v", "ti2v", "vace"])
def test_every_kind_round_trips(kind: str) -> None:
    names = list(tiny(kind).tensors())
    assert [to_original(to_diffusers(name)) for name in names] == names
    assert len({to_diffusers(name) for name in names}) == len(names)


def test_the_norm_with_parameters_changes_its_number() -> None:
    assert to_diffusers("blocks.3.norm3.weight") == "blocks.3.norm2.weight"
    assert to_original("blocks.3.norm2.bias") == "blocks.3.norm3.bias"
    assert to_diffusers("vace_blocks.1.norm3.weight") == "vace_blocks.1.norm2.weight"
    for unknown in ("blocks.3.norm2.weight", "blocks.3.norm1.weight"):
        with pytest.raises(UnknownLayoutError):
            to_diffusers(unknown)
    with pytest.raises(UnknownLayoutError):
        to_original("blocks.3.norm3.weight")


def test_vace_and_image_names() -> None:
    assert to_diffusers("vace_blocks.0.before_proj.weight") == "vace_blocks.0.proj_in.weight"
    assert to_diffusers("vace_blocks.4.after_proj.bias") == "vace_blocks.4.proj_out.bias"
    assert to_diffusers("vace_patch_embedding.weight") == "vace_patch_embedding.weight"
    assert to_diffusers("img_emb.emb_pos") == "condition_embedder.image_embedder.pos_embed"
    assert to_diffusers("head.modulation") == "scale_shift_table"
    assert to_original("proj_out.weight") == "head.head.weight"


@pytest.mark.parametrize(
    "name",
    [
        "", "blocks", "blocks.", "blocks.0", "blocks.00.modulation", "blocks.-1.modulation", "blocks.١.modulation",
        "blocks.10000.modulation", "blocks.0.self_attn.q", "blocks.0.self_attn.q.scale_weight", "blocks.0.modulation\n",
        "blocks.0.before_proj.weight", "blocks.0.head.head.weight", "head.head.weight.", " head.head.weight",
        "vace_blocks.0.patch_embedding.weight", "text_embedding.1.weight",
    ],
)  # fmt: skip
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UnknownLayoutError):
        to_diffusers(name)
    assert canonical_name(name, "original") is None
    assert site_of(name) is None


@given(st.text(max_size=40))
def test_any_text_is_answered(name: str) -> None:
    for naming in ("original", "diffusers"):
        canonical = canonical_name(name, naming)
        assert canonical is None or canonical_name(canonical, "original") == canonical


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(hfq.convert.keymap).failed == 0
