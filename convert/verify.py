"""Verification: recompute everything that a delta says from the base, and compare every digest."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hfq.schema.errors import DigestMismatchError, HfqError, UsageError, WrongRoleError

from .apply import base_mismatch
from .checkpoint import Checkpoint
from .delta import Delta, load_delta
from .finite import NonFinite
from .identity import same_weights
from .plain_site import PlainSite
from .progress import Progress, Silent
from .restore import check_site_digest, restore_site
from .row_works import PlainRows
from .scan import RowWork, Scan, ScannedTensor
from .tensor_bytes import tensor_bytes

__all__ = ["Mismatch", "Verification", "verify"]

_TELLTALE: Final = "head.head.weight"
"""In every Wan model, and trained: not the same in two experts."""

_LISTED: Final = 20

_WORKING_BYTES: Final = 900_000_000


@dataclass(frozen=True)
class Mismatch:
    """One thing that is not as the delta says; `error` is what a command raises for it."""

    role: str
    name: str
    error: HfqError


@dataclass
class Verification:
    """The result of `verify`.

    Attributes:
        delta_id: 64 hex digits.
        tensors: base tensors compared, per expert; those up to the first mismatch with `first_only`.
        sites: sites restored and compared, per expert, likewise.
        kept: sites kept, per expert.
        non_finite: what the base holds that is no finite number, per expert that holds such, and was allowed.
        mismatches: in the order found; empty when everything is as it should be.
    """

    delta_id: str
    tensors: dict[str, int] = field(default_factory=dict)
    sites: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    non_finite: dict[str, Mapping[str, NonFinite]] = field(default_factory=dict)
    mismatches: list[Mismatch] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything matched."""
        return not self.mismatches

    def raise_first(self) -> None:
        """Raise the first mismatch's error, if there is one."""
        if self.mismatches:
            raise self.mismatches[0].error

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "delta": self.delta_id,
            "ok": self.ok,
            "experts": {
                role: {"tensors": self.tensors[role], "restored": self.sites[role], "kept": self.kept[role]}
                for role in self.tensors
            },
            "non_finite": {
                role: {name: entry.to_json() for name, entry in found.items()}
                for role, found in self.non_finite.items()
            },
            "mismatch_count": len(self.mismatches),
            # Of a wrong checkpoint everything differs; the first few say as much as all.
            "mismatches": [
                {"expert": entry.role, "name": entry.name, **entry.error.to_json()}
                for entry in self.mismatches[:_LISTED]
            ],
        }


def verify(
    delta: Delta | str | os.PathLike[str],
    base: Checkpoint,
    *,
    role: str | None = None,
    first_only: bool = False,
    trust_witness: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Restore every quantized site from the base and compare; nothing is written.

    Args:
        delta: opened, or its folder. Opening it already checks its schema, id, state file and routing.
        base: the checkpoint to verify against.
        role: one expert only.
        first_only: report the first mismatch, in file order, alone, and stop there: nothing after it is restored. Goes
            through the base one tensor after another, so that a sound base takes longer than otherwise.
        trust_witness: do not hash files of the base again that this machine has hashed before and that have not changed
            since; every site is restored and compared all the same.

    Raises:
        UsageError: the base lacks an expert of the delta.
        WrongRoleError: the base has that expert under another role.
        NonFiniteWeightError: the base holds NaN or infinity and was not opened so as to allow them.
        What opening the delta or reading the base raises.
    """
    if not isinstance(delta, Delta):
        with load_delta(delta) as opened:
            return verify(
                opened, base, role=role, first_only=first_only, trust_witness=trust_witness, progress=progress
            )
    result = Verification(delta.id)
    roles = delta.roles if role is None else [role]
    for name in roles:
        if name not in delta.roles:
            raise UsageError("the delta has no such expert", expected=", ".join(delta.roles), found=name)
        if name not in base.experts:
            _refuse_known_role(delta, base)
            raise UsageError(
                "the base lacks an expert of the delta",
                expected=name,
                found=", ".join(base.experts),
                todo="give both experts, or one with --expert",
            )
    for name in roles:
        quantized = frozenset(delta.quantized(name))
        result.kept[name] = len(delta.routes[name]) - len(quantized)
        scan = base.experts[name].scan(progress or Silent(), hash_files=False, trust_witness=trust_witness)
        if first_only:
            compared = _one_by_one(delta, name, quantized, scan)
        else:
            compared = _all_at_once(delta, base, name, quantized, scan)
        if scan.finished and scan.non_finite:
            result.non_finite[name] = scan.non_finite
        result.tensors[name] = sum(found.is_known for found in compared)
        result.sites[name] = sum(found.is_site for found in compared)
        result.mismatches += [found.mismatch for found in compared if found.mismatch is not None]
        if not (first_only and result.mismatches):
            result.mismatches += _missing(delta, base, name)
        if first_only and result.mismatches:
            del result.mismatches[1:]
            break
    for warning in same_weights(base.experts[name].known_root for name in roles):
        (progress or Silent()).note(f"warning: {warning}")
    return result


def _refuse_known_role(delta: Delta, base: Checkpoint) -> None:
    """A base without the role asked for may hold it under another name; one small tensor tells.

    Raises:
        WrongRoleError: naming the right role.
    """
    known = {delta.base_tensors(role)[_TELLTALE]["bf16"]: role for role in delta.roles}
    for given, expert in base.experts.items():
        role = known.get(hashlib.sha256(tensor_bytes(expert.read_bf16(_TELLTALE))).hexdigest(), given)
        if role != given:
            raise WrongRoleError(
                f"these are the weights of the expert {role}",
                where=f"{given} {_TELLTALE}",
                expected=role,
                found=given,
                todo=f"give them as {role}",
            )


def _one_by_one(delta: Delta, role: str, quantized: frozenset[str], scan: Scan) -> list[_Compared]:
    """Tensors in file order, up to the first mismatch."""
    compared: list[_Compared] = []
    try:
        for tensor in scan:
            compared.append(_compare(delta, role, quantized, None, tensor))
            if compared[-1].mismatch is not None:
                break
    finally:
        scan.close()
    return compared


def _all_at_once(delta: Delta, base: Checkpoint, role: str, quantized: frozenset[str], scan: Scan) -> list[_Compared]:
    """All tensors, on all threads; in file order."""
    return scan.each(
        lambda tensor: _compare(delta, role, quantized, None, tensor),
        begin=lambda name, shape: _begin(delta, role, quantized, name, shape),
        cost=lambda name: _working_bytes(delta, role, name) * math.prod(base.experts[role].info(name).shape),
        memory_bytes=_WORKING_BYTES,
    )


def _missing(delta: Delta, base: Checkpoint, role: str) -> Iterator[Mismatch]:
    """What the delta lists and the base lacks."""
    for name in delta.base_tensors(role):
        if name not in base.experts[role].names:
            error = DigestMismatchError("the base lacks a tensor of the delta", where=f"{role} {name}")
            yield Mismatch(role, name, error)


def _begin(
    delta: Delta, role: str, quantized: frozenset[str], name: str, shape: tuple[int, ...]
) -> RowWork[_Compared] | None:
    """How a tensor is compared a few rows at a time, where that is possible."""
    site, plain = name.removesuffix(".weight"), None
    if site in quantized and site != name:
        entry = delta.site(role, site)
        is_plain = [op["op"] for op in entry["ops"]] == ["qdq"] and (role, site) not in delta.state_sites
        if not is_plain or not PlainSite.fits(entry["weight"]):
            return None
        if list(shape) == delta.base_tensors(role).get(name, {}).get("shape"):
            plain = PlainSite(shape, entry["weight"], f"{role} {site}", measured=False)
    return PlainRows(plain, functools.partial(_compare, delta, role, quantized))


def _working_bytes(delta: Delta, role: str, name: str) -> int:
    """Bytes per element that restoring takes: the codes; ops other than a mask keep the weight in fp32 a few times."""
    site = delta.document["sites"][role].get(name.removesuffix(".weight"), {})
    return 1 if all(op["op"] in ("mask", "clip", "qdq") for op in site.get("ops", [])) else 9


@dataclass(frozen=True)
class _Compared:
    """One tensor of the base: whether the delta lists it, whether its site was restored, and what was wrong."""

    is_known: bool
    is_site: bool
    mismatch: Mismatch | None


def _compare(
    delta: Delta, role: str, quantized: frozenset[str], plain: PlainSite | None, tensor: ScannedTensor
) -> _Compared:
    # Architecture and names were checked against each other on opening; what is left is the delta's own list.
    named = delta.base_tensors(role).get(tensor.name)
    if named is None:
        what = "the base has a tensor that the delta does not know"
        error = DigestMismatchError(what, where=f"{role} {tensor.name}")
        return _Compared(False, False, Mismatch(role, tensor.name, error))
    if tensor.bf16_sha256 != named["bf16"] or list(tensor.shape) != named["shape"]:
        mismatch = Mismatch(role, tensor.name, base_mismatch(delta, role, tensor.name, tensor.bf16_sha256))
        return _Compared(True, False, mismatch)
    site = tensor.name.removesuffix(".weight")
    if site not in quantized or site == tensor.name:
        return _Compared(True, False, None)
    return _Compared(True, True, _restore(delta, role, site, plain, tensor))


def _restore(delta: Delta, role: str, site: str, plain: PlainSite | None, tensor: ScannedTensor) -> Mismatch | None:
    try:
        if plain is None:
            restore_site(delta, role, site, tensor.bf16)
        else:
            check_site_digest(delta, role, site, plain.digest())
    except DigestMismatchError as error:
        return Mismatch(role, site, error)
    return None
