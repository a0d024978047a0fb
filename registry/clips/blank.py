"""Blank clips: what every model can make, by failing, and nobody can be told by."""

from __future__ import annotations

from typing import Any, Final

from .stream import planes_of

__all__ = ["BlankWatcher"]

_SIGMA: Final = 2.0
"""Levels of 255. A picture of one colour under a codec's noise stays below 1; a dim night scene is above 3."""

_PLANES: Final = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray"})


class BlankWatcher:
    """Sees a clip's frames (`stream.FrameWatcher`) and says whether all of them are blank: in each, luma and colour
    spread by less than two levels. So a clip is blank that fades from one colour to another, and none with one picture.
    """

    def __init__(self) -> None:
        self.is_blank = True
        """Whether every frame so far was."""

    def update(self, frame: Any) -> None:
        """Add one `av.VideoFrame`; nothing is read after the first one that shows something."""
        if self.is_blank:
            plain = frame if frame.format.name in _PLANES else frame.reformat(format="yuv444p")
            self.is_blank = all(float(plane.std()) < _SIGMA for plane in planes_of(plain))
