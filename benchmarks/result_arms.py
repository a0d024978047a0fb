"""The arms of the results table: one row each, and which of them are set against each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from hfq.convert.recipe import load_recipe

__all__ = ["COMPARISONS", "FAMILIES", "Arm", "Comparison", "Mxfp4Options", "all_arms"]

FAMILIES: Final[Mapping[str, tuple[str, str | None]]] = {
    "base": ("base", None),
    "hif8": ("8 bits, HiFloat8", "rtn-hif8"),
    "hif4": ("4 bits, HiFloat4", "rtn-hif4"),
    "mxfp4": ("4 bits, MXFP4, simulated", "rtn-hif4"),
}
"""family -> heading, and the plain rounding that its arms are paired with."""

KEPT: Final = 5  # as many as Boundary-Protection keeps
CONTROL_SEEDS: Final = (1, 2, 3)
FIRST_BLOCK: Final = {"select": "blocks", "blocks": [0], "to": "keep", "reason": "first block"}
TAIL_STATISTICS: Final = {
    "max": ("max", None), "p99.99": ("percentile", 99.99), "p99.9": ("percentile", 99.9), "p99": ("percentile", 99.0),
    "rms": ("rms", None),
}  # fmt: skip
LOW_RANK: Final = 4


@dataclass(frozen=True)
class Mxfp4Options:
    """What `mxfp4_arm` does to every linear of the blocks.

    Attributes:
        smooth: max mask.
        rank: of the low-rank branch; 0 for none.
        damp: GPTQ's; None for plain rounding.
        search: clip ratio and exponent offset per timestep bin, else 1 and 0.
    """

    smooth: bool
    rank: int
    damp: float | None
    search: bool


@dataclass(frozen=True)
class Arm:
    """One row.

    Attributes:
        key: unique; the name of its recipe where it has one.
        label: what the table shows.
        family: a key of `FAMILIES`.
        recipe: document of the delta that is converted and applied; None for the base and for simulated arms.
        simulated: what stands in for a delta.
    """

    key: str
    label: str
    family: str
    recipe: Mapping[str, Any] | None = None
    simulated: Mxfp4Options | None = None

    @property
    def plain(self) -> str | None:
        """Key of the plain rounding to pair with; None for that arm itself and for the base."""
        plain = FAMILIES[self.family][1]
        return None if plain == self.key else plain

    def definition(self) -> dict[str, Any]:
        """What the row depends on, as JSON."""
        simulated = None if self.simulated is None else asdict(self.simulated)
        return {"family": self.family, "recipe": self.recipe, "simulated": simulated}


def _document(
    preset: str,
    key: str,
    *,
    weight: Mapping[str, Any] | None = None,
    stages: Sequence[Mapping[str, Any]] | None = None,
    keep: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A preset under another name: options of its weight format, other stages, routes before its own."""
    document = copy.deepcopy(dict(load_recipe(preset).document))
    document["name"], document["description"] = key, f"{preset}, changed for the results table"
    document["weight"] |= weight or {}
    if stages is not None:
        document["stage"] = [dict(stage) for stage in stages]
    document["route"] = [*keep, *document["route"]]
    return document


def _hif8() -> Iterator[Arm]:
    first_last = {"select": "first+last", "first": 2, "last": 3, "to": "keep"}
    direct = {"scale": "none"}
    for preset in ("rtn-hif8", "boundary-hif8"):
        yield Arm(preset, preset, "hif8", load_recipe(preset).document)
        key = f"{preset}.direct"
        yield Arm(key, f"{preset}, direct cast", "hif8", _document(preset, key, weight=direct))
    for key, label, keep in (
        ("boundary-hif8.first", "boundary: first 2 kept alone", {**first_last, "last": 0}),
        ("boundary-hif8.last", "boundary: last 3 kept alone", {**first_last, "first": 0}),
        *(
            (f"boundary-hif8.random{seed}", f"boundary: {KEPT} random blocks kept, seed {seed}",
             {"select": "random", "k": KEPT, "seed": seed, "to": "keep"})
            for seed in CONTROL_SEEDS
        ),
    ):  # fmt: skip
        yield Arm(key, label, "hif8", _document("rtn-hif8", key, keep=[keep]))


def _hif4() -> Iterator[Arm]:
    rotate = {"kind": "rotate", "block": 64, "seed": 0}
    search = {"scale_search": True}
    yield Arm("rtn-hif4", "rtn-hif4", "hif4", load_recipe("rtn-hif4").document)
    for key, label, weight, stages in (
        ("rtn-hif4.search", "rtn-hif4, scale search", search, None),
        ("rtn-hif4.rotate", "rtn-hif4, rotate 64", None, [rotate]),
    ):
        yield Arm(key, label, "hif4", _document("rtn-hif4", key, weight=weight, stages=stages))
    smooth = dict(load_recipe("tail-aware-hif4").stages[0])
    smooth.pop("percentile")
    for name, (statistic, percentile) in TAIL_STATISTICS.items():
        key = f"tail-aware-hif4.{name}"
        stage = {**smooth, "statistic": statistic} | ({} if percentile is None else {"percentile": percentile})
        yield Arm(key, f"tail-aware-hif4, {name}", "hif4", _document("tail-aware-hif4", key, stages=[stage]))
    preset = "tail-aware-rot-hif4"
    yield Arm(preset, preset, "hif4", load_recipe(preset).document)
    key = f"{preset}.search"
    yield Arm(key, f"{preset}, scale search", "hif4", _document(preset, key, weight=search))
    for plain in ("rtn-hif4", preset):
        key = f"{plain}.first"
        yield Arm(key, f"{plain}, block 0 kept", "hif4", _document(plain, key, keep=[FIRST_BLOCK]))
    yield Arm("smooth-mixq-hif4", "smooth-mixq-hif4", "hif4", load_recipe("smooth-mixq-hif4").document)
    yield from _svdquant_gptq()


def _svdquant_gptq() -> Iterator[Arm]:
    """The preset's parts alone, then together with every scope of the clip."""
    preset = "svdquant-gptq-hif4"
    smooth, lowrank, gptq, clip = load_recipe(preset).stages
    small = {**lowrank, "rank": LOW_RANK}
    for key, label, stages in (
        ("smooth-clip-hif4", "smooth + clip per bin", [smooth, clip]),
        ("smooth-lowrank-hif4", f"smooth + low rank {LOW_RANK}", [smooth, small]),
        ("smooth-gptq-hif4", "smooth + GPTQ, dynamic scales", [smooth, {**gptq, "group_scale": "dynamic"}]),
        ("smooth-gptq-hif4.static", "smooth + GPTQ, static scales", [smooth, {**gptq, "group_scale": "static"}]),
    ):
        yield Arm(key, label, "hif4", _document(preset, key, stages=stages))
    yield Arm(preset, f"{preset} (rank 32, clip per bin)", "hif4", load_recipe(preset).document)
    key, medium = f"{preset}.r16.bin", {**lowrank, "rank": 16}
    yield Arm(
        key, f"{preset}, rank 16, clip per bin", "hif4", _document(preset, key, stages=[smooth, medium, gptq, clip])
    )
    for key, words, last in (
        (f"{preset}.r4.none", "no clip", []),
        (f"{preset}.r4.global", "one clip", [{**clip, "scope": "global"}]),
        (f"{preset}.r4.expert", "clip per expert", [{**clip, "scope": "expert"}]),
        (f"{preset}.r4.bin", "clip per bin", [clip]),
    ):
        document = _document(preset, key, stages=[smooth, small, gptq, *last])
        yield Arm(key, f"{preset}, rank {LOW_RANK}, {words}", "hif4", document)


def _mxfp4() -> Iterator[Arm]:
    released = Mxfp4Options(smooth=True, rank=16, damp=0.01, search=False)
    for key, label, options in (
        ("mxfp4", "MXFP4, plain rounding", Mxfp4Options(smooth=False, rank=0, damp=None, search=False)),
        ("mxfp4.released", "MXFP4, released parameters (rank 16)", released),
        ("mxfp4.released.bin", "MXFP4, released parameters, search per bin",
         Mxfp4Options(smooth=True, rank=16, damp=0.01, search=True)),
    ):  # fmt: skip
        yield Arm(key, label, "mxfp4", simulated=options)


def all_arms() -> list[Arm]:
    """Every arm, in the order of the table; the plain roundings first of their families."""
    return [Arm("BF16", "BF16", "base"), *_hif8(), *_hif4(), *_mxfp4()]


@dataclass(frozen=True)
class Comparison:
    """A small table: each arm against another one, paired.

    Attributes:
        name: in results.json.
        title: above the table.
        pairs: (arm, against), keys of arms.
    """

    name: str
    title: str
    pairs: tuple[tuple[str, str], ...]


def _against(arms: Sequence[str], against: str) -> tuple[tuple[str, str], ...]:
    return tuple((arm, against) for arm in arms)


_CONTROLS: Final = tuple(f".random{seed}" for seed in CONTROL_SEEDS)
_R4: Final = "svdquant-gptq-hif4.r4"
_SCOPES: Final = (f"{_R4}.global", f"{_R4}.expert", f"{_R4}.bin")
_TAIL: Final = "tail-aware-hif4"

COMPARISONS: Final = (
    Comparison(
        "clip",
        "Clip scopes against each other (svdquant-gptq-hif4, rank 4), and a clip without the rest",
        (
            *_against(_SCOPES, f"{_R4}.none"),
            *_against(_SCOPES[1:], _SCOPES[0]),
            (_SCOPES[2], _SCOPES[1]),
            ("smooth-clip-hif4", f"{_TAIL}.max"),
        ),
    ),
    Comparison(
        "percentile",
        "Percentile masks against the max mask",
        _against([f"{_TAIL}.{name}" for name in TAIL_STATISTICS if name != "max"], f"{_TAIL}.max"),
    ),
    Comparison(
        "boundary",
        "Kept blocks against none, and against a control of equal size",
        (
            *_against([f"boundary-hif8{end}" for end in (".first", ".last", "", *_CONTROLS)], "rtn-hif8"),
            *(("boundary-hif8", f"boundary-hif8{control}") for control in _CONTROLS),
            ("rtn-hif4.first", "rtn-hif4"),
            ("tail-aware-rot-hif4.first", "tail-aware-rot-hif4"),
        ),
    ),
    Comparison(
        "hif8-scale",
        "HiFloat8: a direct cast of the weights against a scale per row",
        (("rtn-hif8.direct", "rtn-hif8"), ("boundary-hif8.direct", "boundary-hif8")),
    ),
    Comparison(
        "parts",
        "One step at a time",
        (
            ("tail-aware-rot-hif4", f"{_TAIL}.p99.9"),
            ("tail-aware-rot-hif4", "rtn-hif4.rotate"),
            ("tail-aware-rot-hif4.search", "tail-aware-rot-hif4"),
            ("smooth-lowrank-hif4", f"{_TAIL}.max"),
            ("smooth-gptq-hif4", f"{_TAIL}.max"),
            ("smooth-gptq-hif4.static", "smooth-gptq-hif4"),
            (f"{_R4}.none", "smooth-gptq-hif4"),
            ("svdquant-gptq-hif4", f"{_R4}.bin"),
        ),
    ),
    Comparison(
        "mxfp4",
        "MXFP4 (simulated): the released parameters, their search, and HiFloat4",
        (
            ("mxfp4.released", "mxfp4"),
            ("mxfp4.released.bin", "mxfp4.released"),
            ("mxfp4.released", "svdquant-gptq-hif4.r16.bin"),
            ("mxfp4.released.bin", "svdquant-gptq-hif4.r16.bin"),
        ),
    ),
)
