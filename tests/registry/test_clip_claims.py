"""What may be said of a clip: not what the clip or the registry denies, unless somebody insists, and that is kept."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factory import make_delta
from test_clip_records import document, frames_of, states, write

from hfq.registry import Registry, open_registry
from hfq.registry.clips.clip_document import ClipDocument, Objection, Variant, prompt_sha256
from hfq.registry.clips.evidence import Statements
from hfq.registry.clips.keys import init_keys, load_local_key
from hfq.registry.clips.objections import own_objections, refuse_objections
from hfq.registry.clips.stamp import stamp_clip
from hfq.registry.upgrade import upgrade
from hfq.schema.errors import ContradictedClaimError, UsageError

BLACK = np.zeros((20, 96, 128, 3), np.uint8)
FULL = {
    "width": 128, "height": 96, "frames": 20, "steps": 6, "shift": 3.0, "guidance": 5, "negative_prompt": "",
    "scheduler": "UniPC",
}  # fmt: skip


@pytest.fixture
def deltas(registry: Registry, tmp_path: Path) -> list[str]:
    for name in "abc":
        make_delta(tmp_path / name, seed=name)
        registry.register(tmp_path / name)
    return [registry.identify(tmp_path / name) for name in "abc"]


def stamped(registry: Registry, clip: Path, delta: str, name: str, **changes: Any) -> Path:
    made_by = dataclasses.replace(document(registry, delta), **changes)
    out = clip.with_name(name)
    registry.refuse_contradicted(clip, made_by)
    stamp_clip(clip, out, made_by)
    registry.record_clip(out, made_by)
    return out


def test_a_blank_clip_is_everybodys(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    """Two models fail on one prompt: both clips are registered, each is its maker's, and a third one is nobody's."""
    black = write(tmp_path / "black.mp4", BLACK)
    own = [stamped(registry, black, delta, f"{number}.mp4") for number, delta in enumerate(deltas[:2])]
    for clip, delta in zip(own, deltas, strict=False):
        found = registry.audit(clip)
        assert (found.exit_code, found.variant) == (0, Variant("delta", delta))
        assert states(found)["exact-stream"] == "hint"
    found = registry.audit(black)
    assert (found.exit_code, found.variant, states(found)["exact-stream"]) == (5, None, "hint")
    honest = stamped(registry, black, deltas[2], "c.mp4")
    assert registry.audit(honest).variant == Variant("delta", deltas[2])
    with closing(sqlite3.connect(registry.path)) as connection:
        assert connection.execute("SELECT blank FROM clip").fetchall() == [(1,)] * 3


def test_a_blank_file_that_does_not_say_whose_it_is_proves_nothing(
    registry: Registry, deltas: list[str], tmp_path: Path
) -> None:
    black = write(tmp_path / "black.mp4", BLACK)
    registry.record_clip(black, document(registry, deltas[0]))
    found = registry.audit(black)
    assert (found.exit_code, states(found)["exact-file"], states(found)["exact-stream"]) == (5, "hint", "hint")
    assert registry.objections(black, Variant("delta", deltas[1])) == ()


def test_blank_clips_of_an_older_registry_are_no_proof_either(
    registry: Registry, deltas: list[str], tmp_path: Path
) -> None:
    black = write(tmp_path / "black.mp4", BLACK)
    stamped(registry, black, deltas[0], "a.mp4")
    with closing(sqlite3.connect(registry.path)) as connection:
        connection.execute("UPDATE clip SET blank = NULL")
        connection.commit()
    assert registry.audit(black).exit_code == 5
    assert registry.audit(stamped(registry, black, deltas[1], "b.mp4")).variant == Variant("delta", deltas[1])


def test_another_variants_tag_is_not_overwritten(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    a, b, _ = deltas
    raw = write(tmp_path / "raw.mp4", frames_of(1))
    theirs = tmp_path / "b.mp4"
    stamp_clip(raw, theirs, document(registry, b))  # another registry's: here neither file nor frames are known
    for say in (lambda: registry.refuse_contradicted(theirs, document(registry, a)),
                lambda: stamp_clip(theirs, tmp_path / "a.mp4", document(registry, a))):  # fmt: skip
        with pytest.raises(ContradictedClaimError, match=f"its tag names delta:{b[:12]}, you said delta:{a[:12]}"):
            say()
    assert not (tmp_path / "a.mp4").exists()
    stamp_clip(theirs, tmp_path / "b2.mp4", dataclasses.replace(document(registry, b), seed=8))


def test_an_unknown_variants_tag_and_a_broken_one_count_as_well(
    registry: Registry, deltas: list[str], tmp_path: Path
) -> None:
    raw = write(tmp_path / "raw.mp4", frames_of(1))
    stranger = ClipDocument("f" * 64, {"single": "e" * 64})
    stamp_clip(raw, tmp_path / "stranger.mp4", stranger)
    said = Variant("delta", deltas[0])
    assert registry.objections(tmp_path / "stranger.mp4", said) == (Objection("tag", stranger.variant),)
    data = (tmp_path / "stranger.mp4").read_bytes()
    (tmp_path / "broken.mp4").write_bytes(data.replace(b'"delta":"ffff', b'"delta":"zfff'))
    assert registry.objections(tmp_path / "broken.mp4", said) == (Objection("tag", None),)
    with pytest.raises(ContradictedClaimError, match="something that cannot be read"):
        stamp_clip(tmp_path / "broken.mp4", tmp_path / "x.mp4", document(registry, deltas[0]))


def test_who_insists_is_believed_and_remembered(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    """Nobody is accused afterwards: neither the clip that was stamped, nor the one that it was made from."""
    a, b, c = deltas
    raw = write(tmp_path / "raw.mp4", frames_of(1))
    theirs = tmp_path / "b.mp4"
    stamp_clip(raw, theirs, document(registry, b))
    objections = registry.objections(theirs, Variant("delta", a))
    assert objections == (Objection("tag", Variant("delta", b)),)
    ours = stamped(registry, theirs, a, "a.mp4", despite=objections)
    found = registry.audit(ours)
    assert (found.exit_code, found.variant, states(found)["exact-stream"]) == (0, Variant("delta", a), "ambiguous")
    original = registry.audit(theirs)
    assert (original.exit_code, original.variant, original.contradictions) == (5, None, ())
    # Recorded in the document, in the row, and in the history of both.
    stored = json.loads(registry.get(a).events[-1].detail["despite"] and _stored(registry))
    assert stored["despite"] == [{"evidence": "tag", "variant": {"kind": "delta", "id": b}}]
    assert registry.get(a).events[-1].detail["despite"] == f"its tag names delta:{b[:12]}"
    assert [event.kind for event in registry.get(b).events] == ["registered", "clip-stamped-as-another"]
    # The copy's own words do not launder it: its earlier tag and what it was stamped in spite of still count.
    assert set(registry.objections(ours, Variant("delta", c))) >= {
        Objection("tag", Variant("delta", a)), Objection("tag", Variant("delta", b)),
    }  # fmt: skip
    assert Objection("tag", Variant("delta", b)) in registry.objections(ours, Variant("delta", a))
    # And the frames may now be either's.
    assert registry.objections(raw, Variant("delta", b)) == ()
    with pytest.raises(ContradictedClaimError, match="these frames are registered as"):
        registry.refuse_contradicted(raw, document(registry, c))


def _stored(registry: Registry) -> str:
    with closing(sqlite3.connect(registry.path)) as connection:
        return str(connection.execute("SELECT document FROM clip ORDER BY key DESC").fetchone()[0])


def test_a_signed_manifest_of_another_variant(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    a, b, _ = deltas
    init_keys(tmp_path / "config")
    signed = tmp_path / "b.mp4"
    key = load_local_key(tmp_path / "config")
    stamp_clip(write(tmp_path / "raw.mp4", frames_of(1)), signed, document(registry, b), key)
    # One's own is not thrown away either, but that is no lie.
    with pytest.raises(UsageError, match="carries a signed manifest"):
        stamp_clip(signed, tmp_path / "again.mp4", document(registry, b), key)
    objections = registry.objections(signed, Variant("delta", a))
    assert {one.evidence for one in objections} == {"tag", "manifest"}
    with pytest.raises(ContradictedClaimError, match="its signed manifest names"):
        stamp_clip(signed, tmp_path / "a.mp4", document(registry, a), key)
    made_by = dataclasses.replace(document(registry, a), despite=objections)
    stamp = stamp_clip(signed, tmp_path / "a.mp4", made_by, key)
    assert stamp.lost_manifest
    registry.record_clip(stamp.path, made_by, manifest=stamp.manifest, signed=True)
    found = registry.audit(stamp.path)
    assert (found.exit_code, found.variant) == (0, Variant("delta", a))


def test_a_registered_file_objects_as_its_frames_do(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    a, b, _ = deltas
    raw = write(tmp_path / "raw.mp4", frames_of(1))
    registry.record_clip(raw, document(registry, b))
    other = Variant("delta", b)
    assert registry.objections(raw, Variant("delta", a)) == (Objection("file", other), Objection("stream", other))


def amended(registry: Registry, clip: Path, old: ClipDocument, **changes: Any) -> Any:
    return registry.record_clip(clip, dataclasses.replace(old, **changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt_sha256": prompt_sha256("another prompt")}, "prompt sha256"),
        ({"seed": 8}, "seed"),
        ({"settings": {"steps": 7}}, "setting steps"),
        ({"expert_steps": {"single": 7}}, "expert steps"),
        ({"category": "cars"}, "category"),
    ],
)
def test_a_known_file_is_not_recorded_with_another_story(
    changes: dict[str, Any], field: str, registry: Registry, deltas: list[str], tmp_path: Path
) -> None:
    clip = write(tmp_path / "a.mp4", frames_of(1))
    first = dataclasses.replace(document(registry, deltas[0]), expert_steps={"single": 6}, category="people")
    registry.record_clip(clip, first)
    with pytest.raises(ContradictedClaimError, match=f"registered with another {field}") as caught:
        amended(registry, clip, first, **changes)
    assert caught.value.exit_code == 3
    assert json.loads(_stored(registry)) == first.to_json()


def test_a_known_file_learns_what_was_not_known(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    clip = write(tmp_path / "a.mp4", frames_of(1))
    full = dataclasses.replace(document(registry, deltas[0]), settings=FULL, prompt="a prompt", category="people")
    bare = dataclasses.replace(full, prompt_sha256=None, prompt=None, seed=None, settings={"steps": 6}, category=None)
    assert registry.record_clip(clip, bare).is_new
    again = registry.record_clip(clip, full)
    assert (again.is_new, again.is_amended) == (False, True)
    assert json.loads(_stored(registry)) == full.to_json()
    assert registry.check() == ()
    for less in (bare, full):
        assert not registry.record_clip(clip, less).is_amended
    assert json.loads(_stored(registry)) == full.to_json()
    signed = registry.record_clip(clip, full, manifest=b"manifest", signed=True)
    assert (signed.is_new, signed.is_amended) == (False, True)
    assert [event.kind for event in registry.get(deltas[0]).events] == [
        "registered", "clip", "clip-amended", "clip-amended",
    ]  # fmt: skip
    with closing(sqlite3.connect(registry.path)) as connection:
        assert connection.execute("SELECT signed, manifest FROM clip").fetchall() == [(1, b"manifest")]


def test_an_upgrade_knows_the_settings_of_older_clips(registry: Registry, tmp_path: Path) -> None:
    """By another program than the one that records clips: they agree, and what cannot be read stays unknown."""
    old = open_registry(tmp_path / "old.sqlite")
    upgrade(old.database, "0008")
    base = {"single": "e" * 64}
    settings: list[dict[str, Any]] = [
        FULL, FULL | {"guidance": 5.0, "shift": 3}, FULL | {"guidance": 5.5, "device": "cpu", "text": "ä"}, {},
        {name: value for name, value in FULL.items() if name != "scheduler"}, FULL | {"shift": None, "flag": True},
    ]  # fmt: skip
    steps = {"single": 6}
    made = [ClipDocument("d" * 64, base, prompt_sha256("p"), None, 7, one, steps) for one in settings]
    made += [dataclasses.replace(made[0], expert_steps=other) for other in (None, {"single": 7})]
    with closing(sqlite3.connect(old.path)) as connection:
        for key, text in enumerate([*(one.to_bytes().decode() for one in made), "no document", "[]"], start=1):
            connection.execute(
                "INSERT INTO clip VALUES (?, ?, ?, 'delta', ?, NULL, 'x.mp4', 'mp4', 1, 1, 1, 1, ?, NULL, 0, '')",
                (key, f"{key:064x}", "5" * 64, "d" * 64, text),
            )
        connection.commit()
    assert upgrade(old.database).before == "0008"
    with closing(sqlite3.connect(old.path)) as connection:
        found = connection.execute("SELECT settings_sha256, blank FROM clip ORDER BY key").fetchall()
    assert found == [(one.settings_sha256, None) for one in made] + [(None, None)] * 2
    assert found[0] == found[1]
    assert len({digest for digest, _ in found}) == 5


def test_settings_that_decide_nothing_do_not_part_scenes() -> None:
    made = ClipDocument("d" * 64, {"single": "e" * 64}, settings=FULL, expert_steps={"single": 6})

    def digest(**changes: Any) -> str | None:
        return dataclasses.replace(made, settings=FULL | changes).settings_sha256

    assert digest() == digest(offload="model", device="cuda:0")
    assert len({digest(), digest(steps=7), digest(dtype="float32"), digest(sampler="x"), digest(shift=None)}) == 5
    assert dataclasses.replace(made, expert_steps=None).settings_sha256 is None


def test_every_place_that_names_another_variant_counts_by_itself() -> None:
    a, b, c = (Variant("delta", letter * 64) for letter in "abc")
    mine, theirs = ClipDocument(a.id, {"single": "e" * 64}), ClipDocument(b.id, {"single": "e" * 64})
    insisted = dataclasses.replace(mine, despite=(Objection("stream", c), Objection("file", a)))
    assert own_objections(Statements(mine, None, (), None, None), a) == ()
    assert own_objections(Statements(mine, None, (theirs,), None, None), a) == (Objection("tag", b),)
    assert own_objections(Statements(insisted, None, (), None, None), a) == (Objection("stream", c),)
    listed = dataclasses.replace(mine, despite=(Objection("tag", b),))
    refuse_objections([Objection("tag", b)], listed, "clip")
    with pytest.raises(ContradictedClaimError, match=f"clip: its tag names {c}, you said {a}"):
        refuse_objections([Objection("tag", b), Objection("tag", c)], listed, "clip")
