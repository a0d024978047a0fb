"""Manifests of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import c2pa

from hfq.registry.clips.keys import SigningKey
from hfq.registry.clips.manifest import ASSERTION


def edit(source: Path, out: Path, key: SigningKey, claim: object, *, anchors: str = "") -> Path:
    """Another program's manifest on top: an edit with a claim of its own."""
    assertions = [] if claim is None else [{"label": ASSERTION, "data": claim}]
    settings: dict[str, Any] = {"builder": {"thumbnail": {"enabled": False}}}
    if anchors:
        settings["trust"] = {"user_anchors": anchors}
    info = c2pa.C2paSignerInfo(key.algorithm, key.chain_pem, key.private_key_pem, None)  # type: ignore[arg-type]
    definition = {"claim_generator_info": [{"name": "other", "version": "1"}], "assertions": assertions}
    context = c2pa.Context(settings=c2pa.Settings.from_dict(settings))
    with (
        c2pa.Signer.from_info(info) as signer,
        c2pa.Builder(definition, context=context) as builder,
        open(source, "rb") as reader,
        open(out, "w+b") as writer,
    ):
        builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        builder.sign(signer, "video/mp4", reader, writer)
    return out
