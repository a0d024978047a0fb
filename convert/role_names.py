"""What a file or folder name says about an expert's role: high noise, low noise, both, or nothing.

`high_noise`, `HighNoise` and `low-noise` say it whatever stands around them. A bare `HIGH` or `low` says it only where
nothing else can be meant: not `high_quality`, not `lowvram`, not in a name of a model that has no experts.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["roles_in"]

# A word begins where no letter is before it, at a capital (`i2vHigh`, `A14BHigh`), or behind `i2v` and `14b`.
_WORD: Final = (
    r"(?:(?<![A-Za-z])(?i:high|low)|(?<=[a-z])(?:High|Low|HIGH|LOW)|(?<=[A-Z])(?:High|Low)"
    r"|(?:(?<=[0-9][bB])|(?<=2[vV]))(?i:high|low))"
)
# And ends where no letter follows, or a capital (`HighNoiseModel`, `HIGHNoise`).
_END: Final = r"(?:(?![A-Za-z])|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]))"

_NOISE: Final = re.compile(rf"({_WORD})[-_. ]{{0,3}}(?i:noise){_END}")
_BARE: Final = re.compile(rf"({_WORD}){_END}(?![-_. ]{{0,3}}(?i:noise))")

# What may follow a bare word: a size, a dtype, a version, an author, the end.
_AFTER: Final = re.compile(
    r"[-_. ()\[\]]*(?:$|(?:safetensors|a?[0-9]+b|bf16|fp?(?:8|16|32)|e[45]m[23](?:fn)?|scaled|v[0-9]+|model|expert|dit"
    r"|kj|comfy|t?[ti]2v|vace|wan|[0-9]{3,4}p|[0-9]{5}-of|merged?|pruned|ema|final|epoch|lightning"
    r"|lightx2v|distill(?:ed)?|[0-9]{1,2}\))"
    r"(?![a-z]))",
    re.IGNORECASE,
)
# What a bare word belongs to when it stands before it.
_BEFORE: Final = re.compile(
    r"(?:quality|details?|res|resolution|motion|v?ram|mem|memory|fps|bitrate|cfg|rank|snr|speed|very|ultra|super|extra|too|"
    r"mid|medium|not?|non)[-_. ]*$",
    re.IGNORECASE,
)
_NO_EXPERTS: Final = re.compile(
    r"wan[-_. ]?(?:v|video)?[-_. ]?2[-_. ]?1(?![0-9])|ti2v|(?<![0-9])(?:5|1[._]3)b", re.IGNORECASE
)


def roles_in(name: str) -> frozenset[str]:
    """The roles that a name speaks of: none, one, or both, which says nothing either.

    >>> sorted(roles_in("Wan2_2-I2V-A14B-HIGH_bf16.safetensors"))
    ['high_noise']
    >>> sorted(roles_in("wan_high_quality.safetensors"))
    []
    """
    said = {match[1].lower() for match in _NOISE.finditer(name)}
    if not _NO_EXPERTS.search(name):
        bare = list(_BARE.finditer(name))
        meant = {
            match[1].lower()
            for match in bare
            if _AFTER.match(name, match.end()) and not _BEFORE.search(name[: match.start()])
        }
        # Two bare words of which one could mean something else: too little to guess by.
        said |= meant if said or not meant else {match[1].lower() for match in bare}
    return frozenset(f"{word}_noise" for word in said)
