"""Eager attention, which returns its weights, and the mask that it takes."""

from typing import Any

import torch
from torch import nn

# Keys and values of one layer for some images or questions, each (batch, heads, tokens, head width).
KeysValues = tuple[torch.Tensor, torch.Tensor]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that returns its weights; transformers provides the other implementations."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.dropout(scores.softmax(-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """True for visible keys -> 0 for visible keys and the lowest number for others, to add to attention scores."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


__all__ = ["KeysValues", "additive_mask", "eager_attention_forward"]
