"""Signed manifests with the real C2PA library: what is trusted, and whom one has to look behind."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import sys
from pathlib import Path

import c2pa
import pytest
from made_certificates import issue
from made_clips import A, B, document, remux, scene, write
from made_manifests import edit
from patience import wait_until

from hfq.registry.clips.clip_document import prompt_sha256
from hfq.registry.clips.keys import anchors_pem, init_keys, load_local_key, load_signing_key
from hfq.registry.clips.manifest import ASSERTION, ManifestReport, Trust, has_manifest, read_manifest, sign_clip
from hfq.registry.clips.stream import open_clip
from hfq.registry.clips.tag import read_tag, write_tag
from hfq.schema.errors import KeyFileError, MissingDependencyError, OutputExistsError, SigningError, UsageError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    init_keys(folder)
    return folder


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    init_keys(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(1))


@pytest.fixture(scope="module")
def signed(clip: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sign_clip(clip, tmp_path_factory.mktemp("signed") / "a.mp4", document(), load_local_key(config)).path


def report(path: Path, *trusted: Path, manifest: bytes | None = None) -> ManifestReport | None:
    with open_clip(path) as opened:
        return read_manifest(opened, "".join(map(anchors_pem, trusted)), manifest)


def found(path: Path, *trusted: Path, manifest: bytes | None = None) -> ManifestReport:
    made = report(path, *trusted, manifest=manifest)
    assert made is not None
    return made


def test_a_signed_clip(clip: Path, signed: Path, config: Path) -> None:
    made = found(signed, config)
    assert made.trust is Trust.TRUSTED
    assert (made.manifests, made.is_layered, made.failures) == (1, False, ())
    (claim,) = made.claims
    assert claim.document == document()
    assert (claim.is_active, claim.is_created, claim.is_trusted) == (True, True, True)
    assert claim.signer == "hfq clip signing"
    with open_clip(clip) as before, open_clip(signed) as after:
        assert before.stream_facts() == after.stream_facts()
        assert (has_manifest(before), has_manifest(after)) == (False, True)
    assert report(clip, config) is None


def test_what_another_c2pa_program_reads(signed: Path) -> None:
    with open(signed, "rb") as file, c2pa.Reader("video/mp4", file) as reader:
        manifest = reader.get_active_manifest()
    assert manifest is not None
    labels = {assertion["label"]: assertion["data"] for assertion in manifest["assertions"]}
    (action,) = labels["c2pa.actions.v2"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert labels[ASSERTION] == document().to_json()
    (ingredient,) = manifest["ingredients"]
    assert ingredient["instance_id"] == f"urn:hfq:delta:{A.id}"
    assert ingredient["relationship"] == "inputTo"


def test_signed_is_not_trusted(signed: Path, stranger: Path) -> None:
    for trusted in ((), (stranger,)):
        made = found(signed, *trusted)
        assert made.trust is Trust.UNTRUSTED
        assert made.failures == ("signingCredential.untrusted",)
        assert [claim.is_trusted for claim in made.claims] == [False]


def test_one_of_several_anchors_is_enough(signed: Path, config: Path, stranger: Path) -> None:
    assert found(signed, stranger, config).trust is Trust.TRUSTED


def test_mov_and_the_tag_beside_it(clip: Path, config: Path, tmp_path: Path) -> None:
    made = document(None, prompt="a red circle", prompt_sha256=prompt_sha256("a red circle"))
    tagged = write_tag(remux(clip, tmp_path / "in.mov"), tmp_path / "tagged.mov", made).path
    signed = sign_clip(tagged, tmp_path / "signed.mov", made, load_local_key(config)).path
    assert [claim.document for claim in found(signed, config).claims] == [made]
    with open_clip(signed) as opened:
        assert read_tag(opened) == made


@pytest.mark.parametrize("where", ["media", "end", "index"])
def test_a_changed_file_is_invalid(where: str, signed: Path, config: Path, tmp_path: Path) -> None:
    data = bytearray(signed.read_bytes())
    if where == "media":
        data[data.index(b"mdat") + 60] ^= 1
    elif where == "index":
        data[data.index(b"moov") + 40] ^= 1
    else:
        data += b"\0\0\0\x0cmdatmore"
    (tmp_path / "changed.mp4").write_bytes(data)
    assert found(tmp_path / "changed.mp4", config).trust is Trust.INVALID


def test_a_changed_claim_is_invalid(signed: Path, config: Path, tmp_path: Path) -> None:
    data = signed.read_bytes()
    assert data.count(b"a" * 64) == 2  # the assertion, and the ingredient's instance id
    (tmp_path / "changed.mp4").write_bytes(data.replace(b"a" * 64, b"b" * 64))
    made = found(tmp_path / "changed.mp4", config)
    assert made.trust is Trust.INVALID
    assert made.failures


def test_a_broken_store_is_invalid(signed: Path, config: Path, tmp_path: Path) -> None:
    data = bytearray(signed.read_bytes())
    start = data.index(b"jumb") + 8
    data[start : start + 200] = bytes(200)
    (tmp_path / "broken.mp4").write_bytes(data)
    made = found(tmp_path / "broken.mp4", config)
    assert (made.trust, made.manifests, made.claims) == (Trust.INVALID, 0, ())


def test_a_layer_on_top_hides_nothing(signed: Path, config: Path, tmp_path: Path) -> None:
    """The state of the whole is still Trusted."""
    made = found(edit(signed, tmp_path / "b.mp4", load_local_key(config), document("b" * 64).to_json()), config)
    assert made.trust is Trust.TRUSTED
    assert made.is_layered
    assert [(c.document.variant, c.is_active, c.is_created) for c in made.claims] == [
        (B, True, False),
        (A, False, True),
    ]
    assert [claim.is_trusted for claim in made.claims] == [True, True]


def test_two_layers(signed: Path, config: Path, tmp_path: Path) -> None:
    first = edit(signed, tmp_path / "1.mp4", load_local_key(config), None)
    second = edit(first, tmp_path / "2.mp4", load_local_key(config), document("b" * 64).to_json())
    made = found(second, config)
    assert made.manifests == 3
    assert [claim.document.variant for claim in made.claims] == [B, A]


@pytest.mark.parametrize("believes", ["nobody", "config", "stranger"])
def test_a_trusted_edit_does_not_launder_a_strangers_claim(
    believes: str, clip: Path, config: Path, stranger: Path, tmp_path: Path
) -> None:
    """Whatever the editor's program believed and wrote down about the older manifest."""
    foreign = sign_clip(clip, tmp_path / "foreign.mp4", document(), load_local_key(stranger)).path
    anchors = {"nobody": "", "config": anchors_pem(config), "stranger": anchors_pem(stranger)}[believes]
    laundered = edit(foreign, tmp_path / "laundered.mp4", load_local_key(config), None, anchors=anchors)
    (claim,) = found(laundered, config).claims
    assert (claim.document.variant, claim.is_trusted) == (A, False)
    assert [c.is_trusted for c in found(laundered, config, stranger).claims] == [True]


def test_a_strangers_layer_on_a_trusted_clip(signed: Path, config: Path, stranger: Path, tmp_path: Path) -> None:
    made = found(edit(signed, tmp_path / "b.mp4", load_local_key(stranger), document("b" * 64).to_json()), config)
    assert made.trust is Trust.UNTRUSTED
    assert [(claim.document.variant, claim.is_trusted) for claim in made.claims] == [(B, False), (A, True)]


@pytest.mark.parametrize("claim", [{"delta": "a" * 64}, {"schema": "hfq.clip/2"}, ["a"], "a"])
def test_a_claim_of_another_form_is_invalid(claim: object, clip: Path, config: Path, tmp_path: Path) -> None:
    made = found(edit(clip, tmp_path / "odd.mp4", load_local_key(config), claim), config)
    assert made.trust is Trust.INVALID
    assert made.claims == ()


def test_a_manifest_of_another_program(clip: Path, config: Path, tmp_path: Path) -> None:
    made = found(edit(clip, tmp_path / "other.mp4", load_local_key(config), None), config)
    assert (made.trust, made.claims) == (Trust.TRUSTED, ())


def test_an_expired_certificate(clip: Path, config: Path, tmp_path: Path) -> None:
    for seconds in (2, 10, 60, 300):  # a busy machine may not have signed and looked before the certificate ends
        shutil.rmtree(tmp_path / "short", ignore_errors=True)
        (tmp_path / "short").mkdir()
        made = tmp_path / "short" / "short.mp4"
        with contextlib.suppress(SigningError, KeyFileError):
            key = load_signing_key(*issue(config, seconds=seconds))
            sign_clip(clip, made, document(), key)
        if made.exists() and found(made, config).trust is Trust.TRUSTED:
            break
    else:
        pytest.fail("signed clips were never trusted")
    wait_until(lambda: found(made, config).trust is not Trust.TRUSTED)
    assert found(made, config).trust is Trust.EXPIRED
    data = bytearray(made.read_bytes())
    data[data.index(b"mdat") + 60] ^= 1
    made.write_bytes(data)
    assert found(made, config).trust is Trust.INVALID
    with pytest.raises(SigningError):
        sign_clip(clip, tmp_path / "late.mp4", document(), key)
    assert not (tmp_path / "late.mp4").exists()


def test_the_bytes_of_a_manifest_prove_what_was_signed(clip: Path, config: Path, tmp_path: Path) -> None:
    made = sign_clip(clip, tmp_path / "a.mp4", document(), load_local_key(config))
    stripped = remux(made.path, tmp_path / "stripped.mp4", keep_tags=False)
    assert report(stripped, config) is None
    against = found(stripped, config, manifest=made.manifest)
    assert against.trust is Trust.INVALID
    assert against.failures == ("assertion.bmffHash.mismatch",)
    assert [(claim.document, claim.is_trusted) for claim in against.claims] == [(document(), True)]


def test_refusals(clip: Path, signed: Path, config: Path, tmp_path: Path) -> None:
    key = load_local_key(config)
    mkv = remux(clip, tmp_path / "in.mkv")
    for source, out in ((mkv, "a.mkv"), (mkv, "a.mp4"), (clip, "a.mov"), (signed, "a.mp4")):
        with pytest.raises(UsageError):
            sign_clip(source, tmp_path / out, document(), key)
    with pytest.raises(OutputExistsError):
        sign_clip(clip, mkv.rename(tmp_path / "in.mp4"), document(), key)
    with pytest.raises(UsageError):
        sign_clip(clip, tmp_path / "a.mp4", document(seed=-1), key)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_anchors_that_are_none(signed: Path) -> None:
    with open_clip(signed) as opened, pytest.raises(KeyFileError):
        read_manifest(opened, "junk")


def test_without_the_extra(clip: Path, signed: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = load_local_key(config)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        sign_clip(clip, clip.with_name("out.mp4"), document(), key)
    with pytest.raises(MissingDependencyError, match="pip install"):
        init_keys(clip.with_name("keys"))
    with open_clip(signed) as opened, pytest.raises(MissingDependencyError):
        read_manifest(opened, "")
    with open_clip(clip) as opened:
        assert read_manifest(opened, "") is None


@pytest.mark.parametrize("embedded", [True, False])
def test_reading_opens_no_connection(embedded: bool, clip: Path, config: Path, tmp_path: Path) -> None:
    """A manifest that lies elsewhere is not fetched: without its own, the file counts as one without."""
    key, settings = load_local_key(config), c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}})
    info = c2pa.C2paSignerInfo(key.algorithm, key.chain_pem, key.private_key_pem, None)  # type: ignore[arg-type]
    made = io.BytesIO()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        with (
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder({}, context=c2pa.Context(settings=settings)) as builder,
        ):
            builder.set_intent(c2pa.C2paBuilderIntent.CREATE, c2pa.C2paDigitalSourceType.DIGITAL_CREATION)
            if not embedded:
                builder.set_no_embed()
            builder.set_remote_url(f"http://127.0.0.1:{server.getsockname()[1]}/manifest.c2pa")
            with open(clip, "rb") as reader:
                builder.sign(signer, "video/mp4", reader, made)
        (tmp_path / "remote.mp4").write_bytes(made.getvalue())
        read = report(tmp_path / "remote.mp4", config)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert (read is not None) == embedded
