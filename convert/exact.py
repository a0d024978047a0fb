"""Values that keep their bits: buffers through casts and moves, a rounding through a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from hfq.formats.rounding import round_to_bf16

__all__ = ["ExactBuffers", "fp32_of", "rounded"]

_HOLD_BF16: Final = (torch.bfloat16, torch.float32, torch.float64)


class ExactBuffers(nn.Module):
    """A module whose buffers no cast can round.

    Buffers follow `.to(device)` and offloading and stay out of `state_dict`. Those in BF16 become bfloat16, float32 or
    float64, which hold them exactly; under any other dtype, float16 among them, they stay as they are. All others keep
    their dtype: fp32 values are held as int32 patterns, which nothing casts that casts floating-point tensors.
    """

    def hold(self, name: str, tensor: Tensor | None) -> None:
        """Register a buffer; fp32 as its int32 pattern, see `fp32_of`."""
        if tensor is not None and tensor.dtype == torch.float32:
            tensor = tensor.contiguous().view(torch.int32)
        self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        own = {id(buffer) for buffer in self._buffers.values()}

        def exactly(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            allowed = _HOLD_BF16 if tensor.is_floating_point() else (tensor.dtype,)
            return tensor.to(moved.device) if id(tensor) in own and moved.dtype not in allowed else moved

        return super()._apply(exactly, recurse)  # type: ignore[no-untyped-call]


def rounded(x: Tensor) -> Tensor:
    """`x` in BF16, also in a model that is being compiled, where a cast to BF16 and back would be dropped."""
    return round_to_bf16(x) if torch.compiler.is_compiling() else x.to(torch.bfloat16)


def fp32_of(bits: Tensor) -> Tensor:
    """The fp32 values of a buffer that `ExactBuffers.hold` took as fp32."""
    return bits.view(torch.float32)
