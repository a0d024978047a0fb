"""Stored codes and scale words: read back by plain Python, and refused when they are not exactly a site's."""

from __future__ import annotations

import time
import tracemalloc
import zlib

import pytest
import torch

from hfq.convert.code_difference import decode_codes, decode_words, encode_codes, encode_words
from hfq.convert.gptq import Hif4Rounder, hessian, inverse_factor, quantize_columns
from hfq.formats import hif4
from hfq.formats.hif4_frozen import codes_of_levels, levels_of_codes
from hfq.schema.errors import CodesError, MalformedFileError


def plain_of(out: int, channels: int, seed: int = 0) -> tuple[torch.Tensor, hif4.Hif4Tensor]:
    weight = torch.randn(out, channels, generator=torch.Generator().manual_seed(seed)) * 0.02
    return weight, hif4.quantize(weight)


def near(plain: hif4.Hif4Tensor, seed: int = 0) -> hif4.Hif4Tensor:
    """Other codes under the same words, most of them a step away at most."""
    generator = torch.Generator().manual_seed(seed)
    levels = levels_of_codes(plain.codes)[:, : plain.shape[-1]]
    steps = torch.randn(levels.shape, generator=generator).mul(0.7).round().to(torch.int8)
    codes = codes_of_levels((levels + steps).clamp(-7, 7))
    return hif4.Hif4Tensor(codes, plain.scale, plain.shape, plain.profile)


def stored(data: bytes) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


def nibbles(data: bytes) -> list[int]:
    return [n for byte in data for n in (byte & 15, byte >> 4)]


def signed(codes: torch.Tensor) -> list[int]:
    plain = nibbles(bytes(codes.flatten().tolist()))
    return [-(c & 7) if c >= 8 else c for c in plain]


@pytest.mark.parametrize("shape", [(8, 64), (5, 70), (3, 1), (1, 640), (0, 64), (4, 0)])
def test_codes_come_back(shape: tuple[int, int]) -> None:
    _, plain = plain_of(*shape)
    chosen = near(plain)
    packed = encode_codes(chosen, plain)
    assert packed.dtype == torch.uint8
    found = decode_codes(packed, plain, "here")
    assert torch.equal(found, chosen.codes)
    assert found.dtype == torch.uint8


def test_the_stream_is_what_the_format_page_says() -> None:
    _, plain = plain_of(6, 100)
    chosen = near(plain)
    differences = nibbles(zlib.decompress(bytes(encode_codes(chosen, plain).tolist())))
    pairs = zip(signed(chosen.codes), signed(plain.codes), strict=True)
    assert differences == [(g - p) % 15 for g, p in pairs]
    assert len(set(differences)) > 3


def test_every_pair_of_levels_comes_back() -> None:
    both = torch.cartesian_prod(torch.arange(-7, 8), torch.arange(-7, 8)).to(torch.int8)
    words = torch.zeros(1, 4, dtype=torch.uint32)
    chosen, plain = (hif4.Hif4Tensor(codes_of_levels(part[None]), words, (1, 225), "ref") for part in both.T)
    assert torch.equal(decode_codes(encode_codes(chosen, plain), plain, "here"), chosen.codes)


def test_a_negative_zero_of_plain_rounding_does_not_leak() -> None:
    plain = hif4.quantize(torch.tensor([[7.0] + [-1e-3] * 63]))
    assert (hif4.unpack_codes(plain.codes) == 8).any()
    chosen = hif4.Hif4Tensor(codes_of_levels(levels_of_codes(plain.codes)), plain.scale, plain.shape, plain.profile)
    found = decode_codes(encode_codes(chosen, plain), plain, "here")
    assert torch.equal(found, chosen.codes)
    assert not (hif4.unpack_codes(found) == 8).any()


@pytest.mark.parametrize("channels", [64, 70, 640])
def test_words_come_back(channels: int) -> None:
    _, plain = plain_of(9, channels)
    _, other = plain_of(9, channels, seed=1)
    packed = encode_words(other.scale, plain.scale)
    found = decode_words(packed, plain.scale, "here")
    assert found.dtype == torch.uint32
    assert found.tolist() == other.scale.tolist()
    planes = zlib.decompress(bytes(packed.tolist()))
    differences = [a ^ b for a, b in zip(other.scale.flatten().tolist(), plain.scale.flatten().tolist(), strict=True)]
    assert planes == bytes(d >> 8 * byte & 0xFF for byte in range(4) for d in differences)


def test_nothing_changed_takes_next_to_nothing() -> None:
    _, plain = plain_of(64, 640)
    same = hif4.Hif4Tensor(codes_of_levels(levels_of_codes(plain.codes)), plain.scale, plain.shape, plain.profile)
    assert encode_codes(same, plain).numel() < 0.26 * plain.codes.numel()
    # A Huffman code has at least one bit for each byte.
    assert encode_words(plain.scale, plain.scale).numel() < 0.14 * plain.scale.numel() * 4


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_codes_of_gptq_take_about_a_quarter_of_the_packed_form(static: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(256, 512, generator=generator) * 0.02
    mixing = torch.eye(512) + torch.randn(512, 512, generator=generator) / 512**0.5
    rows = torch.randn(1500, 512, generator=generator) @ mixing
    plain = hif4.quantize(weight)
    rounder = Hif4Rounder(256, 512, words=plain.scale if static else None)
    quantize_columns(weight, inverse_factor(hessian(rows), 0.05, "here"), rounder)
    chosen = rounder.result()
    under = hif4.quantize_under(weight, chosen.scale)
    codes, words = encode_codes(chosen, under), encode_words(chosen.scale, plain.scale)
    bits = 8 * codes.numel() / weight.numel()
    total = bits if static else bits + 8 * words.numel() / weight.numel()
    assert 0.5 < bits < 1.3
    assert total < 1.4
    assert total < 0.35 * 4.5
    assert codes.numel() < 0.5 * len(zlib.compress(chosen.codes.numpy().tobytes(), 9))
    assert torch.equal(decode_codes(codes, under, "here"), chosen.codes)
    assert decode_words(words, plain.scale, "here").tolist() == chosen.scale.tolist()


def refused(data: bytes, plain: hif4.Hif4Tensor) -> str:
    with pytest.raises(CodesError) as caught:
        decode_codes(stored(data), plain, "low_noise blocks.0.ffn.0")
    assert isinstance(caught.value, MalformedFileError)
    assert (caught.value.code, caught.value.exit_code) == ("codes", 1)
    assert "low_noise blocks.0.ffn.0" in str(caught.value)
    return str(caught.value)


def test_what_is_no_stream_of_this_size_is_refused() -> None:
    _, plain = plain_of(8, 128)
    good = bytes(encode_codes(near(plain), plain).tolist())
    size = plain.codes.numel()
    compressor = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_DEFAULT_STRATEGY, b"a dictionary")
    cases = {
        "empty": b"",
        "noise": bytes(range(200)),
        "header alone": good[:2],
        "cut": good[: len(good) // 2],
        "without its checksum": good[:-4],
        "cut in the checksum": good[:-1],
        "a wrong checksum": good[:-1] + bytes([good[-1] ^ 1]),
        "a byte more": good + b"\0",
        "two streams": good + good,
        "too short": zlib.compress(bytes(size - 1)),
        "too long": zlib.compress(bytes(size + 1)),
        "nothing": zlib.compress(b""),
        "raw deflate": zlib.compress(bytes(size), wbits=-15),
        "gzip": zlib.compress(bytes(size), wbits=31),
        "a dictionary": compressor.compress(bytes(size)) + compressor.flush(),
    }
    assert torch.equal(decode_codes(stored(good), plain, "here"), near(plain).codes)
    for name, data in cases.items():
        assert refused(data, plain), name
        with pytest.raises(CodesError):
            decode_words(stored(data), plain.scale, name)


def test_every_cut_is_refused() -> None:
    _, plain = plain_of(2, 64)
    good = bytes(encode_codes(near(plain), plain).tolist())
    for length in range(len(good)):
        refused(good[:length], plain)


def test_a_nibble_that_is_no_difference() -> None:
    _, plain = plain_of(8, 128)
    for byte in (0x0F, 0xF0):
        data = bytearray(plain.codes.numel())
        data[100] = byte
        assert "nibble" in refused(zlib.compress(bytes(data)), plain)


def test_codes_in_the_padding_are_refused() -> None:
    _, plain = plain_of(4, 70)
    data = bytearray(plain.codes.numel())
    data[-1] = 0x10
    assert "padding" in refused(zlib.compress(bytes(data)), plain)


def test_flags_in_the_padding_are_refused() -> None:
    weight, plain = plain_of(4, 70)
    flipped = plain.scale.view(torch.int32).clone()
    flipped[2, 1] ^= 1 << 30
    words = decode_words(encode_words(flipped.view(torch.uint32), plain.scale), plain.scale, "here")
    under = hif4.quantize_under(weight, words)
    assert "padding" in refused(zlib.compress(bytes(plain.codes.numel())), under)


def zeros(size: int) -> bytes:
    """A whole zlib stream of so many zero bytes, a multiple of 16 MiB, put together from equal blocks."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(1 << 24)) + deflate.flush(zlib.Z_FULL_FLUSH)
    # An empty last block, and Adler-32 of zeros: the low half stays 1, the high half counts them.
    checksum = (size % 65521 << 16 | 1).to_bytes(4, "big")
    return b"\x78\xda" + block * (size >> 24) + b"\x03\x00" + checksum


def test_a_bomb_is_not_unpacked() -> None:
    assert zlib.decompress(zeros(1 << 25)) == bytes(1 << 25)
    bomb = zeros(1 << 31)
    assert len(bomb) < 2_500_000
    _, plain = plain_of(8, 64)
    packed = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    begin = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CodesError, match="more"):
            decode_codes(packed, plain, "here")
        with pytest.raises(CodesError, match="more"):
            decode_words(packed, plain.scale, "here")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(bomb)
    assert time.process_time() - begin < 1.0
