"""Policies: which evidence a variant needs before it serves a workload. TOML or JSON against `hfq.policy/1`."""

from __future__ import annotations

import importlib.resources
import math
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from hfq.schema.canonical import canonical_json, sha256_hex
from hfq.schema.documents import parse_json, read_bytes, validate
from hfq.schema.errors import MalformedFileError, PolicyError, SchemaViolationError, UnknownWorkloadError

from .intervals import MIN_PROMPTS
from .opens2v import METRICS, NATURAL
from .ranges import Limits, limits_of, limits_text
from .vbench import DIMENSIONS
from .vbench_i2v import I2V_DIMENSIONS

__all__ = ["MAX_POLICY_BYTES", "Gate", "Policy", "ReviewRule", "Workload", "load_policy", "parse_policy"]

MAX_POLICY_BYTES: Final = 1024 * 1024

_KNOWN_METRICS: Final = {
    "vbench": frozenset(DIMENSIONS),
    "vbench-i2v": frozenset(I2V_DIMENSIONS),
    "opens2v": frozenset((*METRICS, NATURAL)),
    # psnr and ssim compare with the base: the base has none of its own to be held against.
    "hfq": frozenset(("temporal_flicker", "frame_to_frame_ssim", "first_frame_ssim")),
}


@dataclass(frozen=True, slots=True)
class Gate:
    """A metric, of any one of the suites, whose retained share, or the bound of it, must be at least `min_retained`.

    `limits`: what the policy takes the lowest and highest value to be; None for the metric's own range.
    """

    metric: str
    suites: tuple[str, ...]
    min_retained: float
    each_category: bool
    source: str
    limits: tuple[float, float] | None = None

    def limits_in(self, suite: str) -> Limits | None:
        """The range of the metric's values in one of the suites; None where nobody knows it."""
        return self.limits or limits_of(suite, self.metric)


@dataclass(frozen=True, slots=True)
class ReviewRule:
    """`min_share` of the scored clips have an outcome; `min_accepted` is held against the accepted share, or against
    the lower bound of it where the workload asks for bounds.
    """

    min_share: float
    min_accepted: float


@dataclass(frozen=True, slots=True)
class Workload:
    """One use of the model; the fields are those of the schema, which says what each means.

    `confidence`: of the lower bounds that decide; None where means are compared, without a bound.
    """

    name: str
    suitability: str
    control: str
    prefer: Literal["cheapest", "base"]
    escalate_to: str
    min_videos: int
    min_prompts: int
    min_paired_share: float
    held_out: bool
    required_categories: tuple[str, ...]
    content_class: Literal["optional", "required"]
    min_category_videos: int
    review_in_use: float
    review: ReviewRule | None
    gates: tuple[Gate, ...]
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy. `id` is the SHA-256 of its canonical JSON: an outcome names the policy that it was judged by."""

    id: str
    name: str
    description: str
    workloads: tuple[Workload, ...]

    def workload(self, name: str) -> Workload:
        """The workload of a name.

        Raises:
            UnknownWorkloadError: the message lists the policy's workloads.
        """
        for workload in self.workloads:
            if workload.name == name:
                return workload
        raise UnknownWorkloadError(
            "no such workload", where=f"policy {self.name}", found=name,
            expected=", ".join(workload.name for workload in self.workloads),
        )  # fmt: skip


def load_policy(path: str | os.PathLike[str] | None = None) -> Policy:
    """A policy from a TOML or JSON file; the default policy without one.

    Raises:
        MissingPathError, UnreadableFileError, TooLargeError
        MalformedFileError, SchemaViolationError, UnknownSchemaVersionError, PolicyError: a file that is no policy.
    """
    if path is None:
        source = importlib.resources.files("hfq.registry") / "policies" / "default.toml"
        return parse_policy(source.read_bytes(), "default.toml")
    location = Path(path)
    data = read_bytes(location, MAX_POLICY_BYTES)
    return parse_policy(data, str(location), is_json=location.suffix.lower() == ".json")


def parse_policy(data: bytes, where: str, *, is_json: bool = False) -> Policy:
    """A policy from the bytes of its document.

    Raises:
        MalformedFileError, SchemaViolationError, UnknownSchemaVersionError, PolicyError
    """
    parsed = parse_json(data, where) if is_json else _parse_toml(data, where)
    _refuse_bounds_of_few(parsed, where)
    document = validate(parsed, "policy", where)
    confidence = document.get("confidence")
    workloads = tuple(_workload(entry, confidence, f"{where}: {entry['name']}") for entry in document["workload"])
    names = [workload.name for workload in workloads]
    for name in names:
        if names.count(name) > 1:
            raise PolicyError("a workload twice", where=where, found=name)
    return Policy(
        id=sha256_hex(canonical_json(document)),
        name=document["name"],
        description=document.get("description", ""),
        workloads=workloads,
    )


def _parse_toml(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedFileError("not UTF-8", where=where, found=f"byte {error.start}") from None
    except ValueError as error:
        raise MalformedFileError("not TOML", where=where, found=error) from None
    except RecursionError:
        raise MalformedFileError("nested too deeply", where=where) from None
    # No bound of a schema holds for NaN, and none is broken by it.
    for value in _leaves(document):
        if isinstance(value, float) and not math.isfinite(value):
            raise PolicyError("a number that is not finite", where=where, found=value)
    return document


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _leaves(child)
    else:
        yield value


def _refuse_bounds_of_few(document: Any, where: str) -> None:
    """What the schema refuses as well, in words that say the way out: many policies of earlier releases ask for it.

    Raises:
        PolicyError, SchemaViolationError
    """
    if not isinstance(document, dict) or not isinstance(document.get("workload"), list):
        return
    for number, entry in enumerate(document["workload"]):
        if "confidence" not in document:
            if isinstance(entry, dict) and entry.get("decide_by") == "bound":
                raise SchemaViolationError(
                    "a bound without a confidence", where=f"{where}: workload/{number}/decide_by",
                    todo='give the policy a confidence, such as 0.95, or compare means: decide_by = "mean"',
                )  # fmt: skip
            continue
        prompts = entry.get("min_prompts") if isinstance(entry, dict) else None
        if isinstance(prompts, int) and prompts < MIN_PROMPTS and entry.get("decide_by", "bound") == "bound":
            raise PolicyError(
                "too few prompts for a confidence bound", where=f"{where}: {entry.get('name')}",
                expected=f"min_prompts of at least {MIN_PROMPTS}", found=prompts,
                todo='raise min_prompts, or compare means without a bound: decide_by = "mean"',
            )  # fmt: skip


def _workload(entry: dict[str, Any], confidence: float | None, where: str) -> Workload:
    if entry.get("decide_by") == "mean":
        confidence = None
    gates = tuple(_gate(gate, confidence, where) for gate in entry["gate"])
    in_categories = confidence is not None and any(gate.each_category for gate in gates)
    if in_categories and entry["min_category_videos"] < MIN_PROMPTS:
        raise PolicyError(
            "too few videos for a confidence bound in each category", where=where,
            expected=f"min_category_videos of at least {MIN_PROMPTS}", found=entry["min_category_videos"],
            todo='raise min_category_videos, or compare means without a bound: decide_by = "mean"',
        )  # fmt: skip
    categories = tuple(entry["required_categories"])
    if len({(gate.metric, gate.suites) for gate in gates}) != len(gates):
        raise PolicyError("a gate twice", where=where)
    if entry["min_videos"] < entry["min_prompts"]:
        raise PolicyError("more prompts than videos", where=where, found=f"min_prompts {entry['min_prompts']}")
    review = entry.get("review")
    return Workload(
        name=entry["name"],
        suitability=entry["suitability"],
        control=entry["control"],
        prefer=entry["prefer"],
        escalate_to=entry["escalate_to"],
        min_videos=int(entry["min_videos"]),
        min_prompts=int(entry["min_prompts"]),
        min_paired_share=float(entry["min_paired_share"]),
        held_out=entry["held_out"],
        required_categories=categories,
        content_class=entry["content_class"],
        min_category_videos=int(entry["min_category_videos"]),
        review_in_use=float(entry["review_in_use"]),
        review=None if review is None else ReviewRule(float(review["min_share"]), float(review["min_accepted"])),
        gates=gates,
        confidence=None if confidence is None else float(confidence),
    )


def _gate(entry: dict[str, Any], confidence: float | None, where: str) -> Gate:
    metric, suites = str(entry["metric"]), tuple(entry["suites"])
    for suite in suites:
        known = _KNOWN_METRICS.get(suite)
        if known is not None and metric not in known:
            names = ", ".join(sorted(known))
            raise PolicyError(f"no metric of {suite} to gate on", where=where, found=metric, expected=names)
        if known is None and not suite.startswith("hfq-features:"):
            raise PolicyError(
                "unknown suite", where=where, found=suite, expected=f"{', '.join(_KNOWN_METRICS)} or hfq-features:NAME"
            )
    given = entry.get("limits")
    gate = Gate(
        metric, suites, float(entry["min_retained"]), bool(entry["each_category"]), str(entry["source"]),
        None if given is None else (float(given[0]), float(given[1])),
    )  # fmt: skip
    for suite in suites:
        _check_limits(gate, suite, confidence, f"{where}: {metric}")
    return gate


def _check_limits(gate: Gate, suite: str, confidence: float | None, where: str) -> None:
    own, limits = limits_of(suite, gate.metric), gate.limits_in(suite)
    if gate.limits is not None:
        low, high = gate.limits
        if not low < high or high <= 0:
            raise PolicyError("no limits", where=where, expected="the lower one first, the higher one above 0",
                              found=limits_text(gate.limits))  # fmt: skip
        if own is not None and (low < own[0] or (own[1] is not None and high > own[1])):
            raise PolicyError("limits beyond the metric's own", where=where, expected=limits_text(own),
                              found=limits_text(gate.limits))  # fmt: skip
    if confidence is not None and (limits is None or limits[1] is None):
        raise PolicyError(
            f"no confidence bound without the range of the metric, which is not known for {suite}", where=where,
            todo='name it with limits = [LOWEST, HIGHEST], or compare means without a bound: decide_by = "mean"',
        )  # fmt: skip
