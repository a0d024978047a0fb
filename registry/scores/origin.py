"""What is known of the clips that were measured: whose they are, and whether they are the reference's own pictures."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClipOrigin"]


@dataclass(frozen=True, slots=True)
class ClipOrigin:
    """How many of the measured clips something speaks for.

    Args:
        clips: how many were measured.
        claimed: say in their own tag that the variant made them; a tag can be copied.
        registered: the registry knows the file or its decoded frames as the variant's.
        unknown: neither; only whoever measured them says whose they are.
        identical: have exactly the pixels of their reference; 0 for the reference itself.
    """

    clips: int
    claimed: int
    registered: int
    unknown: int
    identical: int = 0

    def __str__(self) -> str:
        text = f"of {self.clips} clips {self.claimed} name their maker and {self.registered} are registered"
        if self.unknown:
            text += f"; NOTHING SAYS WHO MADE {self.unknown}"
        if self.identical:
            text += f"; {self.identical} HAVE EXACTLY THE REFERENCE'S PIXELS"
        return text

    @property
    def is_doubtful(self) -> bool:
        """Whether a clip is not registered, or is the reference over again."""
        return self.registered < self.clips or self.identical > 0
