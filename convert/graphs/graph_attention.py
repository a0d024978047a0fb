"""Wan's attention in a form that exports to fewer nodes; the same numbers, bit for bit, as diffusers' own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .scope import TEXT_WITH_IMAGE

__all__ = ["GraphAttention"]


class GraphAttention:
    """An attention processor for diffusers' `WanAttention`.

    Rotary embedding by stacking pairs: diffusers assigns to slices, which becomes ScatterND.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[batch, tokens, dim] -> [batch, tokens, dim]; without a context, self-attention."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        image = None
        if attn.add_k_proj is not None and encoder_hidden_states is not None:
            cut = context.shape[1] - TEXT_WITH_IMAGE
            image, context = context[:, :cut], context[:, cut:]
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(context)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(context).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = _rotated(query, *rotary_emb), _rotated(key, *rotary_emb)
        mixed = _attend(query, key, value, attention_mask)
        if image is not None:
            image_key = attn.norm_added_k(attn.add_k_proj(image)).unflatten(2, (attn.heads, -1))
            image_value = attn.add_v_proj(image).unflatten(2, (attn.heads, -1))
            mixed = mixed + _attend(query, image_key, image_value, None)
        output: Tensor = attn.to_out[0](mixed)
        return output


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """[batch, tokens, heads, head_dim] each -> [batch, tokens, dim]."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2, 3)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (even, odd) of channels turned by the tables' angles: [batch, tokens, heads, head_dim]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2)
