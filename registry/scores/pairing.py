"""Which clip of one side is the same clip of the other: by name, or by what is known of its prompt and seed.

Names come first, exactly as they are written. What is left is paired by prompt and seed, then by names as VBench writes
them when it scores extracted frames.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from .names import match_key, split_sample

__all__ = ["Matched", "Named", "match_clips", "scene_difference"]


class Named(Protocol):
    """A clip, or its score. `prompt_sha256` and `seed` are None where nobody knows them."""

    @property
    def stem(self) -> str: ...
    @property
    def prompt_sha256(self) -> str | None: ...
    @property
    def seed(self) -> int | None: ...


Clip = TypeVar("Clip", bound=Named)


@dataclass(frozen=True, slots=True)
class Matched(Generic[Clip]):
    """One clip on both sides, and what says that it is one."""

    first: Clip
    second: Clip
    by: Literal["name", "tags"]

    @property
    def is_confirmed(self) -> bool:
        """Whether prompt and seed are known on both sides, and equal."""
        return _scene(self.first) is not None and _scene(self.first) == _scene(self.second)


def match_clips(first: Sequence[Clip], second: Sequence[Clip]) -> list[Matched[Clip]]:
    """The clips that both sides have, in the order of the first. Stems are unique on each side.

    Clips of one name are paired whatever else is known of them: `scene_difference` says whether they should be.
    """
    found: dict[str, Matched[Clip]] = {}
    keys: tuple[tuple[Literal["name", "tags"], Callable[[Clip], Hashable]], ...] = (
        ("name", lambda clip: clip.stem),
        ("tags", _scene),
        ("tags", _scene_and_sample),
        ("name", lambda clip: match_key(clip.stem)),
    )
    ours, theirs = list(first), list(second)
    for by, key in keys:
        mine, others = _unique(ours, key), _unique(theirs, key)
        pairs = {mine[value].stem: Matched(mine[value], others[value], by) for value in mine if value in others}
        found |= pairs
        taken = {pair.second.stem for pair in pairs.values()}
        ours = [clip for clip in ours if clip.stem not in pairs]
        theirs = [clip for clip in theirs if clip.stem not in taken]
    return [found[clip.stem] for clip in first if clip.stem in found]


def scene_difference(first: Named, second: Named) -> str | None:
    """How two clips are known to show different things: `seed 3 against 4`. None where nothing speaks against it."""
    for name, one, other in (
        ("prompt", _short(first.prompt_sha256), _short(second.prompt_sha256)),
        ("seed", first.seed, second.seed),
    ):
        if one is not None and other is not None and one != other:
            return f"{name} {one} against {other}"
    return None


def _unique(clips: Iterable[Clip], key: Callable[[Clip], Hashable]) -> dict[Hashable, Clip]:
    """Clips by a key that no other clip of the side has, and that is not None."""
    found: dict[Hashable, Clip] = {}
    several: set[Hashable] = {None}
    for clip in clips:
        value = key(clip)
        if value in found:
            several.add(value)
        found[value] = clip
    return {value: clip for value, clip in found.items() if value not in several}


def _scene(clip: Named) -> tuple[str, int] | None:
    return None if clip.prompt_sha256 is None or clip.seed is None else (clip.prompt_sha256, clip.seed)


def _scene_and_sample(clip: Named) -> tuple[tuple[str, int], int | None] | None:
    scene = _scene(clip)
    return None if scene is None else (scene, split_sample(clip.stem)[1])


def _short(sha256: str | None) -> str | None:
    return None if sha256 is None else sha256[:12]
