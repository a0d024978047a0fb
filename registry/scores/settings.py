"""Were both sides of a comparison generated alike? Guidance, steps or shift alone move every score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from hfq.schema.errors import SettingsDifferError

from .values import SettingValue

__all__ = ["DECISIVE", "SettingDifference", "compare_settings", "require_alike"]

DECISIVE: Final = (
    "guidance", "guidance_2", "steps", "shift", "boundary", "frames", "height", "width", "scheduler", "negative_prompt",
    "first_frame",
)  # fmt: skip
"""A difference in one of these makes scores incomparable. A changed shift also moves the split between the experts, and
what is done to the first frame (overwritten, frozen, blank) raises consistency scores. Others, such as seed and fps,
are reported."""

_OPTIONAL: Final = frozenset(("guidance_2", "boundary", "negative_prompt", "first_frame"))
"""Not every run has one: where neither side records it, nothing is missing."""


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting that is not known to be equal. `kind` "unknown": a decisive one that a side does not record."""

    name: str
    kind: Literal["decisive", "minor", "unknown"]
    first: SettingValue
    second: SettingValue

    def __str__(self) -> str:
        def show(value: SettingValue) -> str:
            return "not recorded" if value is None else str(value)

        return f"{self.name}: {show(self.first)} against {show(self.second)}"


def compare_settings(
    first: Mapping[str, SettingValue], second: Mapping[str, SettingValue]
) -> tuple[SettingDifference, ...]:
    """Differences, the decisive first, then the unknown, each by name. None and absent both mean not recorded."""
    result = []
    for name in sorted({*DECISIVE, *first, *second}):
        one, other = first.get(name), second.get(name)
        if one is None or other is None:
            neither = one is None and other is None
            if name in DECISIVE and not (neither and name in _OPTIONAL):
                result.append(SettingDifference(name, "unknown", one, other))
            elif not neither:
                result.append(SettingDifference(name, "minor", one, other))
        elif one != other:
            result.append(SettingDifference(name, "decisive" if name in DECISIVE else "minor", one, other))
    order = ("decisive", "unknown", "minor")
    return tuple(sorted(result, key=lambda difference: order.index(difference.kind)))


def require_alike(differences: Iterable[SettingDifference]) -> None:
    """Refuse to call it a comparison.

    Raises:
        SettingsDifferError: a decisive setting differs; every one is named.
    """
    decisive = [str(difference) for difference in differences if difference.kind == "decisive"]
    if decisive:
        raise SettingsDifferError(
            "generated with other settings: this would compare the settings",
            found="; ".join(decisive),
            todo="generate both alike, or look at the numbers anyway with --anyway",
        )
