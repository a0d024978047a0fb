"""The modules behind graphs: a transformer's part with the inputs and names that its graph has."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hfq.convert.architecture import Architecture
from hfq.convert.keymap import to_diffusers, to_original
from hfq.convert.transformer import empty_transformer

from .scope import Scope

__all__ = ["BlockGraph", "ModelGraph", "SiteGraph", "empty_graph", "linears_of", "tensor_names"]


class SiteGraph(nn.Module):
    """One linear: `x` [batch, tokens, in_features] -> [batch, tokens, out_features]."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """The linear's output."""
        y: Tensor = self.part(x)
        return y


class BlockGraph(nn.Module):
    """One block: the residual stream [batch, tokens, dim] before it -> behind it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_cos: Tensor, rotary_sin: Tensor
    ) -> Tensor:
        """The residual stream behind the block."""
        y: Tensor = self.part(hidden_states, encoder_hidden_states, temb, (rotary_cos, rotary_sin))
        return y


class ModelGraph(nn.Module):
    """A whole transformer: latents [batch, channels, frames, height, width] -> what the model predicts of them."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        control_hidden_states: Tensor | None = None,
    ) -> Tensor:
        """The model's output."""
        more: dict[str, Any] = {}
        if encoder_hidden_states_image is not None:
            more["encoder_hidden_states_image"] = encoder_hidden_states_image
        if control_hidden_states is not None:
            more["control_hidden_states"] = control_hidden_states
        y: Tensor = self.part(hidden_states, timestep, encoder_hidden_states, return_dict=False, **more)[0]
        return y


def empty_graph(architecture: Architecture, scope: Scope) -> nn.Module:
    """The module of a part: parameters on the meta device, rotary tables real, in evaluation mode.

    Raises:
        UsageError: the model has no such part.
        UnsupportedModelError, MissingDependencyError: as `empty_transformer`.
    """
    scope.check(architecture)
    if scope.kind == "site":
        site = next(site for site in architecture.sites() if site.name == scope.name)
        return SiteGraph(nn.Linear(site.in_features, site.out_features, device="meta")).eval()
    transformer: Any = empty_transformer(architecture)
    made = BlockGraph(transformer.blocks[scope.block]) if scope.kind == "block" else ModelGraph(transformer)
    return made.eval()


def _prefix(scope: Scope) -> str:
    """What a name inside `part` lacks to be diffusers' name in the whole transformer."""
    return f"blocks.{scope.name}." if scope.kind == "block" else ""


def tensor_names(module: nn.Module, scope: Scope) -> dict[str, str]:
    """Canonical name -> name inside `module` of every parameter of a part that `empty_graph` made."""
    names = [name for name, _ in module.named_parameters()]
    if scope.kind == "site":
        return {f"{scope.name}.{name.removeprefix('part.')}": name for name in names}
    return {to_original(_prefix(scope) + name.removeprefix("part.")): name for name in names}


def linears_of(module: nn.Module, scope: Scope, sites: list[str]) -> dict[str, str]:
    """Site -> name inside `module`, for the sites that are part of it."""
    if scope.kind == "site":
        return {site: "part" for site in sites if site == scope.name}
    prefix = _prefix(scope)
    return {
        site: f"part.{to_diffusers(f'{site}.weight').removesuffix('.weight').removeprefix(prefix)}"
        for site in sites
        if scope.holds(site)
    }
