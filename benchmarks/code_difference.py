"""What it takes to store GPTQ's codes: packed, compressed, or as a difference to plain rounding.

    python benchmarks/code_difference.py --out benchmarks/results/code_difference.json

Bits per weight and CPU seconds of every coding, on one thread, for scales chosen when a group starts ("dynamic") and
for those of plain rounding ("static"), with the error of the outputs relative to plain rounding, on the three quarters
of the input rows that GPTQ fits and on those held out. Weights: Gaussian and Student-t of 1024 x 1024 with random
correlated inputs, and linears of the tiny Wan with the rows that a calibration of it kept: a quick one made here, or
that of --calibration. `entropy` is that of single symbols: what a coding of single codes can reach at best; the
Huffman coding is of bytes, two codes each. `entropy_signed` is that of the difference times the sign of what plain
rounding leaves of the weight, which a reader could derive as well.
"""

from __future__ import annotations

import argparse
import bz2
import itertools
import json
import lzma
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hfq.convert.calibrate import calibrate
from hfq.convert.calibration import Calibration, load_calibration
from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.code_difference import decode_codes, decode_words, encode_codes, encode_words
from hfq.convert.gptq import Hif4Rounder, hessian, inverse_factor, proxy_error, quantize_columns
from hfq.convert.provenance import machine, software
from hfq.convert.stages.stage import pooled_rows
from hfq.convert.tiny.pipeline import WEIGHTS
from hfq.formats import hif4
from hfq.formats.hif4_frozen import levels_of_codes

DAMP = 0.05
ROWS = 4096
REPEATS = 3
SITES = ("blocks.3.self_attn.q", "blocks.3.ffn.0", "blocks.3.ffn.2")
PROMPTS = ("a red circle moving left over a black background", "a blue square moving up over a white background")
STEPS = 6
KEPT = 400


def huffman(data: bytes) -> bytes:
    """zlib without matches."""
    stream = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return stream.compress(data) + stream.flush()


Coding = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]
CODINGS: dict[str, Coding] = {
    "zlib huffman": (huffman, zlib.decompress),
    "zlib 1": (lambda data: zlib.compress(data, 1), zlib.decompress),
    "zlib 6": (lambda data: zlib.compress(data, 6), zlib.decompress),
    "zlib 9": (lambda data: zlib.compress(data, 9), zlib.decompress),
    "bz2 9": (bz2.compress, bz2.decompress),
    "lzma 1": (lambda data: lzma.compress(data, preset=1), lzma.decompress),
    "lzma 6": (lambda data: lzma.compress(data, preset=6), lzma.decompress),
}


def correlated(rows: int, channels: int, seed: int) -> Tensor:
    """Inputs with a decaying spectrum and unequal channels, fp32 [rows, channels]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator) / channels**0.5 + torch.eye(channels)
    gains = torch.randn(channels, generator=generator).mul(0.5).exp()
    return (torch.randn(rows, channels, generator=generator) @ mixing).mul(gains)


def made(size: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, weight fp32 [out, K] with BF16 values, inputs fp32 [rows, K]."""
    random = np.random.default_rng(0)
    for name, values in (("gauss", random.standard_normal((size, size))), ("t4", random.standard_t(4, (size, size)))):
        yield name, torch.from_numpy(values * 0.02).bfloat16().float(), correlated(ROWS, size, 1)


def trained(kept: Calibration) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Likewise, of the tiny Wan."""
    expert = open_checkpoint(WEIGHTS).experts["low_noise"]
    groups = {site.name: site.input_group for site in expert.sites}
    for name in SITES:
        rows = pooled_rows(kept.read("low_noise", groups[name]), ROWS).float()
        yield name, expert.read_bf16(f"{name}.weight").float(), rows


def entropy(symbols: npt.NDArray[Any]) -> float:
    """Bits per symbol of their distribution."""
    shares = np.unique(symbols, return_counts=True)[1] / symbols.size
    return float(-(shares * np.log2(shares)).sum())


def cpu_s(work: Callable[[], Any]) -> float:
    """Least CPU seconds of some runs; other processes count less than in wall time."""
    found = []
    for _ in range(REPEATS):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return max(min(found), 1e-9)


def coded(data: bytes, weights: int) -> dict[str, dict[str, float]]:
    """Every coding of one string: bits per weight, millions of weights per second."""
    found = {}
    for name, (compress, decompress) in CODINGS.items():
        packed = compress(data)
        assert decompress(packed) == data
        found[name] = {
            "bits": 8 * len(packed) / weights,
            "encode_m_per_s": weights / 1e6 / cpu_s(lambda f=compress: f(data)),
            "decode_m_per_s": weights / 1e6 / cpu_s(lambda f=decompress, p=packed: f(p)),
        }
    return found


def nibbles(difference: npt.NDArray[np.uint8]) -> bytes:
    flat = difference.reshape(-1)
    return (flat[0::2] | flat[1::2] << 4).tobytes()


def measure(weight: Tensor, rows: Tensor) -> dict[str, Any]:
    """Both kinds of scales for one weight."""
    held_out = torch.arange(rows.shape[0]) % 4 == 3
    h, other = hessian(rows[~held_out]), hessian(rows[held_out])
    factor = inverse_factor(h.clone(), DAMP, "benchmark")
    plain = hif4.quantize(weight)
    plain_values = plain.dequantize(torch.float32)
    figures: dict[str, Any] = {"shape": list(weight.shape), "rows": rows.shape[0]}
    for scales in ("dynamic", "static"):
        rounder = Hif4Rounder(*weight.shape, words=plain.scale if scales == "static" else None)
        quantize_columns(weight, factor, rounder)
        figures[scales] = study(weight, plain, rounder.result())
        values = rounder.result().dequantize(torch.float32)
        for name, covariance in (("error_to_plain_rounding", h), ("error_held_out", other)):
            error = proxy_error(weight, values, covariance)
            figures[scales][name] = error / proxy_error(weight, plain_values, covariance)
    return figures


def study(weight: Tensor, plain: hif4.Hif4Tensor, chosen: hif4.Hif4Tensor) -> dict[str, Any]:
    """All codings of one result; `stored` is what `hfq.convert.code_difference` makes of it."""
    weights, columns = weight.numel(), weight.shape[1]
    under = hif4.quantize_under(weight, chosen.scale)
    levels, predicted = (levels_of_codes(each.codes).numpy().astype(np.int16) for each in (chosen, under))
    difference = ((levels - predicted) % 15).astype(np.uint8)
    # Never zero: where plain rounding is exact the difference must not get lost.
    sign = np.where((weight - under.dequantize(torch.float32)).numpy() < 0, np.int16(-1), np.int16(1))
    signed = ((levels - predicted)[:, :columns] * sign) % 15
    words = chosen.scale.view(torch.int32)
    planes = (words ^ plain.scale.view(torch.int32)).numpy().view(np.uint8).reshape(-1, 4).T
    codes, scale = encode_codes(chosen, under), encode_words(chosen.scale, plain.scale)
    assert torch.equal(decode_codes(codes, under, "benchmark"), chosen.codes)
    assert decode_words(scale, plain.scale, "benchmark").tolist() == chosen.scale.tolist()
    static = bool(torch.equal(words, plain.scale.view(torch.int32)))
    return {
        "changed_share": float((difference[:, :columns] != 0).mean()),
        "entropy_codes": entropy(levels[:, :columns]),
        "entropy_difference": entropy(difference[:, :columns]),
        "entropy_signed": entropy(signed),
        "packed": coded(chosen.codes.numpy().tobytes(), weights),
        "difference": coded(nibbles(difference), weights),
        "words": coded(words.numpy().tobytes(), weights),
        "words_xor": coded(planes.tobytes(), weights),
        "stored": {
            "bits_codes": 8 * codes.numel() / weights,
            "bits_words": 0.0 if static else 8 * scale.numel() / weights,
            "encode_m_per_s": weights / 1e6 / cpu_s(lambda: encode_codes(chosen, under)),
            "decode_m_per_s": weights / 1e6 / cpu_s(lambda: decode_codes(codes, under, "benchmark")),
            "plain_rounding_m_per_s": weights / 1e6 / cpu_s(lambda: hif4.quantize(weight)),
            "rounding_under_m_per_s": weights / 1e6 / cpu_s(lambda: hif4.quantize_under(weight, chosen.scale)),
        },
    }


def table(name: str, figures: dict[str, Any]) -> Iterator[str]:
    """The lines of one weight."""
    for scales in ("dynamic", "static"):
        found = figures[scales]
        stored = found["stored"]
        yield (
            f"{name}, {scales} scales: error {found['error_to_plain_rounding']:.3f} of plain rounding's, "
            f"{found['error_held_out']:.3f} held out, "
            f"{100 * found['changed_share']:.0f} % of codes changed; entropy {found['entropy_codes']:.3f} codes, "
            f"{found['entropy_difference']:.3f} difference, {found['entropy_signed']:.3f} signed; "
            f"stored {stored['bits_codes']:.3f} + "
            f"{stored['bits_words']:.3f} bits, encode {stored['encode_m_per_s']:.0f}, decode "
            f"{stored['decode_m_per_s']:.0f} M/s"
        )
        yield f"  {'bits per weight (decode M/s)':30}" + "".join(f"{coding:>18}" for coding in CODINGS)
        for what in ("packed", "difference", "words", "words_xor"):
            cells = (f"{one['bits']:.3f} ({one['decode_m_per_s']:.0f})" for one in found[what].values())
            yield f"  {what:30}" + "".join(f"{cell:>18}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of the made weights")
    parser.add_argument("--calibration", type=Path, help="of the tiny Wan, with kept inputs; one is made by default")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"threads": 1, "damp": DAMP, "load_average": [os.getloadavg()[0]], "weights": {}}
    with tempfile.TemporaryDirectory() as folder:
        if options.calibration is None:
            kept = calibrate(WEIGHTS, PROMPTS, Path(folder) / "calibration", steps=STEPS, keep_inputs=KEPT)
        else:
            kept = load_calibration(options.calibration)
        for name, weight, rows in itertools.chain(made(options.size), trained(kept)):
            figures["weights"][name] = found = measure(weight, rows)
            print("\n".join(table(name, found)), flush=True)
    figures["load_average"].append(os.getloadavg()[0])
    figures |= {"machine": machine(), "software": software()}
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
