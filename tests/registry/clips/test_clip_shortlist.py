"""The shortlist: its bound holds, its answer is the full scan's, and it reads few signatures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_clips import A, B, C

from hfq.registry.clips import match
from hfq.registry.clips.match import SCENE_DISTANCE, KnownSignature, Match, match_shortlisted, match_signature
from hfq.registry.clips.signature import Signature, distances
from hfq.registry.clips.sketch import SKETCH_BYTES, SketchBound, sketch_of

GRID = np.ogrid[0:1:8j, 0:1:16j, 0:1:16j]
SEEDS = st.integers(0, 2**32 - 1)


class Books:
    """Clips in memory, which count how many signatures were read."""

    def __init__(self, known: Sequence[KnownSignature]) -> None:
        self.known = known
        self.read = 0

    def sketches(self) -> Iterator[tuple[Sequence[int], bytes]]:
        for start in range(0, len(self.known), 7):
            some = range(start, min(start + 7, len(self.known)))
            yield some, b"".join(sketch_of(self.known[key].signature) for key in some)

    def clips(self, keys: Sequence[int]) -> Iterator[KnownSignature]:
        self.read += len(keys)
        return (self.known[key] for key in sorted(keys, reverse=True))

    def of_scene(self, scene: str) -> Iterator[KnownSignature]:
        return (one for one in self.known if one.scene == scene)


def signature(values: npt.NDArray[np.float64]) -> Signature:
    centred = values - values.mean()
    return Signature(np.rint(centred * (32767 / max(float(np.abs(centred).max()), 1e-9))).astype("<i2").tobytes())


def smooth(random: np.random.Generator) -> npt.NDArray[np.float64]:
    """[8, 16, 16] with little left between blocks, as of a real picture: a few waves and some noise."""
    t, y, x = GRID
    waves = sum(
        random.normal() * np.cos(random.uniform(0, 9) * y + random.uniform(0, 9) * x + random.uniform(0, 3) * t)
        for _ in range(4)
    )
    return np.asarray(waves + 0.05 * random.normal(size=(8, 16, 16)))


def library(seed: int, count: int) -> tuple[Signature, list[KnownSignature]]:
    """A query, and clips of other scenes, in half of the libraries also clips from 0 to .5 away; three prompts."""
    random = np.random.default_rng(seed)
    own = smooth(random)
    share, known = random.choice([0.0, 0.4]), []
    for number in range(count):
        near = random.random() < share
        picture = own + smooth(random) * 10 ** random.uniform(-3, 0) if near else smooth(random)
        if random.random() < 0.1:
            picture = own if near else np.zeros_like(own)
        scene = random.choice(["p:1", "p:2", "p:3", ""])
        variant = (A, B, C)[random.integers(3)]
        known.append(KnownSignature(f"{number:03}", variant, scene or None, signature(picture)))
    return signature(own), known


@given(SEEDS, st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_the_answer_is_that_of_the_full_scan(seed: int, count: int) -> None:
    query, known = library(seed, count)
    assert match_shortlisted(query, Books(known)) == match_signature(query, known)
    assert match_shortlisted(query, Books(known[::-1])) == match_signature(query, known)


def test_the_random_libraries_hold_every_kind_of_answer() -> None:
    """Otherwise the test above shows little."""
    answers = [match_signature(*library(seed, seed % 12)) for seed in range(80)]
    assert {bool(one.candidates) for one in answers} == {True, False}
    assert {len(one.candidates) for one in answers} >= {0, 1, 2, 3}
    assert any(c.distance > SCENE_DISTANCE for one in answers for c in one.candidates)


@given(SEEDS, st.sampled_from(["smooth", "noise", "edge", "flat-blocks", "rest-alone"]))
@settings(max_examples=40, deadline=None)
def test_no_distance_is_below_its_bound(seed: int, kind: str) -> None:
    """In fractions, without a rounding anywhere but in the bound itself."""
    random = np.random.default_rng(seed)

    def made() -> Signature:
        if kind == "smooth":
            return signature(smooth(random))
        if kind == "noise":
            return signature(random.normal(size=(8, 16, 16)))
        if kind == "edge":
            return Signature(random.choice([-32767, 32767], 2048).astype("<i2").tobytes())
        blocks = random.normal(size=(4, 4, 4)).repeat(2, 0).repeat(4, 1).repeat(4, 2)
        if kind == "flat-blocks":
            return signature(blocks)
        noise = random.normal(size=(4, 2, 4, 4, 4, 4))
        return signature((noise - noise.mean(axis=(1, 3, 5), keepdims=True)).reshape(8, 16, 16))

    one, other = made(), made()
    for left, right in ((one, other), (one, one)):
        x, y = (np.frombuffer(side.data, "<i2").astype(int).tolist() for side in (left, right))
        dot = sum(p * q for p, q in zip(x, y, strict=True))
        squares = sum(p * p for p in x) * sum(q * q for q in y)
        least = Fraction(float(SketchBound(left).least_distances(sketch_of(right))[0]))
        # 1 - dot / sqrt(squares) >= least, without the root.
        left_over = 1 - least
        assert dot <= 0 or (left_over >= 0 and Fraction(dot * dot, squares) <= left_over**2)


def test_the_bound_tells_other_scenes_from_this_one() -> None:
    """A bound of zero would be right, too."""
    random = np.random.default_rng(3)
    pictures = [signature(smooth(random)) for _ in range(200)]
    bound = SketchBound(pictures[0]).least_distances(b"".join(sketch_of(one) for one in pictures[1:]))
    exact = distances(pictures[0], pictures[1:])
    assert np.all(bound <= exact)
    assert float(exact.min()) > 10 * SCENE_DISTANCE
    assert float(bound.min()) > SCENE_DISTANCE


def test_a_sketch_by_hand() -> None:
    """Plain Python: block by block, the rest by Pythagoras."""
    made = signature(smooth(np.random.default_rng(4)))
    cells = np.frombuffer(made.data, "<i2").astype(int).reshape(8, 16, 16).tolist()
    square = sum(cell * cell for frame in cells for row in frame for cell in row)
    sums = [
        sum(cells[2 * t + i][4 * y + j][4 * x + k] for i in range(2) for j in range(4) for k in range(4))
        for t in range(4) for y in range(4) for x in range(4)
    ]  # fmt: skip
    found = np.frombuffer(sketch_of(made), "<i2").tolist()
    assert len(sketch_of(made)) == SKETCH_BYTES
    assert found[:64] == [round(value / math.sqrt(32 * square) * 32767) for value in sums]
    assert found[64] == math.ceil(math.sqrt(1 - sum(value * value for value in sums) / (32 * square)) * 32767)


def test_a_blank_clip_is_nobodys_neighbour() -> None:
    blank = Signature(bytes(4096))
    assert sketch_of(blank) == bytes(SKETCH_BYTES)
    known = [
        KnownSignature("1", A, None, blank),
        KnownSignature("2", B, None, signature(smooth(np.random.default_rng(5)))),
    ]
    assert match_shortlisted(blank, Books(known)) == match_signature(blank, known) == Match(None, None, (), None)
    assert match_shortlisted(known[1].signature, Books(known)) == match_signature(known[1].signature, known)


def test_few_signatures_are_read() -> None:
    random = np.random.default_rng(6)
    known = [KnownSignature(f"{n:04}", A, f"p:{n}", signature(smooth(random))) for n in range(1500)]
    books = Books(known)
    found = match_shortlisted(known[700].signature, books)
    assert found.candidates[0].clip == "0700"
    assert books.read < 60
    books = Books(known)
    unknown = signature(smooth(np.random.default_rng(7)))
    assert match_shortlisted(unknown, books) == match_signature(unknown, known)
    assert books.read < 600


def test_a_search_that_is_cut_short_says_how_near_the_rest_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    known = [KnownSignature(f"{n:04}", A, None, signature(random.normal(size=(8, 16, 16)))) for n in range(300)]
    query = signature(random.normal(size=(8, 16, 16)))
    exact = match_signature(query, known)
    monkeypatch.setattr(match, "READ_LIMIT", 64)
    books = Books(known)
    found = match_shortlisted(query, books)
    assert books.read < 100
    assert found.candidates == ()
    assert found.nearest is not None
    assert found.nearest_at_least is not None
    assert exact.nearest is not None
    assert found.nearest_at_least <= exact.nearest <= found.nearest
    assert found.nearest_at_least < found.nearest


def test_a_distance_does_not_depend_on_what_is_measured_beside_it() -> None:
    random = np.random.default_rng(9)
    many = [signature(random.normal(size=(8, 16, 16))) for _ in range(300)]
    alone = [many[0].distance(other) for other in many]
    assert distances(many[0], many).tolist() == alone
    assert distances(many[0], many[13:200]).tolist() == alone[13:200]
