"""Clips: what is written can be read back, and nothing is half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hfq.convert import video
from hfq.convert.video import enlarge, psnr_db, read_clip, side_by_side, write_clip
from hfq.schema.errors import OutputExistsError, UsageError


def ramp(height: int = 48, width: int = 64, frames: int = 5) -> np.ndarray:
    clip = np.zeros((frames, height, width, 3), dtype=np.uint8)
    for index in range(frames):
        clip[index, :, :, 0] = np.linspace(0, 200, width, dtype=np.uint8)
        clip[index, 8:24, 4 * index : 4 * index + 16] = (20, 200, 90)
    return clip


def test_an_mp4_shows_the_frames_that_were_written(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", ramp(), 8)
    found = read_clip(tmp_path / "clip.mp4")
    assert found.shape == ramp().shape
    assert psnr_db(found, ramp()) > 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"]


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    # An audit tells clips by their decoded frames: an encoder with a mood of its own would make one clip two.
    random = np.random.default_rng(0)
    cells = np.clip(128 + 20 * random.standard_normal((9, 24, 24, 3)), 0, 255).astype(np.uint8)
    files = set()
    for index in range(24):
        # What the encoder finds in memory that it has not written differs from run to run.
        junk = [np.full(random.integers(1000, 300_000), random.integers(255), np.uint8) for _ in range(20)]
        del junk
        write_clip(tmp_path / f"{index}.mp4", enlarge(cells, 2), 16)
        files.add((tmp_path / f"{index}.mp4").read_bytes())
    assert len(files) == 1


def test_odd_sizes_are_padded_and_not_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", ramp(47, 63), 8)
    assert read_clip(tmp_path / "clip.mp4").shape[1:3] == (48, 64)


def test_a_gif_has_every_frame(tmp_path: Path) -> None:
    from PIL import Image

    write_clip(tmp_path / "clip.gif", ramp(), 8)
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.n_frames == 5


def test_an_existing_file_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        write_clip(tmp_path / "clip.mp4", ramp(), 8)
    assert (tmp_path / "clip.mp4").read_bytes() == b"mine"
    with pytest.raises(UsageError):
        write_clip(tmp_path / "clip.webm", ramp(), 8)


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_of_two_writers_at_once_one_is_refused(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {".gif": "_write_gif", ".mp4": "_write_mp4"}[suffix]
    write, path = getattr(video, name), tmp_path / f"clip{suffix}"

    def slowly(temporary: Path, frames: video.Frames, fps: int) -> None:
        write(temporary, frames, fps)
        path.write_bytes(b"the other's")

    monkeypatch.setattr(video, name, slowly)
    with pytest.raises(OutputExistsError):
        write_clip(path, ramp(), 8)
    assert path.read_bytes() == b"the other's"
    assert list(tmp_path.iterdir()) == [path]


def test_psnr_is_the_textbook_formula() -> None:
    left = ramp()
    right = left.copy()
    right[0, 0, 0, 0] += 10
    expected = 10 * np.log10(255**2 / (100 / left.size))
    assert psnr_db(left, right) == pytest.approx(expected)
    assert psnr_db(left, left) == float("inf")


def test_side_by_side_holds_both_clips_under_titles() -> None:
    left, right = ramp(), 255 - ramp()
    joined = side_by_side([("left", left), ("right", right)], gap=8)
    assert joined.shape == (5, 48 + 20, 2 * 64 + 8, 3)
    assert np.array_equal(joined[2, 20:, :64], left[2])
    assert np.array_equal(joined[2, 20:, 72:], right[2])


def test_enlarge_repeats_pixels() -> None:
    assert np.array_equal(enlarge(ramp(), 3)[:, ::3, ::3], ramp())
