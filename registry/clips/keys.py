"""Keys for signed manifests: a local authority with one signing key, and the authorities that this user trusts.

    CONFIG/hfq/keys/ca.key.pem, ca.cert.pem, sign.key.pem, sign.cert.pem   (the last one with the authority's behind it)
    CONFIG/hfq/anchors/<first 16 digits of the certificate's SHA-256>.pem

Rules for the signing certificate, found by trying c2pa-python 0.38: not self-signed, CA:FALSE, digitalSignature,
extended usage emailProtection, both key identifiers; an Organization for readers of older releases. Without a
time-stamping service, which needs a network, a manifest stops being valid with its certificate: hence ten years.
"""

from __future__ import annotations

import datetime
import os
import shlex
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import platformdirs

from hfq.registry.home import expanded
from hfq.schema.documents import read_bytes
from hfq.schema.errors import (
    KeyFileError,
    MissingDependencyError,
    MissingKeyError,
    OutputExistsError,
    UnreadableFileError,
)

if TYPE_CHECKING:
    from cryptography import x509

__all__ = [
    "EXTRA",
    "LIFETIME_DAYS",
    "Certificate",
    "SigningKey",
    "anchors_pem",
    "check_anchors",
    "config_folder",
    "has_local_key",
    "init_keys",
    "load_local_key",
    "load_signing_key",
    "trust_certificate",
]

EXTRA: Final = "pip install 'hfq[c2pa]'"
LIFETIME_DAYS: Final = 3650

_MAX_PEM_BYTES: Final = 256 * 1024
_MAX_ANCHORS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate in a file.

    Attributes:
        path: the file.
        subject: RFC 4514 name.
        sha256: of its DER bytes, 64 hex digits.
        not_after: end of its validity, ISO 8601 in UTC.
    """

    path: Path
    subject: str
    sha256: str
    not_after: str


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """What signs a manifest. Its representation does not show the key.

    Attributes:
        algorithm: C2PA's name: "es256", "es384", "es512", "ed25519" or "ps256".
        chain_pem: the signing certificate, and those behind it.
        private_key_pem: PKCS #8, not encrypted.
    """

    algorithm: str
    chain_pem: bytes
    private_key_pem: bytes

    def __repr__(self) -> str:
        return f"SigningKey({self.algorithm})"


def config_folder() -> Path:
    """HFQ_CONFIG (a leading `~` is the user's home), else `hfq` in the platform's folder; it need not exist.

    Raises:
        UsageError: HFQ_CONFIG begins in a home that is not known.
    """
    chosen = os.environ.get("HFQ_CONFIG")
    return expanded(chosen, "HFQ_CONFIG") if chosen else Path(platformdirs.user_config_dir("hfq", appauthor=False))


def init_keys(folder: Path | None = None, *, organization: str = "hfq") -> tuple[Certificate, Certificate]:
    """Make an authority and a signing key (ECDSA P-256) below `folder` (default `config_folder()`), in a folder of mode
    0700 with files of mode 0600, and return both certificates. The authority is trusted from then on.

    Raises:
        OutputExistsError: there are keys already; clips signed with them would lose their authority.
        UnreadableFileError: the folder cannot be made.
        MissingDependencyError
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    root = config_folder() if folder is None else folder
    keys = root / "keys"
    authority_key, signing_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _issue(f"{organization} local authority", organization, authority_key, None, None)
    signing = _issue(f"{organization} clip signing", organization, signing_key, authority, authority_key)
    pem = serialization.Encoding.PEM
    files = {
        f"{name}.key.pem": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        for name, key in (("ca", authority_key), ("sign", signing_key))
    }
    files["ca.cert.pem"] = authority.public_bytes(pem)
    files["sign.cert.pem"] = signing.public_bytes(pem) + authority.public_bytes(pem)
    partial = root / f".keys.{os.getpid()}.partial"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if keys.exists() or keys.is_symlink():
            raise OutputExistsError("there are keys already", where=keys, todo="move the folder away to make new ones")
        partial.mkdir(mode=0o700)
        for name, data in files.items():
            _write_private(partial / name, data)
        os.rename(partial, keys)  # fails on a folder that another process filled meanwhile
    except OSError as error:
        raise UnreadableFileError("the keys cannot be written", where=keys, found=error.strerror) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _describe(keys / "ca.cert.pem", authority), _describe(keys / "sign.cert.pem", signing)


def has_local_key(folder: Path | None = None) -> bool:
    """Whether `init_keys` has made a key here."""
    return ((config_folder() if folder is None else folder) / "keys" / "sign.key.pem").exists()


def load_local_key(folder: Path | None = None) -> SigningKey:
    """The key that `init_keys` made.

    Raises:
        MissingKeyError: there is none.
        and what `load_signing_key` raises.
    """
    keys = (config_folder() if folder is None else folder) / "keys"
    if not (keys / "sign.key.pem").exists():
        raise MissingKeyError("no key to sign with", where=keys, todo="make one with `hfq keys init`")
    return load_signing_key(keys / "sign.key.pem", keys / "sign.cert.pem")


def load_signing_key(key: Path, certificates: Path, passphrase: bytes | None = None) -> SigningKey:
    """A private key and its certificate chain from PEM files: the signing certificate first, then those behind it.

    Raises:
        MissingPathError, UnreadableFileError, TooLargeError
        KeyFileError: not PEM, a wrong passphrase or none, a key that C2PA cannot use, another key than the first
            certificate's, a certificate that is not valid today; a file that others than its owner may
            read or write.
        MissingDependencyError
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization

    try:
        private = serialization.load_pem_private_key(read_bytes(key, _MAX_PEM_BYTES), passphrase)
    except (ValueError, TypeError):  # OpenSSL's words are for its own authors
        raise KeyFileError(
            "not a private key that can be read", where=key, expected="one in PEM; with its passphrase if it has one"
        ) from None
    except Exception as error:  # cryptography.exceptions.UnsupportedAlgorithm, and OpenSSL's own
        raise KeyFileError("a private key of an unknown kind", where=key, found=type(error).__name__) from None
    _require_private(key)
    algorithm = _algorithm_of(private, key)
    chain = _read_certificates(certificates)
    if _public_bytes(chain[0].public_key()) != _public_bytes(private.public_key()):
        raise KeyFileError(
            "the first certificate belongs to another key", where=certificates, expected=f"that of {key.name}"
        )
    now = datetime.datetime.now(datetime.UTC)
    if not chain[0].not_valid_before_utc <= now <= chain[0].not_valid_after_utc:
        raise KeyFileError(
            "the signing certificate is not valid today",
            where=certificates,
            expected=f"{chain[0].not_valid_before_utc:%Y-%m-%d} to {chain[0].not_valid_after_utc:%Y-%m-%d}",
            found=f"{now:%Y-%m-%d}",
        )
    return SigningKey(
        algorithm,
        b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain),
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def trust_certificate(path: Path, folder: Path | None = None) -> Certificate:
    """Add the certificate of an authority to the anchors; adding it twice is the same.

    Raises:
        MissingPathError, UnreadableFileError, TooLargeError
        KeyFileError: not exactly one PEM certificate, or not one of an authority (CA:FALSE): C2PA calls a clip trusted
            only through an authority.
        MissingDependencyError
    """
    _require_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    found = _read_certificates(path)
    if len(found) != 1:
        raise KeyFileError("not one certificate", where=path, expected="the authority's alone", found=len(found))
    try:
        is_authority = found[0].extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_authority = False
    if not is_authority:
        raise KeyFileError(
            "not the certificate of an authority", where=path, expected="CA:TRUE", todo="give the one that issued it"
        )
    anchors = (config_folder() if folder is None else folder) / "anchors"
    described = _describe(path, found[0])
    target = anchors / f"{described.sha256[:16]}.pem"
    try:
        anchors.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial")
        try:
            _write_private(temporary, found[0].public_bytes(serialization.Encoding.PEM))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UnreadableFileError("the anchor cannot be written", where=target, found=error.strerror) from error
    return _describe(target, found[0])


def anchors_pem(folder: Path | None = None) -> str:
    """The certificates of all trusted authorities, the local one first; empty when there is none.

    Raises:
        KeyFileError: a file among them that is no certificate.
        UnreadableFileError, TooLargeError, MissingDependencyError
    """
    root = config_folder() if folder is None else folder
    files = [root / "keys" / "ca.cert.pem", *_anchor_files(root / "anchors")]
    try:
        if not files[0].exists():
            del files[0]
    except OSError as error:
        raise UnreadableFileError("cannot be looked at", where=files[0], found=error.strerror) from error
    if not files:
        return ""
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization

    found = [certificate for path in files for certificate in _read_certificates(path)]
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in found).decode()


def _anchor_files(folder: Path) -> list[Path]:
    # Not glob, which takes a folder that cannot be read for an empty one.
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreadableFileError("cannot be read", where=folder, found=error.strerror) from error
    return sorted(folder / name for name in names if name.endswith(".pem") and not name.startswith("."))[:_MAX_ANCHORS]


def _issue(name: str, organization: str, key: Any, issuer: x509.Certificate | None, issuer_key: Any) -> Any:
    """A self-signed authority, or (with an issuer) a signing certificate that ends with it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    # An hour back: a clip may be read on a machine whose clock is a little behind.
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    signs = issuer is not None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=LIFETIME_DAYS))
        .add_extension(x509.BasicConstraints(ca=not signs, path_length=None if signs else 0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=signs, content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, key_cert_sign=not signs, crl_sign=not signs, encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )  # fmt: skip
    if signs:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
        ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    return builder.sign(issuer_key if signs else key, hashes.SHA256())


def check_anchors(pem: str) -> None:
    """Check that a text holds PEM certificates: the C2PA library calls every clip broken when it does not.

    Raises:
        KeyFileError, MissingDependencyError
    """
    _require_cryptography()
    _parse_certificates(pem.encode("utf-8", "replace"), "the trusted certificates")


def _read_certificates(path: Path) -> list[x509.Certificate]:
    return _parse_certificates(read_bytes(path, _MAX_PEM_BYTES), path)


def _parse_certificates(pem: bytes, where: object) -> list[x509.Certificate]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise KeyFileError("no certificate", where=where, expected="PEM certificates", found=_kind_of(pem)) from None


def _kind_of(pem: bytes) -> str:
    """What was given in place of a certificate; nothing of its text, which may be a secret."""
    if b"PRIVATE KEY-----" in pem:
        return "a private key, which is nobody else's to have"
    if b"-----BEGIN CERTIFICATE-----" in pem:
        return "a certificate that is damaged"
    return "another kind of PEM file" if b"-----BEGIN " in pem else "no PEM file"


def _describe(path: Path, certificate: x509.Certificate) -> Certificate:
    from cryptography.hazmat.primitives import hashes

    end = certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Certificate(path, certificate.subject.rfc4514_string(), certificate.fingerprint(hashes.SHA256()).hex(), end)


def _algorithm_of(key: Any, where: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey):
        name = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}.get(key.curve.name)
        if name is not None:
            return name
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    raise KeyFileError(
        "a key that C2PA does not sign with",
        where=where,
        expected="ECDSA P-256, P-384 or P-521, Ed25519, or RSA of 2048 bits or more",
        found=type(key).__name__,
    )


def _public_bytes(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    data: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return data


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _require_private(key: Path) -> None:
    """As ssh does: a key that others can read signs for others, too."""
    mode = stat.S_IMODE(key.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise KeyFileError(
            "a private key that others may read or write", where=key, expected="mode 0600", found=f"mode {mode:04o}",
            todo=f"chmod 600 {shlex.quote(str(key))}; if others could read it, make a new one",
        )  # fmt: skip


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("keys need cryptography", found=error, todo=f"install it: {EXTRA}") from None
