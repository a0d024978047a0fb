"""The initializers of a graph: every tensor by name, with the bits that a delta on its base gives it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from hfq.convert.apply import base_mismatch
from hfq.convert.checkpoint import Checkpoint
from hfq.convert.delta import Delta
from hfq.convert.ops import ColumnsOp, LowRankOp, MaskOp, RotateOp
from hfq.convert.progress import Progress
from hfq.convert.restore import RestoredSite, restore_site
from hfq.convert.tensor_bytes import tensor_bytes
from hfq.formats import hif4

from .graph_linear import op_names
from .graph_modules import empty_graph
from .scope import Scope

__all__ = ["payload", "quantized_sites", "site_payload"]


def quantized_sites(delta: Delta, role: str, scope: Scope) -> list[str]:
    """The quantized sites of a part, in the delta's order."""
    return [site for site in delta.quantized(role) if scope.holds(site)]


def payload(
    delta: Delta, base: Checkpoint, role: str, scope: Scope, progress: Progress | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every initializer that holds a weight, one after the other, so that no more than one site is in memory.

    Quantized sites give `SITE.w_codes` uint8 [N, 32 G] and `SITE.w_scale` uint8 [N, G, 4] (HiFloat8: uint8 [N, K] and
    float32 [N, 1] or []), `SITE.bias` BF16 [N] and the tensors of their ops; everything else is the base's tensor in
    BF16 under its canonical name. A model's rotary tables, which no checkpoint holds, are float32.

    Args:
        progress: advances by one for each tensor of the base.

    Raises:
        WrongBaseError, WrongRoleError, DigestMismatchError, and what reading the base raises.
    """
    expert = base.experts[role]
    quantized = set(quantized_sites(delta, role, scope))
    for name in expert.architecture.tensors():
        site, _, leaf = name.rpartition(".")
        if not scope.holds(name):
            continue
        tensor = _read(delta, base, role, name)
        if site in quantized and leaf == "weight":
            restored = restore_site(delta, role, site, tensor)
            for local, value in site_payload(restored).items():
                yield f"{site}.{local}", value
        else:
            yield name, tensor
        if progress is not None:
            progress.advance()
    if scope.kind == "model":
        for name, table in empty_graph(expert.architecture, scope).named_buffers():
            yield name.removeprefix("part."), table


def _read(delta: Delta, base: Checkpoint, role: str, name: str) -> Tensor:
    """A base tensor in BF16, compared with the digest that the delta has of it."""
    tensor = base.experts[role].read_bf16(name)
    entry = delta.base_tensors(role)[name]
    digest = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
    if digest != entry["bf16"]:
        raise base_mismatch(delta, role, name, digest)
    return tensor


def site_payload(restored: RestoredSite) -> dict[str, Tensor]:
    """A site's tensors but its bias, by local name."""
    weight = restored.weight
    if isinstance(weight, hif4.Hif4Tensor):
        # The words' bytes in memory order, which is little-endian: E6M2, lv2, lv3 low, lv3 high.
        scale = weight.scale.contiguous().view(torch.uint8).view(*weight.scale.shape, 4)
    else:
        scale = weight.scale
    found = {"w_codes": weight.codes, "w_scale": scale}
    for op, names in zip(restored.ops.ops, op_names(restored.ops.ops), strict=True):
        match op:
            case MaskOp():
                found[names["mask"]] = op.mask
            case RotateOp():
                found[names["signs"]] = op.signs.float()
            case ColumnsOp():
                assert op.kept is not None
                found |= {names["columns"]: op.columns, names["rest"]: op.rest, names["kept"]: op.kept}
            case LowRankOp():
                found |= {names["down"]: op.down, names["up"]: op.up}
    return found
