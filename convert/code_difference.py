"""Stored weight codes, as the difference to what plain rounding gives under the same scale words, compressed.

GPTQ's codes cannot be derived again, but most of them are those of plain rounding: of four bits per weight about one is
left. `difference-zlib` is one zlib stream (RFC 1950) over nibbles, the earlier element in the lower one:

    d = (g - p) mod 15        with g and p the signed quarters (-7..7) of the stored and the plain code

row by row, padded groups included. Scale words are stored as the exclusive or with those of plain rounding, the four
bytes of the little-endian words apart: first all lowest bytes, last all highest. Only Huffman coding pays
(`benchmarks/code_difference.py`): matches found by chance cost more than they save.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hfq.formats.errors import MalformedTensorError
from hfq.formats.hif4 import Hif4Tensor
from hfq.formats.hif4_frozen import codes_of_levels, levels_of_codes
from hfq.schema.errors import CodesError

__all__ = ["CODING", "decode_codes", "decode_words", "encode_codes", "encode_words"]

CODING: Final = "difference-zlib"
_LEVELS: Final = 15
_LARGEST: Final = 7


def encode_codes(chosen: Hif4Tensor, plain: Hif4Tensor) -> Tensor:
    """Codes [out, K] as a difference to plain ones under the same words: uint8 [bytes]. A zero must be code 0."""
    difference = (levels_of_codes(chosen.codes).to(torch.int16) - levels_of_codes(plain.codes)) % _LEVELS
    flat = difference.to(torch.uint8).view(-1)
    return _compress((flat[0::2] | (flat[1::2] << 4)).numpy().tobytes())


def decode_codes(stored: Tensor, plain: Hif4Tensor, where: str) -> Tensor:
    """The inverse of `encode_codes`: packed codes uint8, shaped as those of `plain`.

    Raises:
        CodesError: not a stream of exactly this site's size, a nibble that is no difference, or codes or flags in the
            padding of the last group.
    """
    data = np.frombuffer(_decompress(stored, plain.codes.numel(), where), dtype=np.uint8)
    packed = torch.from_numpy(data.copy()).view(plain.codes.shape)
    difference = torch.stack((packed & 0x0F, packed >> 4), dim=-1).flatten(-2).to(torch.int16)
    if bool((difference >= _LEVELS).any()):
        raise CodesError("a nibble that is no difference of two codes", where=where)
    levels = (levels_of_codes(plain.codes) + _LARGEST + difference) % _LEVELS - _LARGEST
    codes = codes_of_levels(levels.to(torch.int8))
    try:
        Hif4Tensor(codes, plain.scale, plain.shape, plain.profile).validate()
    except MalformedTensorError as error:
        raise CodesError("stored codes that no quantizer writes", where=where, found=error) from None
    return codes


def encode_words(chosen: Tensor, plain: Tensor) -> Tensor:
    """Scale words uint32 [out, groups] as a difference to plain ones: uint8 [bytes]."""
    difference = (chosen.view(torch.int32) ^ plain.view(torch.int32)).contiguous()
    planes = difference.view(torch.uint8).view(-1, 4).T.contiguous()
    return _compress(planes.numpy().tobytes())


def decode_words(stored: Tensor, plain: Tensor, where: str) -> Tensor:
    """The inverse of `encode_words`: uint32, shaped as `plain`.

    Raises:
        CodesError: not a stream of exactly this site's size.
    """
    data = np.frombuffer(_decompress(stored, 4 * plain.numel(), where), dtype=np.uint8)
    planes = torch.from_numpy(data.copy()).view(4, -1)
    difference = planes.T.contiguous().view(torch.int32).view(plain.shape)
    return (difference ^ plain.view(torch.int32)).view(torch.uint32)


def _compress(data: bytes) -> Tensor:
    stream = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return torch.frombuffer(bytearray(stream.compress(data) + stream.flush()), dtype=torch.uint8)


def _decompress(stored: Tensor, size: int, where: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        # One byte more than there may be tells a longer stream without unpacking it.
        data = stream.decompress(stored.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise CodesError("stored codes that are no zlib stream", where=where, found=error) from None
    if len(data) != size or not stream.eof or stream.unused_data:
        found = "more" if len(data) > size or stream.unused_data else f"{len(data)} and then the end"
        raise CodesError("stored codes of another size", where=where, expected=f"{size} bytes unpacked", found=found)
    return data
