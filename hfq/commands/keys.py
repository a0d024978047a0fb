"""`hfq keys`: the local authority that signs clips, and the authorities that are trusted."""

from __future__ import annotations

from pathlib import Path

import click

from hfq.console import emit, json_option
from hfq.registry.clips.keys import Certificate, init_keys, trust_certificate

__all__ = ["keys_command"]


@click.group("keys")
def keys_command() -> None:
    """Make a key to sign clips with, and say whose signatures count."""


@keys_command.command("init")
@click.option("--organization", default="hfq", show_default=True, help="Name in the certificates.")
@json_option
def keys_init(organization: str, as_json: bool) -> None:
    """Make a local authority and a signing key, valid for ten years, in your own configuration folder.

    Clips that `hfq generate` and `hfq stamp` make are signed with it from then on. Whoever should trust them needs the
    authority's certificate: `hfq keys trust`.
    """
    authority, signing = init_keys(organization=organization)
    document = {"authority": _json(authority), "signing": _json(signing)}
    text = (
        f"authority   {authority.path}  (give this to whom should trust your clips)\n"
        f"signing     {signing.path}\nvalid       until {signing.not_after[:10]}"
    )
    emit(document, text, as_json)


@keys_command.command("trust")
@click.argument("certificate", type=click.Path(readable=False))
@json_option
def keys_trust(certificate: str, as_json: bool) -> None:
    """Trust clips signed under the authority of CERTIFICATE (one PEM certificate)."""
    added = trust_certificate(Path(certificate))
    emit(_json(added), f"trusted     {added.subject}  ({added.path})", as_json)


def _json(certificate: Certificate) -> dict[str, str]:
    return {
        "path": str(certificate.path),
        "subject": certificate.subject,
        "sha256": certificate.sha256,
        "not_after": certificate.not_after,
    }
