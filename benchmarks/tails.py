"""How heavy the tails of a calibration's inputs are: largest |x| over root mean square, per channel of the blocks.

python benchmarks/tails.py CAL
"""

from __future__ import annotations

import sys

import torch

import hfq


def main() -> None:
    calibration = hfq.load_calibration(sys.argv[1])
    ratios = []
    for role in calibration.roles:
        for group in calibration.groups(role):
            if group.startswith("blocks."):
                found = calibration.read(role, group)
                ratios.append(found.channel_max() / found.channel_rms().clamp(min=1e-30))
    crest = torch.cat(ratios)
    median, rare = (float(crest.quantile(q)) for q in (0.5, 0.99))
    print(f"{len(crest)} channels: median {median:.1f}, 99th percentile {rare:.1f}, largest {float(crest.max()):.1f}")


if __name__ == "__main__":
    main()
