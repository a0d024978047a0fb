"""The quantized linear: activations and weight in the delta's formats, multiplied in the module's dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfq.schema.errors import UsageError

from .clip import Clip, TimestepClock
from .exact import ExactBuffers, rounded
from .ops import MaskOp, Op
from .restore import RestoredSite, effective_weight
from .weights import quantize_activation

__all__ = ["QuantizedLinear", "ReadOnlyWeight"]

_ADVICE: Final = "write to the base instead and convert again, or remove the delta by reloading the model"
_CLONE: Final = "call the linears one by one as they are; for a model of effective weights alone take `.weight.clone()`"
_COMFY: Final = "use diffusers' LoRA loading, or merge the LoRA into the base and convert again"


_DTYPES: Final = (torch.bfloat16, torch.float32, torch.float64, torch.float16)


class ReadOnlyWeight(Tensor):
    """A weight that can be read like any tensor and that refuses to be written to."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run reads on plain tensors; refuse what would write to this one.

        Raises:
            UsageError: an in-place operation, an assignment, or this weight as `out`.
        """
        # An operator of `torch.ops` is called `add_.Tensor`.
        name = getattr(func, "__name__", "").partition(".")[0]
        keywords = dict(kwargs or {})
        _refuse_copies_that_lose(name, [*args, *keywords.values()])
        # `torch.nn.init` passes its tensor by name.
        target = (args[:1] or list(keywords.values())) if _writes(name) else []
        written = [keywords.get("out"), *target]
        if any(isinstance(value, cls) for value in _flat(written)):
            raise UsageError("the weight of a quantized linear is read-only", found=name or "a write", todo=_ADVICE)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **keywords)
            own = [value for value in _flat(args) if isinstance(value, cls)]

            def shown(value: Any) -> Any:
                # A view (`.data`, `.detach()`, a slice) is still this weight; a result of arithmetic is an ordinary
                # tensor.
                if not isinstance(value, Tensor) or any(value is argument for argument in args):
                    return value
                shared = any(_same_storage(value, weight) for weight in own)
                return value.as_subclass(cls if shared else Tensor)

            if name == "__iter__":
                return map(shown, result)
            # Of `chunk`, `split`, `unbind`; the named tuples of torch are results of arithmetic.
            return type(result)(map(shown, result)) if type(result) in (tuple, list) else shown(result)

    def set_(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse; torch does not ask `__torch_function__` about this one."""
        raise UsageError("the weight of a quantized linear is read-only", found="set_", todo=_ADVICE)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """An ordinary tensor."""
        copied: Tensor = memo.setdefault(id(self), self.clone())
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Stored as an ordinary tensor, so that reading it needs nothing of this package."""
        return self.as_subclass(Tensor).clone().__reduce_ex__(protocol)


_FUSING: Final = frozenset({"cat", "concat", "concatenate", "hstack", "vstack", "row_stack", "column_stack"})
_COPYING: Final = frozenset({"copy_", "_foreach_copy_", "__setitem__"})


def _refuse_copies_that_lose(name: str, values: Sequence[Any]) -> None:
    """Refuse to make a plain linear of effective weights: it would multiply inputs that are not quantized.

    Raises:
        UsageError: weights joined into one (fused projections), a product with one as the weight, or one written
            into a tensor that exists: whether it is, or is part of, another module's weight cannot be told.
    """
    what = None
    if name in _FUSING and sum(isinstance(value, ReadOnlyWeight) for value in _flat(values)) > 1:
        what = "fusing the weights of quantized linears would lose the quantization of their inputs"
    elif name == "linear" and isinstance(values[1], ReadOnlyWeight):
        what = "a product with the effective weight would lose the quantization of its input"
    elif name in _COPYING and not _holds_one(values[:1]) and _holds_one(values[1:]):
        what = "a copy of the effective weight in another module would lose the quantization of its input"
    if what is not None:
        raise UsageError(what, found=name, todo=_CLONE)


_READING: Final = frozenset({"__index__", "__int__", "__invert__", "__iter__", "requires_grad_"})


def _writes(name: str) -> bool:
    """Whether an operation of this name changes its first argument."""
    if name in _READING:
        return False
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in ("__setitem__", "__set__", "__delitem__") or name.startswith("__i")


def _holds_one(values: Sequence[Any]) -> bool:
    return any(isinstance(value, ReadOnlyWeight) for value in _flat(values))


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    """Values and what lists and tuples among them hold: `torch._foreach_add_` takes its tensors in a list."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _same_storage(left: Tensor, right: Tensor) -> bool:
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


class QuantizedLinear(ExactBuffers, nn.Linear):
    """An nn.Linear whose product is `Q(x) Q(W)^T + b` behind the ops of its site, plus what their branches add.

    `.weight` is the effective weight in the original basis, computed when asked for, read-only. `state_dict` has the
    keys of an nn.Linear; loading a state dict accepts that weight and the bias, and refuses any other weight. The
    quantized operand and the tensors of the ops are buffers outside `state_dict`, whose bits no cast changes (see
    `ExactBuffers`); under float16 only the result is rounded to the dtype of the input.

    Attributes:
        site: original Wan name.
        role: expert.
        clip: headroom per timestep bin, or None.
        clock: tells the current bin; None without a clip.
    """

    operand: Tensor
    ops: nn.ModuleList

    def __init__(
        self,
        restored: RestoredSite,
        source: nn.Linear,
        *,
        role: str,
        site: str,
        clock: TimestepClock | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.role, self.site = role, site
        self.activation = dict(restored.ops.activation)
        self.clip: Clip | None = restored.ops.clip
        self.clock = clock if self.clip is not None else None
        device, dtype = _place(source)
        operand = restored.operand().to(device)
        self.hold("operand", operand)
        self.operand = operand.to(dtype)
        self.ops = nn.ModuleList(restored.ops.ops).to(device)
        self.register_parameter("bias", source.bias)
        self.training = source.training

    def _chain(self) -> list[Op]:
        return cast("list[Op]", list(self.ops))

    @property
    def mask(self) -> Tensor | None:
        """The channel mask, fp32 [in_features], or None."""
        return next((op.mask for op in self._chain() if isinstance(op, MaskOp)), None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Effective weight [out_features, in_features] in the original basis and the module's dtype; read-only."""
        effective = effective_weight(self.operand.float(), self._chain())
        return effective.to(self.operand.dtype).as_subclass(ReadOnlyWeight)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise UsageError(
                "the weight of a quantized linear is read-only", where=f"{self.role} {self.site}", todo=_ADVICE
            )
        if name in ("weight_function", "bias_function") or "comfy_" in name:
            # ComfyUI's patcher walks over parameters, and the weight is none: what it adds to weights would be lost.
            what = "ComfyUI's model patcher cannot patch a quantized linear: a LoRA on it would be lost"
            raise UsageError(what, where=f"{self.role} {self.site}", found=name, todo=_COMFY)
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Take the bias.

        Raises:
            UsageError: any other name: pruning, weight norm and the like put their own parameters beside a weight.
        """
        if name != "bias":
            what = "a quantized linear has no parameter but its bias"
            raise UsageError(what, where=f"{self.role} {self.site}", found=name, todo=_ADVICE)
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def kept_exactly(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and moved.dtype not in _DTYPES:
                raise UsageError(
                    "a quantized linear in a dtype that does not hold its numbers",
                    where=f"{self.role} {self.site}",
                    expected="bfloat16 or float32; float16 rounds results",
                    found=str(moved.dtype).removeprefix("torch."),
                    todo="leave it out of layerwise casting: skip_modules_classes=(torch.nn.Linear,)",
                )
            return moved

        if self.bias is not None:
            kept_exactly(self.bias)  # before anything is changed
        return super()._apply(kept_exactly, recurse)

    def quantize_input(self, x: Tensor) -> Tensor:
        """The input [..., in_features] as it is multiplied: BF16, through the ops, quantized; BF16."""
        return self._branched(x)[0]

    def _branched(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The quantized input, and what the ops add to the product."""
        dtype, branches = self.operand.dtype, []
        chain, factor = self._chain(), None
        if chain and isinstance(last := chain[-1], MaskOp):
            factor, chain = last.mask, chain[:-1]  # one pass over the input less
        x = rounded(x)
        for op in chain:
            branch = op.branch(x, dtype)
            if branch is not None:
                branches.append(branch)
            x = op.on_activation(x)
        headroom = 1.0 if self.clip is None else self._headroom(self.clip)
        return quantize_activation(x, self.activation, headroom, factor), branches

    def _headroom(self, clip: Clip) -> float:
        if self.clock is None:
            raise UsageError(
                "the clip of this linear depends on the timestep, and nothing tells it",
                where=f"{self.role} {self.site}",
                todo="put the delta on the whole transformer with hfq.apply",
            )
        return clip.headroom[self.clock.consult(self.site)]

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features] in the module's dtype; float16 for a float16 input or autocast."""
        device = input.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
            # Autocast would round both operands to float16, which does not hold them.
            with torch.autocast(device, enabled=False):
                return self._multiply(input).to(torch.float16)
        product = self._multiply(input)
        return product.to(torch.float16) if input.dtype == torch.float16 else product

    def _multiply(self, input: Tensor) -> Tensor:
        dtype = self.operand.dtype
        x, branches = self._branched(input)
        bias = None if self.bias is None else self.bias.to(dtype)
        product = F.linear(x.to(dtype), self.operand, bias)
        for branch in branches:
            product = product + branch
        return product

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        formats = ", ".join(f"{key}={value}" for key, value in self.activation.items())
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, site={self.site}, activation=({formats})"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight.as_subclass(Tensor)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "weight"
        given = state_dict.get(key)
        if given is not None and not self._is_own(given):
            error_msgs.append(f"{key}: the weight of a quantized linear is read-only; {_ADVICE}")
            return  # a bias that goes with another weight is not taken either
        if given is None and strict:
            missing_keys.append(key)
        rest = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _is_own(self, weight: Tensor) -> bool:
        own = self.weight.as_subclass(Tensor)
        return weight.shape == own.shape and torch.equal(weight.to(own), own)


def _place(source: nn.Linear) -> tuple[torch.device, torch.dtype]:
    weight = source.weight
    device = torch.device("cpu") if weight.is_meta else weight.device
    return device, weight.dtype if weight.dtype == torch.float32 else torch.bfloat16
