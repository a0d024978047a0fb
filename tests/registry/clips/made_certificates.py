"""Certificates that `init_keys` would not make."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM = serialization.Encoding.PEM


def pem_of(key: Any) -> bytes:
    data: bytes = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return data


def self_signed(key: Any, *, end: datetime.datetime | None = None) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o"), x509.NameAttribute(NameOID.COMMON_NAME, "n")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(end or now + datetime.timedelta(days=2))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    return made.public_bytes(PEM)


def write_key(path: Path, key: Any) -> None:
    """A private key as its owner keeps it."""
    path.write_bytes(pem_of(key))
    path.chmod(0o600)


def write_pair(folder: Path, key: Any) -> tuple[Path, Path]:
    """A key and its self-signed certificate, as files."""
    write_key(folder / "own.key", key)
    (folder / "own.cert").write_bytes(self_signed(key))
    return folder / "own.key", folder / "own.cert"


def issue(config: Path, *, seconds: float, name: str = "short") -> tuple[Path, Path]:
    """A key and its certificate under the authority of `config`, valid for some seconds from now."""
    authority = x509.load_pem_x509_certificate((config / "keys" / "ca.cert.pem").read_bytes())
    issuer: Any = serialization.load_pem_private_key((config / "keys" / "ca.key.pem").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(seconds=seconds))
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        .sign(issuer, hashes.SHA256())
    )
    write_key(config / f"{name}.key", key)
    (config / f"{name}.cert").write_bytes(made.public_bytes(PEM) + authority.public_bytes(PEM))
    return config / f"{name}.key", config / f"{name}.cert"
