"""GPTQ against plain rounding on other prompts, by how many different input rows it was fitted to.

    hfq calibrate MODEL --prompts A --keep-inputs 1024 -o fit
    hfq calibrate MODEL --prompts B --keep-inputs 512 -o other
    python benchmarks/few_rows.py MODEL fit other [BLOCK ...]

For every linear of the blocks (of those named): squared error of its output on the rows of `other`, GPTQ over plain
rounding, both after the same max mask. Above 1 GPTQ does worse than rounding. One column per number of rows, as a part
of the width, with the mean and the worst ratio and the share of linears that lose. `tried` are the same codes where
trying them on rows left out says so, and rounding elsewhere: what a recipe without `few_rows` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

import hfq
from hfq.convert.architecture import Site
from hfq.convert.group_statistics import GroupStatistics, different_rows, row_numbers
from hfq.convert.recipe import Recipe
from hfq.convert.restore import RestoredSite, restore_weight
from hfq.convert.site_conversion import convert_site
from hfq.convert.site_error import block_of, measure_site
from hfq.convert.site_ops import read_ops

PARTS: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 1.5, 2.0, 4.0)
GPTQ: Final = {"kind": "gptq"}
ARMS: Final = {"rounding": [], "gptq": [{**GPTQ, "few_rows": "warn"}], "tried": [GPTQ]}


FIGURES: Final[dict[str, Callable[[list[float]], str]]] = {
    "mean": lambda ratios: f"{sum(ratios) / len(ratios):.3f}",
    "worst": lambda ratios: f"{max(ratios):.3f}",
    "lose": lambda ratios: f"{sum(ratio > 1 for ratio in ratios) / len(ratios):.1%}",
}
"""Of the linears' ratios; `lose` is the share above 1."""


def recipe_of(stages: Sequence[object]) -> Recipe:
    """HiFloat4, a max mask and `stages`."""
    return Recipe.from_document(
        {
            "schema": "hfq.recipe/1", "name": "few-rows",
            "weight": {"format": "hif4"}, "activation": {"format": "hif4"},
            "route": [{"match": ["*"], "to": "quantize"}], "stage": [{"kind": "smooth", "statistic": "max"}, *stages],
        }
    )  # fmt: skip


RECIPES: Final = {arm: recipe_of(stages) for arm, stages in ARMS.items()}


def first_rows(statistics: GroupStatistics, rows: int) -> GroupStatistics:
    """The statistics with about `rows` kept rows, evenly from all timestep bins."""
    each = max(1, rows // max(1, len(statistics.inputs)))
    kept = {index: found[:each] for index, found in statistics.inputs.items()}
    return GroupStatistics(
        statistics.max, statistics.sum_squares, statistics.count, statistics.histograms, kept, statistics.digests
    )


def error_of(site: Site, weight: Tensor, recipe: Recipe, statistics: GroupStatistics, rows: Tensor) -> float:
    """Squared output error on `rows`, BF16 [n, in_features], over the output's squares."""
    found = convert_site(site, weight, recipe, recipe.stages, statistics, None, None, site.name)
    ops = read_ops(found.ops, found.state, (site.out_features, site.in_features), site.name)
    restored = restore_weight(weight, ops, recipe.weight, site.name)
    error = measure_site(weight, RestoredSite(restored, ops, found.digest), rows)
    return float(error["output_error"] / error["output_power"])


def main(model: str, fit: str, other: str, *blocks: str) -> None:
    """Print the table, of all blocks or of those with these names (`blocks.3`)."""
    torch.set_num_threads(1)
    ratios: dict[tuple[str, float], list[float]] = {}
    with hfq.open_checkpoint(model) as checkpoint, hfq.load_calibration(fit) as a, hfq.load_calibration(other) as b:
        for role, expert in checkpoint.experts.items():
            for site in expert.sites:
                if not site.in_block or (blocks and block_of(site.name) not in blocks):
                    continue
                weight, statistics = expert.read_bf16(f"{site.name}.weight"), a.read(role, site.input_group)
                rows = b.read(role, site.input_group).pooled_inputs()
                plain = error_of(site, weight, RECIPES["rounding"], statistics, rows)
                for part in PARTS:
                    few = first_rows(statistics, int(part * site.in_features))
                    if few.kept_rows < int(0.9 * part * site.in_features):
                        continue  # the calibration has no more
                    arms = ["gptq", "tried"] if few.kept_rows * 8 >= site.in_features else ["gptq"]
                    different = different_rows(row_numbers(few.pooled_inputs())) / site.in_features
                    for arm in arms:
                        ratio = error_of(site, weight, RECIPES[arm], few, rows) / plain
                        ratios.setdefault((arm, part), []).append(ratio)
                        if ratio > 1:
                            print(f"{role} {site.name}: {arm} {ratio:.3f} with {different:.2f} of the width different")
    print(f"{'rows / width':14}" + "".join(f"{part:>10.3g}" for part in PARTS))
    for arm in ("gptq", "tried"):
        found = [ratios.get((arm, part), []) for part in PARTS]
        for name, figure in FIGURES.items():
            cells = (figure(values) if values else "-" for values in found)
            print(f"{arm + ', ' + name:14}" + "".join(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    main(*sys.argv[1:])
