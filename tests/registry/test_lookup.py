"""Finding a delta by what a user types, and lists that are narrowed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from factory import make_delta, make_provenance, write_json

from hfq.registry import Filters, Registry, lookup
from hfq.schema.canonical import content_id
from hfq.schema.errors import AmbiguousIdError, FolderGoneError, MissingPathError, UnknownIdError, UsageError


def register(registry: Registry, folder: Path, **how: Any) -> str:
    make_delta(folder, **how)
    return registry.register(folder)


def two_that_begin_alike(registry: Registry, folder: Path) -> list[str]:
    """Ids cannot be chosen, but among a few hundred recipes two give ids with the same four digits."""
    make_delta(folder / "first", kept=0, quantized=1)
    document = json.loads((folder / "first" / "ptq_state.json").read_text())
    seen: dict[str, str] = {}
    for number in range(5000):
        document["recipe"]["description"] = description = f"recipe {number}"
        other = seen.setdefault(content_id(document)[:4], description)
        if other != description:
            return [_register_variant(registry, folder, document, text) for text in (other, description)]
    raise AssertionError("no two of 5000 ids begin alike")


def _register_variant(registry: Registry, folder: Path, document: dict[str, Any], description: str) -> str:
    copy = folder / description
    shutil.copytree(folder / "first", copy)
    document["recipe"]["description"] = description
    document["id"] = content_id(document)
    write_json(copy / "ptq_state.json", document)
    write_json(copy / "provenance.json", make_provenance(document))
    return registry.register(copy)


def test_an_id_is_found_by_all_its_spellings(registry: Registry, tmp_path: Path) -> None:
    delta_id = register(registry, tmp_path / "a")
    for text in (delta_id, delta_id.upper(), f"delta:{delta_id}", delta_id[:4], f"delta:{delta_id[:12]}"):
        assert registry.resolve(text) == delta_id


@pytest.mark.parametrize("text", ["", "ab", "delta:", "delta:xyz", "delta:ab", "0" * 64, "0" * 65, "wan22@prod", "a'b"])
def test_what_is_not_registered_is_unknown(registry: Registry, tmp_path: Path, text: str) -> None:
    register(registry, tmp_path / "a")
    with pytest.raises(UnknownIdError):
        registry.resolve(text)


def test_an_ambiguous_prefix_names_the_candidates(registry: Registry, tmp_path: Path) -> None:
    found = two_that_begin_alike(registry, tmp_path)
    with pytest.raises(AmbiguousIdError) as caught:
        registry.resolve(found[0][:4])
    for candidate in found:
        assert f"delta:{candidate[:12]}" in str(caught.value)
        assert registry.resolve(candidate[:12]) == candidate


def test_the_folder_is_found_while_it_holds_the_delta(registry: Registry, tmp_path: Path) -> None:
    delta_id = register(registry, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    registry.register(tmp_path / "two")
    assert registry.folder(delta_id) == tmp_path / "two"
    shutil.rmtree(tmp_path / "two")
    assert registry.folder(delta_id) == tmp_path / "one"
    (tmp_path / "one" / "ptq_state.json").write_text("{}")
    with pytest.raises(FolderGoneError, match="hfq register FOLDER"):
        registry.folder(delta_id)


def test_a_delta_argument_is_a_folder_an_id_or_an_alias(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta_id = register(registry, tmp_path / "one")
    registry.set_alias("wan22@prod", delta_id)
    monkeypatch.chdir(tmp_path)
    for argument in ("one", tmp_path / "one", delta_id[:8], "wan22@prod"):
        assert registry.locate(argument).resolve() == tmp_path / "one"
        assert registry.identify(argument) == delta_id
    with pytest.raises(MissingPathError):
        registry.locate("./two")
    with pytest.raises(UnknownIdError):
        registry.locate("two")
    unregistered = make_delta(tmp_path / "three", seed="three")
    with pytest.raises(UnknownIdError, match=unregistered[:12]):
        registry.identify("three")


@pytest.mark.parametrize("many", [0, 1000])
def test_lists_are_narrowed_by_what_deltas_are_made_from(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """Many matches are read in the order of the keys, few through an index: the answer is the same."""
    monkeypatch.setattr(lookup, "_MANY", many)
    plain = register(registry, tmp_path / "a", percentile=None, name="plain-max", kept=0, quantized=4)
    low = register(registry, tmp_path / "b", percentile=99.0, kept=1)
    high = register(registry, tmp_path / "c", percentile=99.9, kept=3)
    other = register(registry, tmp_path / "d", percentile=99.9, kept=3, base="wan21")

    def ids(**filters: Any) -> list[str]:
        deltas, total = registry.list(Filters(**filters), limit=10)
        assert total == len(deltas)
        return [delta.id for delta in deltas]

    assert ids() == [other, high, low, plain]
    assert ids(preset="plain-max") == [plain]
    assert ids(percentile=99.9) == [other, high]
    assert ids(kept="6") == [other, high]
    assert ids(kept="0") == [plain]
    assert ids(kept="blocks.[2-9].self_attn.?") == [other, high]
    assert ids(kept="blocks.0.*") == [other, high, low]
    assert ids(kept="*.ffn.*") == []
    record = registry.get(other)
    assert ids(base=record.base.experts[0].bf16_root[:10]) == [other]
    assert ids(base=record.base.id[:10].upper()) == [other]
    assert ids(base=record.base.id, percentile=99.0) == []
    with pytest.raises(UsageError):
        registry.list(Filters(base="wan22"))


def test_a_limit_shows_the_newest_and_counts_them_all(registry: Registry, tmp_path: Path) -> None:
    made = [register(registry, tmp_path / str(number), seed=str(number)) for number in range(4)]
    deltas, total = registry.list(limit=2)
    assert [delta.id for delta in deltas] == [made[3], made[2]]
    assert total == 4
