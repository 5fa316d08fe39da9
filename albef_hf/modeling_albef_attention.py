"""Eager attention, which returns its weights, and the mask that it takes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

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


def asked_outputs(config: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of `output_hidden_states` and `output_attentions`, those that a call or else the configuration asks for.

    Attention maps of an implementation that does not return them cost a warning, as in transformers.
    """
    names = ("output_hidden_states", "output_attentions")
    asked = {name: arguments[name] if name in arguments else getattr(config, name, False) for name in names}
    if asked["output_attentions"] and config._attn_implementation != "eager":
        logger.warning_once(
            f"{config._attn_implementation!r} attention does not return its weights: load the model with "
            'attn_implementation="eager" for output_attentions'
        )
        asked["output_attentions"] = False
    return {name: value for name, value in asked.items() if value not in (None, False)}


@contextmanager
def recording(layers: Sequence[Any], asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Record what text layers compute, as a dict that is filled at the end.

    asked: from `asked_outputs`. hidden_states: the input of the first layer and the output of each; attentions and
    cross_attentions: (batch, heads, tokens, tokens) of each layer that has them.
    """
    record: dict[str, Any] = {}
    hooks: list[Any] = []

    def follow(module: nn.Module, name: str, index: int | None = None) -> None:
        def keep(_: Any, arguments: Any, output: Any) -> None:
            record.setdefault(name, []).append(output if index is None else output[index])

        hooks.append(module.register_forward_hook(keep))

    def begin(_: Any, arguments: Any) -> None:
        record["hidden_states"] = [arguments[0]]

    if "output_hidden_states" in asked:
        hooks.append(layers[0].register_forward_pre_hook(begin))
        for layer in layers:
            follow(layer, "hidden_states")
    if "output_attentions" in asked:
        for layer in layers:
            follow(layer.attention.self, "attentions", 1)
            if "crossattention" in layer._modules:
                follow(layer.crossattention.self, "cross_attentions", 1)
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()
    record.update((name, tuple(values)) for name, values in record.items())


def refuse_outputs(config: Any, arguments: Mapping[str, Any]) -> None:
    """Raise a ValueError if a call with losses, which encodes several batches, asks for hidden states or attention."""
    for name in asked_outputs(config, arguments):
        raise ValueError(
            f"{name} is for scores only, since losses encode several batches of texts: leave the losses out "
            "(return_loss=False), or call get_image_features and get_text_features"
        )


__all__ = ["KeysValues", "asked_outputs", "additive_mask", "eager_attention_forward", "recording", "refuse_outputs"]
