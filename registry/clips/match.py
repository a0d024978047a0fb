"""What the pictures of a clip can tell: which scene, and by margin which variant made it.

`match_signature` compares with every registered clip and is the definition. `match_shortlisted` gives the same answer
from the sketches of all clips and the signatures of few: a clip whose bound (`sketch.py`) is no smaller than
SCENE_DISTANCE cannot be nearer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from .clip_document import Variant
from .signature import Signature, distances
from .sketch import SketchBound

__all__ = [
    "READ_LIMIT",
    "SCENE_DISTANCE",
    "VARIANT_MARGIN",
    "Candidate",
    "KnownSignature",
    "Match",
    "Shelf",
    "margin_text",
    "match_shortlisted",
    "match_signature",
]

SCENE_DISTANCE: Final = 0.02
"""Trial of 500 clips (100 scenes x 5 variants, 256x144x33): seven re-encodings without crop stayed below .0112, unknown
scenes above .176, and .02 gave recall 1.000 with no false scene in 1,200 look-ups. Synthetic clips, tuned on them."""

VARIANT_MARGIN: Final = 3.0
"""The same trial: with d2/d1 > 3 a variant was named for 34 % of the clips, always the right one, and for none of 300
clips of unregistered variants; with 1.5 for 52 %, and for one of the 300."""

_FLOOR: Final = 1e-7
"""Distances below are rounding of the 16-bit signature; their quotients mean nothing."""

_EXACT_MARGIN: Final = 1000
_BATCH: Final = 1024

READ_LIMIT: Final = 16_384
"""Signatures read for the distance of the nearest clip where no scene is known: 64 MB, a second or two."""


Setting = tuple[str, str]
"""`ClipDocument.scene` and `ClipDocument.settings_sha256`: all that decides the frames besides the variant."""


@dataclass(frozen=True, slots=True)
class KnownSignature:
    """A registered clip to compare with.

    Attributes:
        clip: how the registry calls the clip, such as its file's SHA-256.
        variant: which made it.
        scene: `ClipDocument.scene`.
        signature: of its frames.
        settings: `ClipDocument.settings_sha256`.
    """

    clip: str
    variant: Variant
    scene: str | None
    signature: Signature
    settings: str | None = None

    @property
    def setting(self) -> Setting | None:
        """Prompt, seed and settings, where all of them are known."""
        return None if self.scene is None or self.settings is None else (self.scene, self.settings)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant with a clip of the same scene, or of one that looks like it.

    Attributes:
        variant: the variant.
        clip: its nearest clip.
        distance: of that clip.
        margin: this distance over the smallest one; 1 for the nearest candidate.
        fair_margin: of its nearest clip of the nearest candidate's prompt, seed and settings; None without one. Only
            that compares variants: another number of steps moves the pictures further than a variant does.
    """

    variant: Variant
    clip: str
    distance: float
    margin: float
    fair_margin: float | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """What the pictures tell.

    Attributes:
        nearest: the smallest distance that was measured; None when nothing is registered or the clip is blank.
        nearest_at_least: no registered clip is nearer than this. Equal to `nearest`, unless no scene is known and the
            search for the nearest of all was cut short.
        candidates: variants with a clip of the same scene, nearest first; empty when the scene is unknown.
        margin: d2/d1 of the two nearest variants; None with fewer than two.
        fair_margin: the same among clips of the nearest one's prompt, seed and settings; None with fewer than two, and
            where these are not known.
        setting: prompt, seed and settings of the nearest clip; None where one of them is not known.
    """

    nearest: float | None
    nearest_at_least: float | None
    candidates: tuple[Candidate, ...]
    margin: float | None
    fair_margin: float | None = None
    setting: Setting | None = None

    @property
    def knows_scene(self) -> bool:
        """Whether some registered clip shows the same scene."""
        return bool(self.candidates)

    @property
    def is_decided(self) -> bool:
        """Whether the nearest variant stands out among those registered. An unregistered one is never excluded."""
        return self.fair_margin is not None and self.fair_margin > VARIANT_MARGIN


_NOTHING: Final = Match(None, None, (), None)


def margin_text(margin: float) -> str:
    """A margin for people; of an exact copy it is a quotient by rounding."""
    return f"{margin:.1f}" if margin < _EXACT_MARGIN else f"over {_EXACT_MARGIN}"


class Shelf(Protocol):
    """Registered clips as `match_shortlisted` reads them. `key` is any number that names one clip."""

    def sketches(self) -> Iterator[tuple[Sequence[int], bytes]]:
        """All clips, some thousand at a time: their keys, and their sketches joined."""

    def clips(self, keys: Sequence[int]) -> Iterator[KnownSignature]:
        """The clips of these keys, in any order."""

    def of_scene(self, scene: str) -> Iterator[KnownSignature]:
        """The clips of a scene."""


def match_signature(query: Signature, known: Iterable[KnownSignature]) -> Match:
    """Compare with every registered clip.

    Candidates are variants with a clip nearer than SCENE_DISTANCE, or of the nearest clip's prompt and seed. Only those
    of its settings as well are held against each other. With a single one there is no margin: the distance to another
    scene says nothing about variants of this one.
    """
    if query.is_blank:
        return _NOTHING
    every = tuple(known)
    found = _Nearest()
    found.take(query, every)
    if found.distance is None or found.distance >= SCENE_DISTANCE:
        return Match(found.distance, found.distance, (), None)
    found.take_all(query, (one for one in every if one.scene is not None and one.scene == found.scene))
    return found.match()


def match_shortlisted(query: Signature, shelf: Shelf) -> Match:
    """`match_signature`, without reading what cannot matter.

    Where no scene is known, clips are measured by ascending bound until no other can be nearer than the nearest found;
    after READ_LIMIT of them the rest is left, and `nearest_at_least` is the smallest bound of what was not measured.
    """
    if query.is_blank:
        return _NOTHING
    keys, bounds = _bounds(query, shelf)
    found = _Nearest()
    near = np.flatnonzero(bounds < SCENE_DISTANCE)
    for start in range(0, len(near), _BATCH):
        found.take(query, tuple(shelf.clips(keys[near[start : start + _BATCH]].tolist())))
    if found.distance is not None and found.distance < SCENE_DISTANCE:
        if found.scene is not None:
            found.take_all(query, shelf.of_scene(found.scene))
        return found.match()
    left = np.flatnonzero(bounds >= SCENE_DISTANCE)
    left = left[np.argsort(bounds[left], kind="stable")]
    position, size = 0, 64
    while position < len(left) and position < READ_LIMIT:
        if found.distance is not None and bounds[left[position]] >= found.distance:
            break
        found.take(query, tuple(shelf.clips(keys[left[position : position + size]].tolist())))
        position, size = position + size, min(2 * size, _BATCH)
    if found.distance is None:
        return _NOTHING
    least = min(found.distance, float(bounds[left[position]])) if position < len(left) else found.distance
    return Match(found.distance, least, (), None)


def _bounds(query: Signature, shelf: Shelf) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Keys and least distances of all clips: 16 bytes each."""
    bound = SketchBound(query)
    keys, least = [np.empty(0, np.int64)], [np.empty(0)]
    for some, sketches in shelf.sketches():
        keys.append(np.array(some, np.int64))
        least.append(bound.least_distances(sketches))
    return np.concatenate(keys), np.concatenate(least)


class _Nearest:
    """The nearest clip so far, and the nearest of each variant among those of its scene."""

    def __init__(self) -> None:
        self._first: tuple[float, bool, str, Variant] | None = None
        self.scene: str | None = None
        self._setting: Setting | None = None
        self._best: dict[Variant, tuple[float, str]] = {}
        self._fair: dict[tuple[Setting | None, Variant], float] = {}

    @property
    def distance(self) -> float | None:
        """Of the nearest clip."""
        return None if self._first is None else self._first[0]

    def take(self, query: Signature, some: Sequence[KnownSignature]) -> None:
        """Measure clips; those nearer than SCENE_DISTANCE are of the scene."""
        if not some:
            return
        for one, distance in zip(some, distances(query, [one.signature for one in some]).tolist(), strict=True):
            # Where distances are equal, as of several files with the same frames, a clip of known settings goes first,
            # and then the name decides, so that the answer does not depend on the order of reading.
            found = (distance, one.setting is None, one.clip, one.variant)
            if self._first is None or found < self._first:
                self._first, self.scene, self._setting = found, one.scene, one.setting
            if distance < SCENE_DISTANCE:
                self._keep(one, distance)

    def take_all(self, query: Signature, clips: Iterable[KnownSignature]) -> None:
        """Measure clips that are of the scene at any distance."""
        left = iter(clips)
        while some := tuple(itertools.islice(left, _BATCH)):
            for one, distance in zip(some, distances(query, [one.signature for one in some]).tolist(), strict=True):
                self._keep(one, distance)

    def match(self) -> Match:
        """What was found, with margins; a clip nearer than SCENE_DISTANCE is among it."""
        assert self._first is not None
        first = self._first[0]

        def margin(distance: float | None) -> float | None:
            return None if distance is None else max(distance, _FLOOR) / max(first, _FLOOR)

        fair = {who: far for (what, who), far in self._fair.items() if what is not None and what == self._setting}
        candidates = tuple(
            Candidate(variant, clip, distance, max(distance, _FLOOR) / max(first, _FLOOR), margin(fair.get(variant)))
            for (distance, clip), variant in sorted((found, variant) for variant, found in self._best.items())
        )
        second = sorted(fair.values())[1] if len(fair) > 1 else None
        nearest = candidates[1].margin if len(candidates) > 1 else None
        return Match(first, first, candidates, nearest, margin(second), self._setting)

    def _keep(self, one: KnownSignature, distance: float) -> None:
        found = (distance, one.clip)
        self._best[one.variant] = min(self._best.get(one.variant, found), found)
        key = (one.setting, one.variant)
        self._fair[key] = min(self._fair.get(key, distance), distance)
