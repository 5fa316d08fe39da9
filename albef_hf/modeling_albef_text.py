"""BERT as ALBEF uses it: the lower layers encode the text, the upper ones fuse it with the image by cross-attention.

Parameter names are BERT's, so that BERT weights load by name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_albef import AlbefTextConfig
from .modeling_albef_attention import KeysValues, additive_mask, asked_outputs, eager_attention_forward
from .modeling_albef_loading import AlbefPreTrainedModel, RepeatsFusionLayers


class AlbefTextEmbeddings(nn.Module):
    """Token ids (batch, tokens) -> states (batch, tokens, hidden_size). past: how many tokens come before them."""

    def __init__(self, config: AlbefTextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor, past: int = 0) -> torch.Tensor:
        length = past + input_ids.shape[1]
        if length > self.position_embeddings.num_embeddings:
            longest = self.position_embeddings.num_embeddings
            raise ValueError(f"a text of {length} tokens is longer than the {longest} positions of this model: cut it")
        # One text segment: every token is of type 0 and position i.
        embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(embeddings + self.position_embeddings.weight[past:length]))


class _Attention(nn.Module):
    """Multi-head attention from text states (batch, tokens, hidden_size) to states of width `memory_size`."""

    def __init__(self, config: AlbefTextConfig, memory_size: int) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(memory_size, config.hidden_size)
        self.value = nn.Linear(memory_size, config.hidden_size)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)

    def project(self, memory: torch.Tensor, extend: Callable[..., KeysValues] | None = None) -> KeysValues:
        """(batch, tokens, memory_size) -> keys and values (batch, heads, tokens, head_size)."""
        keys_values = self._split_heads(self.key(memory)), self._split_heads(self.value(memory))
        return keys_values if extend is None else extend(*keys_values)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, keys_values: KeysValues, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            self._split_heads(self.query(hidden_states)),
            *keys_values,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return output.flatten(2), weights


class AlbefTextSelfAttention(_Attention):
    """Attention of a text to itself."""


class AlbefTextCrossAttention(_Attention):
    """Attention of a text to an image."""


class AlbefTextResidual(nn.Module):
    """Project, drop, add, normalize (BERT is post-norm)."""

    def __init__(self, config: AlbefTextConfig, input_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


class AlbefTextAttention(nn.Module):
    """BERT's naming: `self` attends, `output` projects."""

    def __init__(self, config: AlbefTextConfig, attention: _Attention) -> None:
        super().__init__()
        self.self = attention
        self.output = AlbefTextResidual(config, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, keys_values: KeysValues, **kwargs: Any
    ) -> torch.Tensor:
        attended, _ = self.self(hidden_states, attention_mask, keys_values, **kwargs)
        return self.output(attended, hidden_states)


class AlbefTextIntermediate(nn.Module):
    def __init__(self, config: AlbefTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states))


class AlbefTextLayer(GradientCheckpointingLayer):
    """Self-attention, then (in fusion layers) cross-attention to the image, then the feed-forward part.

    Args:
        fuses: whether the layer has cross-attention.
        memory_size: width of the states that cross-attention attends to; that of image tokens where left out.

    `forward` maps states (batch, tokens, hidden_size) to new ones. image_keys, image_values: of one image or question
    for each text, or of fewer: then each is shared by equally many consecutive texts; memory_mask: their mask, if
    padded. queries: compute only this many positions, from the first; all positions are attended to in any case.
    extend: puts keys and values of earlier tokens before those of the given ones.
    """

    def __init__(self, config: AlbefTextConfig, fuses: bool, memory_size: int | None = None) -> None:
        super().__init__()
        self.attention = AlbefTextAttention(config, AlbefTextSelfAttention(config, config.hidden_size))
        if fuses:
            memory_size = config.encoder_hidden_size if memory_size is None else memory_size
            if memory_size is None:
                raise ValueError("the text configuration needs encoder_hidden_size, the width of the image tokens")
            self.crossattention = AlbefTextAttention(config, AlbefTextCrossAttention(config, memory_size))
        self.intermediate = AlbefTextIntermediate(config)
        self.output = AlbefTextResidual(config, config.intermediate_size)

    def project_memory(self, memory: torch.Tensor) -> KeysValues:
        """What cross-attention attends to, (batch, tokens, memory_size), -> its keys and values."""
        return self.crossattention.self.project(memory)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_keys: torch.Tensor | None = None,  # one by one: re-entrant checkpointing does not look into tuples
        image_values: torch.Tensor | None = None,
        queries: int | None = None,
        memory_mask: torch.Tensor | None = None,
        extend: Callable[..., KeysValues] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        keys_values = self.attention.self.project(hidden_states, extend)
        hidden_states = self.attention(hidden_states[:, :queries], attention_mask, keys_values, **kwargs)
        if image_keys is not None and image_values is not None:
            texts, memories = hidden_states.shape[0], image_keys.shape[0]
            if texts != memories:  # join the queries of texts that share a memory into one sequence
                hidden_states = hidden_states.unflatten(0, (memories, texts // memories)).flatten(1, 2)
            hidden_states = self.crossattention(hidden_states, memory_mask, (image_keys, image_values), **kwargs)
            if texts != memories:
                hidden_states = hidden_states.unflatten(1, (texts // memories, -1)).flatten(0, 1)
        return self.output(self.intermediate(hidden_states), hidden_states)


class AlbefTextEncoder(nn.Module):
    def __init__(self, config: AlbefTextConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [AlbefTextLayer(config, fuses=index >= config.fusion_layer) for index in range(config.num_hidden_layers)]
        )


class AlbefTextModel(RepeatsFusionLayers, AlbefPreTrainedModel):
    """BERT as a text encoder (layers below `fusion_layer`) and a fusion encoder (the layers from there on).

    Parameter names are BERT's, so BERT weights load by name; cross-attention is new. With `config.images_per_text` of
    2, each fusion layer exists twice, for the first and the second image: see `RepeatsFusionLayers`.
    """

    config: AlbefTextConfig  # type: ignore[assignment]
    base_model_prefix = "text_model"
    _can_record_outputs = {
        "hidden_states": AlbefTextLayer,
        "attentions": AlbefTextSelfAttention,
        "cross_attentions": AlbefTextCrossAttention,
    }
    main_input_name = "input_ids"
    input_modalities = ("text",)  # type: ignore[assignment]

    def __init__(self, config: AlbefTextConfig) -> None:
        super().__init__(config)
        self.embeddings = AlbefTextEmbeddings(config)
        self.encoder = AlbefTextEncoder(config)
        self.tie_repeated_layers()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    @property
    def text_layers(self) -> nn.ModuleList:
        return self.encoder.layer[: self.config.fusion_layer]

    @property
    def fusion_layers(self) -> nn.ModuleList:
        return self.encoder.layer[self.config.fusion_layer :]

    def _mask(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Mask (batch, tokens) of 0 and 1 -> the mask that the attention function takes. Its values are not read."""
        implementation = self.config._attn_implementation
        if attention_mask is None or attention_mask.dim() != 2:
            return attention_mask
        if implementation not in ("sdpa", "eager"):
            return create_bidirectional_mask(self.config, hidden_states, attention_mask)  # type: ignore
        visible = attention_mask.to(torch.bool)[:, None, None, :]  # (batch, 1, 1, tokens)
        return visible if implementation == "sdpa" else additive_mask(visible, hidden_states.dtype)

    def _run(
        self, layers: Any, states: torch.Tensor, mask: Any, memory: Sequence[Any], queries: int | None, **kwargs: Any
    ) -> torch.Tensor:
        """Run states through layers, each with its keys and values; the last computes `queries` positions only."""
        mask = self._mask(states, mask)
        for layer, keys_values in zip(layers, memory, strict=True):
            states = layer(states, mask, *keys_values, queries if layer is layers[-1] else None, **kwargs)
        return states

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, queries: int | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """The text encoder: token ids (batch, tokens) -> states (batch, tokens, hidden_size).

        queries: return only this many positions, from the first (1: the class token).
        """
        layers, nothing = self.text_layers, [(None, None)] * len(self.text_layers)
        return self._run(layers, self.embeddings(input_ids), attention_mask, nothing, queries, **kwargs)

    def project_image_tokens(self, image_tokens: torch.Tensor) -> list[KeysValues]:
        """Keys and values of images (batch, tokens, encoder_hidden_size) for each fusion layer.

        They depend on the image alone: compute them once for all its texts. With two images a text, `interleave` them.
        """
        return [layer.project_memory(image_tokens) for layer in self.fusion_layers[:: self.config.images_per_text]]

    def fuse(
        self,
        text_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_keys_values: Sequence[KeysValues],
        queries: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The fusion encoder: text states (batch, tokens, hidden_size) -> fused states of the same shape.

        image_keys_values: from `project_image_tokens`, or from `interleave` where a text has several images; of as
        many images as texts or fewer, see `AlbefTextLayer`. queries: as in `encode_text`.
        """
        given, layers, images = len(image_keys_values), len(self.fusion_layers), self.config.images_per_text
        if given != layers:
            hint = f"this model reads each text with {images} images"
            raise ValueError(f"keys and values for {given} layers do not fit {layers} fusion layers: {hint}")
        return self._run(self.fusion_layers, text_states, attention_mask, image_keys_values, queries, **kwargs)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encode texts; fuse them with image tokens if `encoder_hidden_states` are given: (batch, tokens, width), or
        (batch, images, tokens, width) where a text has several images.

        Attention maps (`output_attentions=True`) need `attn_implementation="eager"`.
        """
        asked_outputs(self.config, kwargs)
        hidden_states = self.encode_text(input_ids, attention_mask, **kwargs)
        if encoder_hidden_states is not None:
            images = self.config.images_per_text
            if images > 1:
                encoder_hidden_states = encoder_hidden_states.flatten(0, 1)
            image_keys_values = self.project_image_tokens(encoder_hidden_states)
            if images > 1:
                image_keys_values = self.interleave(image_keys_values, [slice(n, None, images) for n in range(images)])
            hidden_states = self.fuse(hidden_states, attention_mask, image_keys_values, **kwargs)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0]
        )


class AlbefPredictionTransform(nn.Module):
    def __init__(self, config: AlbefTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.activation(self.dense(hidden_states)))


class AlbefPredictionHead(nn.Module):
    """BERT's vocabulary head. `forward` is given the word embeddings as output weights, so none have to be tied."""

    def __init__(self, config: AlbefTextConfig) -> None:
        super().__init__()
        self.transform = AlbefPredictionTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def start_weights(self) -> None:
        """See `AlbefPreTrainedModel._init_weights`."""
        init.zeros_(self.bias)

    def forward(self, hidden_states: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.transform(hidden_states), word_embeddings, self.bias)


class AlbefMaskedLanguageModelingHead(nn.Module):
    def __init__(self, config: AlbefTextConfig) -> None:
        super().__init__()
        self.predictions = AlbefPredictionHead(config)

    def forward(self, hidden_states: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> logits (..., vocabulary)."""
        return self.predictions(hidden_states, word_embeddings)


__all__ = ["AlbefMaskedLanguageModelingHead", "AlbefTextModel", "KeysValues"]
