"""Movable names."""

from __future__ import annotations

from pathlib import Path

import pytest
from factory import make_delta

from hfq.registry import Registry
from hfq.schema.errors import AliasMovedError, UnknownIdError, UsageError


@pytest.fixture
def two(registry: Registry, tmp_path: Path) -> tuple[str, str]:
    ids = []
    for seed in ("a", "b"):
        make_delta(tmp_path / seed, seed=seed)
        ids.append(registry.register(tmp_path / seed))
    return ids[0], ids[1]


def test_an_alias_names_a_delta_and_moves(registry: Registry, two: tuple[str, str]) -> None:
    first, second = two
    assert registry.set_alias("wan22@prod", first[:12]).before is None
    assert registry.resolve("wan22@prod") == first
    change = registry.set_alias("wan22@prod", second)
    assert (change.before, change.id) == (first, second)
    assert registry.get("wan22@prod").id == second
    assert registry.aliases() == {"wan22@prod": second}
    moved = registry.get(second).events[-1]
    assert (moved.kind, moved.detail) == ("alias-moved", {"alias": "wan22@prod", "from": first})


def test_setting_it_again_changes_nothing(registry: Registry, two: tuple[str, str]) -> None:
    registry.set_alias("prod", two[0])
    events = registry.status().counts["events"]
    assert registry.set_alias("prod", two[0]).before == two[0]
    assert registry.status().counts["events"] == events


def test_an_alias_can_follow_an_alias(registry: Registry, two: tuple[str, str]) -> None:
    registry.set_alias("prod", two[0])
    registry.set_alias("last-week", "prod")
    registry.set_alias("prod", two[1])
    assert registry.aliases() == {"last-week": two[0], "prod": two[1]}


def test_a_removed_alias_is_unknown_and_the_delta_stays(registry: Registry, two: tuple[str, str]) -> None:
    registry.set_alias("prod", two[0])
    assert registry.remove_alias("prod") == two[0]
    with pytest.raises(UnknownIdError):
        registry.resolve("prod")
    assert registry.get(two[0]).aliases == ()
    assert registry.get(two[0]).events[-1].kind == "alias-removed"
    with pytest.raises(UnknownIdError):
        registry.remove_alias("prod")


def test_an_alias_moves_only_from_what_is_expected(registry: Registry, two: tuple[str, str]) -> None:
    first, second = two
    registry.set_alias("prod", first, expect="none")
    with pytest.raises(AliasMovedError, match="expected no such alias, found delta:"):
        registry.set_alias("prod", second, expect="none")
    with pytest.raises(AliasMovedError) as caught:
        registry.set_alias("prod", second, expect=second[:12])
    assert (caught.value.exit_code, caught.value.code) == (3, "alias-moved")
    with pytest.raises(AliasMovedError):
        registry.set_alias("stage", second, expect=first)
    with pytest.raises(UnknownIdError):
        registry.set_alias("prod", second, expect="ffff" * 16)
    with pytest.raises(AliasMovedError):
        registry.remove_alias("prod", expect=second)
    assert registry.aliases() == {"prod": first}
    assert registry.set_alias("prod", second, expect=first).before == first
    registry.remove_alias("prod", expect="prod")
    assert registry.aliases() == {}


NO_NAMES = [
    "",
    "abcd",
    "1234567890ab",
    "delta:abcd",
    "a/b",
    "..",
    "-x",
    "a b",
    "a\x1b[31mb",
    "a\n",
    "x" * 101,
    "é@x",
    "none",
    "None",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_reads_like_an_id_or_a_path_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.set_alias(name, "0" * 64)
    assert str(caught.value).isprintable()
    assert registry.aliases() == {}


def test_nothing_is_created_to_say_that_nothing_is_known(registry: Registry) -> None:
    with pytest.raises(UnknownIdError):
        registry.set_alias("prod", "0123456789ab")
    with pytest.raises(UnknownIdError):
        registry.remove_alias("prod")
    assert not registry.path.exists()
