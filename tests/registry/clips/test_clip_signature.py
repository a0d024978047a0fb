"""The perceptual signature: what it is, what it survives, and what may be concluded from distances."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from made_clips import A, B, C, Frames, reencode, scene, write
from PIL import Image

from hfq.registry.clips.clip_document import Variant
from hfq.registry.clips.match import SCENE_DISTANCE, VARIANT_MARGIN, KnownSignature, match_signature
from hfq.registry.clips.signature import SIGNATURE_BYTES, Signature, SignatureMaker
from hfq.registry.clips.stream import open_clip
from hfq.schema.errors import MalformedFileError


def of_clip(path: Path) -> Signature:
    maker = SignatureMaker()
    with open_clip(path) as clip:
        clip.stream_facts(maker)
    return maker.signature()


def of_luma(frames: Frames) -> Signature:
    maker = SignatureMaker()
    for frame in frames:
        maker.update_luma(frame)
    return maker.signature()


def unit(signature: Signature) -> npt.NDArray[np.float64]:
    """At length 1, [2048]."""
    values = np.frombuffer(signature.data, "<i2").astype(np.float64)
    return np.asarray(values / np.linalg.norm(values))


def luma(seed: int, *, variant: int = 0, **shape: int) -> Frames:
    return np.ascontiguousarray(scene(seed, variant=variant, **shape)[..., 1])


@pytest.mark.parametrize(("frames", "width", "height"), [(17, 160, 96), (33, 100, 52), (5, 17, 16), (1, 8, 9)])
def test_it_is_the_box_average_of_eight_frames(frames: int, width: int, height: int) -> None:
    """Against Pillow's box filter and plain Python."""
    pictures = luma(1, frames=frames, width=width, height=height)
    chosen = [pictures[math.floor((index + 0.5) / 8 * frames)] for index in range(8)]
    cells = [
        value
        for picture in chosen
        for value in np.asarray(
            Image.fromarray(picture.astype(np.float32)).resize((16, 16), Image.Resampling.BOX)
        ).ravel()
        .tolist()
    ]  # fmt: skip
    centred = [value - sum(cells) / len(cells) for value in cells]
    length = math.sqrt(sum(value**2 for value in centred))
    found = of_luma(pictures)
    assert len(found.data) == SIGNATURE_BYTES
    # Pillow takes whole pixels into a cell or leaves them out; ours are shared, so enlarged clips differ.
    if width % 16 == height % 16 == 0:
        assert np.allclose(unit(found), [value / length for value in centred], atol=3e-5)
    else:
        assert float(np.dot(unit(found), [value / length for value in centred])) > 0.98


def test_shared_pixels_are_divided_by_area() -> None:
    """A 24-pixel row makes 16 cells of 1.5 pixels: by hand, cell 0 is (2 x0 + x1) / 3."""
    row = np.arange(24, dtype=np.uint8) * 10
    found = unit(of_luma(np.broadcast_to(row, (8, 16, 24)))).reshape(8, 16, 16)[3, 5]
    cells = []
    for k in range(0, 24, 3):
        x0, x1, x2 = (10.0 * (k + i) for i in range(3))
        cells += [(2 * x0 + x1) / 3, (x1 + 2 * x2) / 3]
    centred = [value - sum(cells) / 16 for value in cells]
    length = math.sqrt(128 * sum(value**2 for value in centred))
    assert np.allclose(found, [value / length for value in centred], atol=1e-5)


def test_distance_is_one_minus_the_cosine() -> None:
    left, right = of_luma(luma(1)), of_luma(luma(2))
    x, y = (np.frombuffer(side.data, "<i2").astype(int).tolist() for side in (left, right))
    dot = sum(p * q for p, q in zip(x, y, strict=True))
    expected = 1 - dot / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))
    assert left.distance(right) == pytest.approx(expected, abs=1e-6)
    assert left.distance(left) < 1e-6
    assert left.distance(right) == right.distance(left)


def test_brightness_and_contrast_do_not_count() -> None:
    pictures = luma(1)
    changed = (40 + pictures * 0.6).astype(np.uint8)
    assert of_luma(pictures).distance(of_luma(changed)) < 2e-4


def test_a_blank_clip_resembles_nothing() -> None:
    noise = np.random.default_rng(0).integers(127, 130, (17, 96, 160)).astype(np.uint8)
    blank = of_luma(noise)
    assert blank.is_blank
    assert blank.distance(blank) == 1.0
    known = [KnownSignature("1", A, None, blank), KnownSignature("2", B, None, of_luma(luma(1)))]
    assert match_signature(blank, known).candidates == ()
    found = match_signature(of_luma(luma(1)), known)
    assert [candidate.variant for candidate in found.candidates] == [B]


def test_other_bytes_are_no_signature() -> None:
    with pytest.raises(MalformedFileError):
        Signature(b"\0" * (SIGNATURE_BYTES - 1))


@pytest.mark.parametrize(("crf", "divide"), [(18, 1), (28, 1), (36, 1), (23, 2), (32, 2)])
def test_reencoding_keeps_the_scene_and_the_nearest_variant(crf: int, divide: int, tmp_path: Path) -> None:
    scenes = {(s, v): write(tmp_path / f"{s}-{v}.mp4", scene(s, variant=v)) for s in range(3) for v in range(3)}
    known = [
        KnownSignature(f"{s}-{v}", (A, B, C)[v], None, of_clip(path)) for (s, v), path in scenes.items()
    ]  # fmt: skip
    for (s, v), path in scenes.items():
        copy = of_clip(reencode(path, tmp_path / f"copy-{s}-{v}-{crf}-{divide}.mp4", crf=crf, divide=divide))
        found = match_signature(copy, known)
        assert found.nearest is not None
        assert found.nearest < SCENE_DISTANCE
        assert found.candidates[0].clip == f"{s}-{v}"
    stranger = match_signature(of_clip(write(tmp_path / "x.mp4", scene(77))), known)
    assert stranger.nearest is not None
    assert stranger.nearest > SCENE_DISTANCE
    assert not stranger.knows_scene


def at(distance: float) -> Signature:
    """A signature at a given distance from `at(0)`."""
    vector = np.zeros(2048)
    vector[0], vector[1] = 1 - distance, math.sqrt(1 - (1 - distance) ** 2)
    return Signature(np.rint(vector * 32767).astype("<i2").tobytes())


def known_at(
    *clips: tuple[Variant, float], scene: str = "prompt:7", settings: str | None = "s"
) -> list[KnownSignature]:
    return [KnownSignature(str(index), variant, scene, at(d), settings) for index, (variant, d) in enumerate(clips)]


def test_the_margin_decides_between_variants_of_a_scene() -> None:
    near = match_signature(at(0), known_at((A, 0.004), (B, 0.011)))
    assert near.margin == pytest.approx(2.75, rel=0.02)
    assert not near.is_decided
    far = match_signature(at(0), known_at((B, 0.016), (A, 0.004)))
    assert far.margin == pytest.approx(4.0, rel=0.02)
    assert far.is_decided
    assert [candidate.variant for candidate in far.candidates] == [A, B]
    assert far.candidates[0].margin == 1.0
    assert far.margin > VARIANT_MARGIN


def test_clips_of_the_same_variant_are_no_rivals() -> None:
    found = match_signature(at(0), known_at((A, 0.002), (A, 0.003), (B, 0.01)))
    assert [(c.variant, c.clip) for c in found.candidates] == [(A, "0"), (B, "2")]
    assert found.margin == pytest.approx(5.0, rel=0.02)


def test_one_variant_of_a_scene_is_never_decided() -> None:
    """The distance to another scene is no margin: any unregistered variant of this one would be called A."""
    found = match_signature(at(0), [*known_at((A, 0.001)), *known_at((B, 0.3), scene="another:7")])
    assert [candidate.variant for candidate in found.candidates] == [A]
    assert found.margin is None
    assert not found.is_decided


def test_the_same_prompt_and_seed_make_a_rival_at_any_distance() -> None:
    found = match_signature(at(0), known_at((A, 0.001), (B, 0.3), scene="prompt:7"))
    assert [candidate.variant for candidate in found.candidates] == [A, B]
    assert found.is_decided
    assert match_signature(at(0), known_at((A, 0.1), (B, 0.3), scene="prompt:7")).candidates == ()


def test_only_clips_of_the_same_settings_are_held_against_each_other() -> None:
    """Another number of steps moves the pictures further than a variant does."""
    for settings in (None, "other"):
        found = match_signature(at(0), [*known_at((A, 0.001)), *known_at((B, 0.01), settings=settings)])
        assert found.margin == pytest.approx(10, rel=0.02)
        assert (found.fair_margin, found.is_decided) == (None, False)
        assert [candidate.fair_margin for candidate in found.candidates] == [1.0, None]
    unknown = match_signature(at(0), known_at((A, 0.001), (B, 0.01), settings=None))
    assert (unknown.fair_margin, unknown.setting) == (None, None)
    several = known_at((A, 0.001), (B, 0.002), (B, 0.01), (A, 0.05))
    assert match_signature(at(0), several).fair_margin == pytest.approx(2, rel=0.05)
    assert [candidate.fair_margin for candidate in match_signature(at(0), several).candidates] == [
        pytest.approx(margin, rel=0.05) for margin in (1, 2)
    ]
    # Of two files with the same frames the one of known settings speaks, whatever they are called.
    twice = [*known_at((A, 0.001), settings=None), *known_at((C, 0.5), (A, 0.001), (B, 0.01))]
    assert match_signature(at(0), twice).fair_margin == pytest.approx(10, rel=0.02)
    # The nearest clip of a variant may be of other settings; the nearest one of these counts.
    both = [*known_at((A, 0.001), (B, 0.002)), *known_at((B, 0.0015), settings="other")]
    assert match_signature(at(0), both).fair_margin == pytest.approx(2, rel=0.05)


def test_two_exact_copies_are_undecided() -> None:
    found = match_signature(at(0), known_at((A, 0.0), (B, 0.0)))
    assert found.margin == 1.0
    assert not found.is_decided


def test_an_empty_registry() -> None:
    found = match_signature(at(0), [])
    assert (found.nearest, found.candidates, found.margin) == (None, (), None)
