"""What part of an expert a graph holds: one site, one block, or the whole transformer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from hfq.convert.architecture import Architecture
from hfq.schema.errors import UsageError

__all__ = ["MODEL", "TEXT_WITH_IMAGE", "Axis", "GraphInput", "Scope", "graph_inputs"]

Kind = Literal["site", "block", "model"]

TEXT_WITH_IMAGE: Final = 512
"""Text tokens of a model with an image branch."""

_BLOCK: Final = re.compile(r"0|[1-9][0-9]{0,3}", re.ASCII)


@dataclass(frozen=True)
class Scope:
    """A part of an expert.

    Attributes:
        kind: "site", "block" or "model".
        name: original Wan name of the site, index of the block in decimal, "" for the model.
    """

    kind: Kind
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Scope:
        """The inverse of `str`: `site:blocks.3.ffn.0`, `block:3` or `model`.

        Raises:
            UsageError
        """
        kind, _, name = text.partition(":")
        if (kind == "model" and not name) or (kind == "block" and _BLOCK.fullmatch(name)) or (kind == "site" and name):
            return cls(kind, name)  # type: ignore[arg-type]
        raise UsageError("not a part of a model", expected="site:NAME, block:N or model", found=text)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind

    @property
    def block(self) -> int:
        """Index of the block; only for that kind."""
        return int(self.name)

    def holds(self, tensor: str) -> bool:
        """Whether a base tensor, or a site, by canonical name, is part of it."""
        if self.kind == "model":
            return True
        prefix = f"blocks.{self.name}." if self.kind == "block" else f"{self.name}."
        return tensor.startswith(prefix) or tensor == self.name

    def check(self, architecture: Architecture) -> None:
        """Check that a model of this architecture has this part.

        Raises:
            UsageError
        """
        if self.kind == "block" and self.block >= architecture.num_layers:
            raise UsageError(
                "the model has no such block", expected=f"0 to {architecture.num_layers - 1}", found=self.name
            )
        if self.kind == "site" and self.name not in {site.name for site in architecture.sites()}:
            raise UsageError(
                "the model has no such linear",
                expected="an original Wan name without .weight, for example blocks.0.self_attn.q",
                found=self.name,
            )


MODEL: Final = Scope("model")


@dataclass(frozen=True)
class Axis:
    """A dynamic axis: `multiple` times a number that is free, called `name`."""

    name: str
    multiple: int = 1


@dataclass(frozen=True)
class GraphInput:
    """An input of a graph, float32: its name, and per axis a fixed extent or a dynamic one."""

    name: str
    axes: tuple[int | Axis, ...]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The extents for given free numbers."""
        return tuple(axis if isinstance(axis, int) else axis.multiple * sizes[axis.name] for axis in self.axes)


def graph_inputs(architecture: Architecture, scope: Scope) -> tuple[GraphInput, ...]:
    """The inputs of a graph, in order.

    A site has `x`. A block has the residual stream, the embedded text (behind the embedded image, if the model has
    one), the projected timestep and the rotary tables. The model has what diffusers' transformer is called with.
    """
    batch, tokens, text = Axis("batch"), Axis("tokens"), Axis("text")
    if scope.kind == "site":
        site = next(site for site in architecture.sites() if site.name == scope.name)
        return (GraphInput("x", (batch, tokens, site.in_features)),)
    per_token = architecture.model_type == "ti2v"
    if scope.kind == "block":
        dim, head = architecture.dim, architecture.head_dim or 0
        return (
            GraphInput("hidden_states", (batch, tokens, dim)),
            GraphInput("encoder_hidden_states", (batch, text, dim)),
            GraphInput("temb", (batch, tokens, 6, dim) if per_token else (batch, 6, dim)),
            GraphInput("rotary_cos", (1, tokens, 1, head)),
            GraphInput("rotary_sin", (1, tokens, 1, head)),
        )
    frames, height, width = (
        Axis(name, patch) for name, patch in zip(("frames", "height", "width"), architecture.patch_size, strict=True)
    )
    found = [
        GraphInput("hidden_states", (batch, architecture.in_channels, frames, height, width)),
        GraphInput("timestep", (batch, tokens) if per_token else (batch,)),
        GraphInput("encoder_hidden_states", (batch, text, architecture.text_dim)),
    ]
    if architecture.image_dim is not None:
        # What stands before the text in the context is the image: diffusers cuts there by a fixed length of the text.
        found[-1] = GraphInput("encoder_hidden_states", (batch, TEXT_WITH_IMAGE, architecture.text_dim))
    if architecture.image_dim is not None:
        if architecture.image_tokens is None:
            image: tuple[int | Axis, ...] = (batch, Axis("image_tokens"), architecture.image_dim)
        else:  # a first and a last frame, one after the other; the model joins their tokens
            image = (Axis("batch", 2), architecture.image_tokens // 2, architecture.image_dim)
        found.append(GraphInput("encoder_hidden_states_image", image))
    if architecture.vace_blocks:
        channels = architecture.vace_in_channels or 0
        found.append(GraphInput("control_hidden_states", (batch, channels, frames, height, width)))
    return tuple(found)
