"""The data: clips of one coloured shape that moves at constant speed over a plain background.

Everything is drawn from signed distances in pixel units, whole batches at once, so that a training step spends almost
nothing on its data. A label is an index into the tuples below, in the order shape, colour, direction, background.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple")
DIRECTIONS = ("left", "right", "up", "down")
BACKGROUNDS = ("black", "gray", "white")
SLOTS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "direction": DIRECTIONS,
    "background": BACKGROUNDS,
}

FRAMES, SIZE = 9, 24
RADIUS = (4.6, 5.6)  # pixels
SPEED = (1.0, 1.3)  # pixels per frame: at most 10.4 over a clip, so that a shape of diameter 11.2 stays in view

# Yellow leans to orange: it has to differ from white after blur. No colour is gray.
_COLOUR_RGB = (
    (0.90, 0.12, 0.12),
    (0.10, 0.70, 0.15),
    (0.12, 0.25, 0.95),
    (0.98, 0.80, 0.05),
    (0.60, 0.15, 0.75),
)
_BACKGROUND_RGB = ((0.03, 0.03, 0.03), (0.50, 0.50, 0.50), (0.97, 0.97, 0.97))
_STEP = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))  # (x, y) per direction; y grows downwards


def random_labels(count: int, generator: torch.Generator) -> Tensor:
    """Labels int64 [count, 4], uniform over every slot."""
    columns = [torch.randint(len(words), (count,), generator=generator) for words in SLOTS.values()]
    return torch.stack(columns, dim=1)


def _between(low: float | Tensor, high: float | Tensor, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _distances(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance in pixels to each shape, [4, B, T, H, W]; negative inside."""
    ax, ay = x.abs(), y.abs()
    circle = torch.sqrt(x * x + y * y) - radius
    square = torch.maximum(ax, ay) - 0.88 * radius
    # An upright triangle of inradius 0.6 r; moved down a little so that its box is centred.
    yt = y - 0.3 * radius
    triangle = torch.maximum(yt, 0.8660254 * ax - 0.5 * yt) - 0.62 * radius
    arm = 0.34 * radius
    cross = torch.minimum(torch.maximum(ax - radius, ay - arm), torch.maximum(ax - arm, ay - radius))
    return torch.stack((circle, square, triangle, cross))


def draw_clips(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one clip per label row.

    Args:
        labels: int64 [B, 4], see `SLOTS`.
        generator: decides size, speed and starting point.

    Returns:
        float32 [B, 3, 9, 24, 24] in [-1, 1].
    """
    count = labels.shape[0]
    radius = _between(*RADIUS, count, generator)
    speed = _between(*SPEED, count, generator)
    step = torch.tensor(_STEP)[labels[:, 2]] * speed[:, None]  # [B, 2]
    travel = (step * (FRAMES - 1)).abs()
    # A start point anywhere such that the whole path stays inside the frame.
    room = SIZE - 2 * radius[:, None] - travel
    start = radius[:, None] + torch.rand(count, 2, generator=generator) * room.clamp(min=0)
    start = torch.where(step < 0, start + travel, start)
    frame = torch.arange(FRAMES, dtype=torch.float32)
    centre = start[:, :, None] + step[:, :, None] * frame  # [B, 2, T]
    pixel = torch.arange(SIZE, dtype=torch.float32) + 0.5
    x = pixel[None, None, None, :] - centre[:, 0, :, None, None]
    y = pixel[None, None, :, None] - centre[:, 1, :, None, None]
    x, y = torch.broadcast_tensors(x, y)
    distance = _distances(x, y, radius[:, None, None, None])
    distance = distance[labels[:, 0], torch.arange(count)]
    cover = (0.5 - distance).clamp(0, 1)[:, None]  # [B, 1, T, H, W]
    colour = torch.tensor(_COLOUR_RGB)[labels[:, 1]][:, :, None, None, None]
    background = torch.tensor(_BACKGROUND_RGB)[labels[:, 3]][:, :, None, None, None]
    return (background + (colour - background) * cover) * 2 - 1


def prompt_of(label: Tensor) -> str:
    """The sentence that describes one label row [4]."""
    shape, colour, direction, background = (words[int(i)] for words, i in zip(SLOTS.values(), label, strict=True))
    return f"a {colour} {shape} moving {direction} over a {background} background"
