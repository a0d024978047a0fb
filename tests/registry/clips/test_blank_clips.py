"""What is blank: every model makes it when it fails, so that it says of nobody who made it."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from made_clips import Frames, scene, write

from hfq.registry.clips.blank import BlankWatcher
from hfq.registry.clips.evidence import gather_evidence
from hfq.registry.clips.signature import BLANK_SIGNATURE


def plain(*colours: tuple[int, int, int]) -> Frames:
    return np.stack([np.full((96, 160, 3), colour, np.uint8) for colour in colours])


def noisy(frames: Frames, sigma: float) -> Frames:
    noise = np.random.default_rng(3).normal(0, sigma, frames.shape)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (200, 30, 30)
FADE = plain(*((level,) * 3 for level in range(0, 255, 17)))


@pytest.mark.parametrize(
    "frames", [plain(*[BLACK] * 9), plain(*[WHITE] * 9), plain(*[RED] * 9), FADE, FADE[::-1],
               plain(*[BLACK, WHITE] * 5), plain(*[RED] * 4, *[BLACK] * 5), noisy(plain(*[(128,) * 3] * 9), 1)],
)  # fmt: skip
@pytest.mark.parametrize(("codec", "pixels"), [("libx264", "yuv420p"), ("ffv1", "bgr0"), ("libx264", "yuv420p10le")])
def test_colours_fades_and_faint_noise_are_blank(frames: Frames, codec: str, pixels: str, tmp_path: Path) -> None:
    found = gather_evidence(write(tmp_path / "x.mkv", frames, codec=codec, pixels=pixels))
    assert found.is_blank
    assert found.signature == BLANK_SIGNATURE


def spot(frames: Frames) -> Frames:
    frames[4, 20:50, 30:70] = (90, 90, 90)
    return frames


def colours(frames: Frames) -> Frames:
    """Two colours of one brightness: luma alone would not see them."""
    frames[:, :, :80], frames[:, :, 80:] = (150, 90, 90), (66, 125, 125)
    return frames


@pytest.mark.parametrize(
    "frames", [scene(1, frames=9), spot(plain(*[BLACK] * 9)), colours(plain(*[BLACK] * 9)),
               scene(1, frames=1).repeat(9, axis=0), noisy(plain(*[(128,) * 3] * 9), 12)],
)  # fmt: skip
def test_one_picture_in_one_frame_is_enough(frames: Frames, tmp_path: Path) -> None:
    assert not gather_evidence(write(tmp_path / "x.mp4", frames, crf="10")).is_blank


def test_nothing_is_read_after_the_first_picture() -> None:
    watcher = BlankWatcher()
    watcher.update(av.VideoFrame.from_ndarray(scene(1, frames=1)[0], format="rgb24"))
    watcher.update(None)
    assert not watcher.is_blank
