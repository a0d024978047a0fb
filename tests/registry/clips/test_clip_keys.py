"""Keys: private files, certificates that C2PA takes, and no key or anchor that is not one."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from made_certificates import pem_of, self_signed, write_key, write_pair

from hfq.registry.clips.keys import (
    anchors_pem,
    config_folder,
    init_keys,
    load_local_key,
    load_signing_key,
    trust_certificate,
)
from hfq.schema.errors import (
    KeyFileError,
    MissingKeyError,
    MissingPathError,
    OutputExistsError,
    UnreadableFileError,
    UsageError,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_private_files(config: Path) -> None:
    old = os.umask(0)
    try:
        init_keys(config)
    finally:
        os.umask(old)
    assert mode(config / "keys") == 0o700
    files = sorted(path.name for path in (config / "keys").iterdir())
    assert files == ["ca.cert.pem", "ca.key.pem", "sign.cert.pem", "sign.key.pem"]
    assert {mode(path) for path in (config / "keys").iterdir()} == {0o600}
    assert [path.name for path in config.iterdir()] == ["keys"]


def test_the_certificates_are_as_c2pa_wants_them(config: Path) -> None:
    authority, signing = init_keys(config, organization="A Studio")
    root, leaf = (x509.load_pem_x509_certificate(made.path.read_bytes()) for made in (authority, signing))
    leaf.verify_directly_issued_by(root)
    assert leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "A Studio"
    extensions = leaf.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.EMAIL_PROTECTION
    ]
    assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    subject_key = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == subject_key
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    for certificate in (root, leaf):
        now = datetime.datetime.now(datetime.UTC)
        assert 3649 <= (certificate.not_valid_after_utc - now).days <= 3650
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert signing.sha256 == leaf.fingerprint(hashes.SHA256()).hex()
    assert signing.not_after == leaf.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_keys_are_made_once(config: Path) -> None:
    init_keys(config)
    before = {path.name: path.read_bytes() for path in (config / "keys").iterdir()}
    with pytest.raises(OutputExistsError):
        init_keys(config)
    assert {path.name: path.read_bytes() for path in (config / "keys").iterdir()} == before
    assert [path.name for path in config.iterdir()] == ["keys"]


def test_a_config_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("")
    with pytest.raises(UnreadableFileError):
        init_keys(tmp_path / "config")


def test_the_default_is_the_users_config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in config_folder().parents
    with pytest.raises(MissingKeyError, match="hfq keys init"):
        load_local_key()
    init_keys()
    assert load_local_key().algorithm == "es256"


def test_a_home_in_the_config_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's environment file is read by no shell that would put the home in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HFQ_CONFIG", "~/video/hfq")
    assert config_folder() == tmp_path / "video" / "hfq"
    monkeypatch.setenv("HFQ_CONFIG", "~nobody-of-this-name/hfq")
    with pytest.raises(UsageError, match=r"HFQ_CONFIG: .* found ~nobody-of-this-name/hfq"):
        config_folder()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o604, 0o601])
def test_a_key_that_others_may_use_is_refused(mode: int, config: Path, tmp_path: Path) -> None:
    init_keys(config)
    own, certificates = write_pair(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    for path, load in (
        (config / "keys" / "sign.key.pem", lambda: load_local_key(config)),
        (own, lambda: load_signing_key(own, certificates)),
    ):
        load()
        path.chmod(mode)
        with pytest.raises(KeyFileError, match=f"expected mode 0600, found mode {mode:04o}; chmod 600 "):
            load()
        path.chmod(0o400)
        load()


def test_the_local_key_does_not_show_itself(config: Path) -> None:
    init_keys(config)
    key = load_local_key(config)
    assert b"PRIVATE" in key.private_key_pem
    assert "PRIVATE" not in repr(key) + str(key)
    assert key.chain_pem.count(b"BEGIN CERTIFICATE") == 2


def test_anchors(config: Path, tmp_path: Path) -> None:
    assert anchors_pem(config) == ""
    authority, _ = init_keys(config)
    assert anchors_pem(config) == authority.path.read_text()
    other, _ = init_keys(tmp_path / "other")
    first = trust_certificate(other.path, config)
    assert trust_certificate(other.path, config) == first
    assert first.sha256 == other.sha256
    assert first.path == config / "anchors" / f"{other.sha256[:16]}.pem"
    assert anchors_pem(config) == authority.path.read_text() + other.path.read_text()
    (config / "anchors" / "junk.pem").write_text("junk")
    with pytest.raises(KeyFileError, match="junk"):
        anchors_pem(config)


def test_what_is_no_anchor(config: Path, tmp_path: Path) -> None:
    init_keys(tmp_path / "other")
    keys = tmp_path / "other" / "keys"
    for name in ("sign.cert.pem", "sign.key.pem"):  # two certificates; a key
        with pytest.raises(KeyFileError):
            trust_certificate(keys / name, config)
    leaf = (keys / "sign.cert.pem").read_text().split("-----BEGIN")[1]
    (tmp_path / "leaf.pem").write_text("-----BEGIN" + leaf)
    with pytest.raises(KeyFileError, match="authority"):
        trust_certificate(tmp_path / "leaf.pem", config)
    with pytest.raises(MissingPathError):
        trust_certificate(tmp_path / "none.pem", config)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnreadableFileError):
        trust_certificate(tmp_path / "fifo", config)
    assert not (config / "anchors").exists()


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        (lambda: ec.generate_private_key(ec.SECP256R1()), "es256"),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "es384"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "es512"),
        (ed25519.Ed25519PrivateKey.generate, "ed25519"),
        (lambda: rsa.generate_private_key(65537, 2048), "ps256"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), None),
        (lambda: rsa.generate_private_key(65537, 1024), None),
    ],
)
def test_a_callers_own_key(make: object, algorithm: str | None, tmp_path: Path) -> None:
    key, certificates = write_pair(tmp_path, make())  # type: ignore[operator]
    if algorithm is None:
        with pytest.raises(KeyFileError, match="does not sign"):
            load_signing_key(key, certificates)
    else:
        assert load_signing_key(key, certificates).algorithm == algorithm


def test_an_encrypted_key(tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key, certificates = write_pair(tmp_path, private)
    secret = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    )  # fmt: skip
    assert load_signing_key(key, certificates, b"secret").private_key_pem == pem_of(private)
    for wrong in (None, b"wrong"):
        with pytest.raises(KeyFileError):
            load_signing_key(key, certificates, wrong)


def test_keys_that_do_not_fit(tmp_path: Path) -> None:
    key, certificates = write_pair(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    stranger = tmp_path / "stranger.pem"
    write_key(stranger, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(KeyFileError, match="another key"):
        load_signing_key(stranger, certificates)
    for left, right in ((certificates, certificates), (key, key)):
        with pytest.raises(KeyFileError):
            load_signing_key(left, right)
    old = ec.generate_private_key(ec.SECP256R1())
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    write_key(tmp_path / "old.key", old)
    (tmp_path / "old.cert").write_bytes(self_signed(old, end=yesterday))
    with pytest.raises(KeyFileError, match="today"):
        load_signing_key(tmp_path / "old.key", tmp_path / "old.cert")
