"""A site that is rounded plainly, a few rows at a time: nothing but its scales is held until the end.

Groups, rows and sums of squares do not reach beyond a row, so the result is that of the whole weight.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfq import formats
from hfq.schema.errors import NonFiniteWeightError

from .site_output import RowOutputs
from .tensor_bytes import tensor_bytes
from .weights import format_line, quantize_weight

__all__ = ["PlainSite"]


class PlainSite:
    """The quantized weight of a site without ops, from its rows in order.

    Args:
        shape: of the weight, (out_features, in_features).
        options: a recipe's `weight` table, normalised; see `fits`.
        where: expert and site, for error messages.
        measured: whether `sums` is wanted.
        output: takes the rows too, to measure the site's output; None for none.

    Attributes:
        bits: that codes and scales take, after `digest`.
        output: as given.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        options: Mapping[str, Any],
        where: str,
        *,
        measured: bool,
        output: RowOutputs | None = None,
    ) -> None:
        self.output = output
        self._options, self._where, self._measured = options, where, measured
        self._digest = hashlib.sha256(format_line(options, shape))
        self._rows = self.bits = 0
        self._shares_scale = options["format"] == "hif8" and options["scale"] == "none"
        self._scales: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._error: NonFiniteWeightError | None = None
        formats.expect(math.prod(shape))

    @staticmethod
    def fits(options: Mapping[str, Any]) -> bool:
        """Whether the format's scales do not reach beyond a row."""
        return bool(options["format"] == "hif4" or options["scale"] != "tensor")

    def feed(self, rows: Tensor) -> None:
        """Quantize the next rows, BF16 [n, in_features]. A number that must be refused is told by `digest`."""
        if self._error is not None:
            return
        try:
            part = quantize_weight(rows, self._options, self._where, first_row=self._rows)
        except NonFiniteWeightError as error:
            self._error = error
            return
        self._digest.update(tensor_bytes(part.codes))
        self.bits += 8 * part.codes.numel()
        if not (self._shares_scale and self._scales):
            self._scales.append(part.scale)
        if self._measured:
            self._sums.append(part.row_squared_errors(rows))
        if self.output is not None:
            self.output.add(rows, part.dequantize(torch.float32))
        self._rows += rows.shape[0]

    def digest(self) -> str:
        """As `site_digest` without state, after the last row.

        Raises:
            NonFiniteWeightError: as `quantize_weight`.
        """
        if self._error is not None:
            raise self._error
        for scale in self._scales:
            self._digest.update(tensor_bytes(scale))
            self.bits += 8 * scale.numel() * scale.element_size()
        self._scales.clear()
        return self._digest.hexdigest()

    def sums(self) -> tuple[float, float]:
        """As `squared_error` of the whole weight."""
        error, power = torch.cat(self._sums, dim=1).tolist()
        self._sums.clear()
        return math.fsum(error), math.fsum(power)
