"""Writing clips: H.264 MP4 through PyAV, GIF through Pillow."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from hfq.schema.atomic import publish_file
from hfq.schema.errors import MissingDependencyError, OutputExistsError, UsageError

__all__ = ["enlarge", "psnr_db", "read_clip", "refuse_clip", "side_by_side", "write_clip"]

Frames = npt.NDArray[np.uint8]

_X264: Final = {"crf": "12", "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}
"""Same frames, same bytes. With macroblock-tree rate control libx264 made several files of the same frames, also on one
thread (`test_the_same_frames_give_the_same_bytes` fails with it); the number of threads changes the bytes, too."""


def psnr_db(left: Frames, right: Frames) -> float:
    """Peak signal-to-noise ratio of two clips uint8 [frames, height, width, 3], in dB; infinite when they are equal."""
    if left.shape != right.shape:
        raise UsageError("clips of different sizes cannot be compared", expected=left.shape, found=right.shape)
    error = float(np.mean((left.astype(np.float64) - right.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10.0 * np.log10(255.0**2 / error))


def enlarge(frames: Frames, factor: int) -> Frames:
    """Repeat every pixel `factor` times in both directions."""
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def side_by_side(clips: list[tuple[str, Frames]], *, gap: int = 8) -> Frames:
    """Clips of one size in a row, each under its title, uint8 [frames, height', width', 3]."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = clips[0][1].shape[1:3]
    bar = 20
    font = ImageFont.load_default(size=12)
    frames = []
    for index in range(clips[0][1].shape[0]):
        canvas = Image.new("RGB", (len(clips) * (width + gap) - gap, height + bar), (255, 255, 255))
        draw = ImageDraw.Draw(canvas)
        for column, (title, clip) in enumerate(clips):
            left = column * (width + gap)
            draw.text((left + 2, 3), title, fill=(0, 0, 0), font=font)
            canvas.paste(Image.fromarray(clip[index]), (left, bar))
        frames.append(np.asarray(canvas))
    return np.stack(frames)


def refuse_clip(path: Path) -> None:
    """Check, before any work, that a clip may be written to `path`.

    Raises:
        OutputExistsError: the file is there.
        UsageError: a suffix other than .mp4 and .gif, or no such folder.
    """
    if path.exists():
        raise OutputExistsError("the output is already there", where=path, todo="choose another name, or remove it")
    _refuse_suffix(path)
    if not path.parent.is_dir():
        raise UsageError("the folder for the output does not exist", where=path.parent)


def write_clip(path: Path, frames: Frames, fps: int) -> None:
    """Write uint8 [frames, height, width, 3] as `.mp4` (H.264, yuv420p) or `.gif`, by the file's suffix; atomically.

    Raises:
        OutputExistsError, UsageError: see `refuse_clip`.
        MissingDependencyError
    """
    refuse_clip(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(temporary, frames, fps)
        publish_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_suffix(path: Path) -> None:
    if path.suffix not in (".mp4", ".gif"):
        raise UsageError("a clip is written as .mp4 or .gif", found=path.name)


def _refuse_reference(url: str, flags: int, options: object) -> NoReturn:
    raise PermissionError("a clip that refers to another file")


def read_clip(path: Path) -> Frames:
    """All frames of a clip that `write_clip` wrote, uint8 [frames, height, width, 3].

    Raises:
        UsageError: a suffix other than .mp4 and .gif.
        MissingDependencyError
    """
    _refuse_suffix(path)
    require_av()
    import av

    container: Any
    # The file itself and its one demuxer: left to guess, FFmpeg takes a text for a list of other files to open.
    with path.open("rb") as file, av.open(file, format=path.suffix[1:], io_open=_refuse_reference) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def require_av() -> None:
    """Check that PyAV is installed.

    Raises:
        MissingDependencyError
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "MP4 needs PyAV", found=error, todo="install it: pip install 'hfq[video]', or write a .gif"
        ) from None


def _write_gif(path: Path, frames: Frames, fps: int) -> None:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)


def _write_mp4(path: Path, frames: Frames, fps: int) -> None:
    require_av()
    import av

    height, width = frames.shape[1:3]
    # yuv420p halves the colour planes: an odd size gets one more row or column of its edge.
    padded = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    # An absolute path: FFmpeg takes what stands before a colon for a protocol.
    with av.open(str(path.absolute()), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = padded.shape[2], padded.shape[1], "yuv420p"
        stream.options = _X264
        for frame in padded:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
