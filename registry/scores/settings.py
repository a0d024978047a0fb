"""Were both sides of a comparison generated alike? Guidance, steps or shift alone move every score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from hfq.schema.errors import SettingsDifferError

from .values import SettingValue

__all__ = ["BLOCKING", "DECISIVE", "SettingDifference", "compare_settings", "require_alike", "sort_differences"]

DECISIVE: Final = (
    "guidance", "guidance_2", "steps", "shift", "boundary", "frames", "height", "width", "scheduler", "negative_prompt",
    "first_frame",
)  # fmt: skip
"""A difference in one of these makes scores incomparable. A changed shift also moves the split between the experts, and
what is done to the first frame (overwritten, frozen, blank) raises consistency scores. Others, such as seed and fps,
are reported."""

_OPTIONAL: Final = frozenset(("guidance_2", "boundary", "negative_prompt", "first_frame"))
"""Not every run has one: where neither side records it, nothing is missing."""

Kind = Literal["decisive", "one-sided", "unknown", "minor"]

BLOCKING: Final[frozenset[Kind]] = frozenset(("decisive", "one-sided"))
"""Kinds that forbid to call it a comparison. Were one-sided ones let through, leaving a setting out would hide it."""

_ORDER: Final[tuple[Kind, ...]] = ("decisive", "one-sided", "unknown", "minor")


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting that is not known to be equal.

    Args:
        kind: "one-sided" is a decisive setting that one side alone records, "unknown" one that neither does.
        metrics: labels of the scores that it concerns; empty where it is all that are compared.
    """

    name: str
    kind: Kind
    first: SettingValue
    second: SettingValue
    metrics: tuple[str, ...] = ()

    def __str__(self) -> str:
        def show(value: SettingValue) -> str:
            return "not recorded" if value is None else str(value)

        concerned = f" (of {', '.join(self.metrics)})" if self.metrics else ""
        return f"{self.name}: {show(self.first)} against {show(self.second)}{concerned}"


def compare_settings(
    first: Mapping[str, SettingValue], second: Mapping[str, SettingValue]
) -> tuple[SettingDifference, ...]:
    """Differences in the order of their kinds, each by name. None and absent both mean not recorded."""
    result = []
    for name in sorted({*DECISIVE, *first, *second}):
        one, other = first.get(name), second.get(name)
        if one is None or other is None:
            neither = one is None and other is None
            if name in DECISIVE and not (neither and name in _OPTIONAL):
                result.append(SettingDifference(name, "unknown" if neither else "one-sided", one, other))
            elif not neither:
                result.append(SettingDifference(name, "minor", one, other))
        elif one != other:
            result.append(SettingDifference(name, "decisive" if name in DECISIVE else "minor", one, other))
    return sort_differences(result)


def sort_differences(differences: Iterable[SettingDifference]) -> tuple[SettingDifference, ...]:
    """By kind, those that forbid a comparison first; otherwise as they come."""
    return tuple(sorted(differences, key=lambda difference: _ORDER.index(difference.kind)))


def require_alike(differences: Iterable[SettingDifference]) -> None:
    """Refuse to call it a comparison.

    Raises:
        SettingsDifferError: a decisive setting differs, or one side alone records it; every one is named.
    """
    blocking = [difference for difference in differences if difference.kind in BLOCKING]
    if not blocking:
        return
    if any(difference.kind == "decisive" for difference in blocking):
        what = "generated with other settings: this would compare the settings"
        todo = "generate both alike, or look at the numbers anyway with --anyway"
    else:
        what = "not known to be generated alike: one side does not record a setting that decides scores"
        todo = "import it again with --setting NAME=VALUE, or look at the numbers anyway with --anyway"
    raise SettingsDifferError(what, found="; ".join(map(str, blocking)), todo=todo)
