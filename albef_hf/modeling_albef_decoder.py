"""The decoder that writes ALBEF's answers (Li et al. 2021, https://arxiv.org/abs/2107.07651, section 5, "VQA")."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.utils.generic import can_return_tuple

from .configuration_albef import AlbefTextConfig
from .losses import full_precision
from .modeling_albef_attention import KeysValues, additive_mask
from .modeling_albef_loading import AlbefPreTrainedModel
from .modeling_albef_text import (
    AlbefMaskedLanguageModelingHead,
    AlbefTextEmbeddings,
    AlbefTextLayer,
    AlbefTextModel,
)

DEFAULT_ANSWER_TOKENS = 10


class AlbefAnswerLayers(nn.Module):
    def __init__(self, config: AlbefTextConfig) -> None:
        super().__init__()
        count = config.num_hidden_layers - config.fusion_layer
        self.layer = nn.ModuleList(
            [AlbefTextLayer(config, fuses=True, memory_size=config.hidden_size) for _ in range(count)]
        )
        for layer in self.layer:
            layer.attention.self.is_causal = True


class AlbefAnswerDecoder(AlbefPreTrainedModel, GenerationMixin):
    """A causal decoder that attends to the states of a question. It has as many layers as the fusion encoder.

    Questions are given as keys and values (from `project_question`), computed once for all answers and tokens.
    """

    config: AlbefTextConfig  # type: ignore[assignment]
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    input_modalities = ("text",)  # type: ignore[assignment]
    _supports_flash_attn = False  # `_masks` only makes masks for the other implementations

    def __init__(self, config: AlbefTextConfig) -> None:
        super().__init__(config)
        self.embeddings = AlbefTextEmbeddings(config)
        self.encoder = AlbefAnswerLayers(config)
        self.cls = AlbefMaskedLanguageModelingHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    @torch.no_grad()
    def start(self, text_model: AlbefTextModel) -> None:
        """Copy embeddings and fusion layers into the weights that no checkpoint has filled (section 5).

        Where image tokens and text states differ in width, the key and value projections of cross-attention stay
        random. For use in `_init_weights`.
        """
        pairs = zip(self.encoder.layer, text_model.fusion_layers, strict=True)
        for module, source in [(self.embeddings, text_model.embeddings), *pairs]:
            for copied, original in zip(module.parameters(), source.parameters(), strict=True):
                if copied.shape == original.shape:
                    init.copy_(copied, original)

    def project_question(self, question_states: torch.Tensor) -> list[KeysValues]:
        """Question states (batch, tokens, hidden_size) -> their keys and values for each layer."""
        return [layer.project_memory(question_states) for layer in self.encoder.layer]

    def _masks(
        self,
        states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        question_mask: torch.Tensor | None,
        past: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Masks of the answer tokens that each one sees (1 or A, 1, L, past + L) and of questions (B, 1, 1, T)."""
        length = states.shape[1]
        seen = torch.ones(length, past + length, dtype=torch.bool, device=states.device).tril(past)[None, None]
        if attention_mask is not None:
            seen = seen & attention_mask.to(torch.bool)[:, None, None, :]
        question = None if question_mask is None else question_mask.to(torch.bool)[:, None, None, :]
        if self.config._attn_implementation != "eager":
            return seen, question
        return additive_mask(seen, states.dtype), None if question is None else additive_mask(question, states.dtype)

    def decode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        question_keys_values: Sequence[KeysValues],
        question_mask: torch.Tensor | None,
        cache: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Answers (A, L), padded on the right, -> states (A, L, hidden_size).

        question_keys_values: of A questions, or of fewer: then each is shared by equally many consecutive answers.
        cache: a transformers `Cache` of the tokens before, which these are added to; `attention_mask` covers both.
        """
        past = 0 if cache is None else cache.get_seq_length()
        states = self.embeddings(input_ids, past)
        mask, question_mask = self._masks(states, attention_mask, question_mask, past)
        for index, (layer, keys_values) in enumerate(zip(self.encoder.layer, question_keys_values, strict=True)):
            extend = None if cache is None else functools.partial(cache.update, layer_idx=index)
            states = layer(states, mask, *keys_values, None, question_mask, extend, **kwargs)
        return states

    def answer_options(self, given: Any, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """How to generate answers: the `GenerationConfig` given, over which arguments of `generate` go.

        Returns: a new one, with what both leave open; the arguments that belong to no `GenerationConfig`.

        Raises:
            ValueError: no token begins an answer.
        """
        options, config = copy.deepcopy(given), self.config
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(options, name) is None:
                setattr(options, name, getattr(config, name))
        if arguments.get("max_length") is not None:
            options.max_new_tokens = None
        others = options.update(**arguments)
        if options.max_length is None and options.max_new_tokens is None:
            options.max_new_tokens = DEFAULT_ANSWER_TOKENS
        begin = options.bos_token_id
        if begin is None or not 0 <= begin < config.vocab_size:
            raise ValueError(
                f"text_config.bos_token_id is {begin}, which is none of the {config.vocab_size} tokens: set it "
                "to the tokenizer's cls_token_id, and eos_token_id to its sep_token_id"
            )
        return options, others

    def predict(self, states: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> logits (..., vocabulary) of the next token, float32 at least."""
        return full_precision(self.cls(states, self.embeddings.word_embeddings.weight))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        question_keys_values: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Logits (batch, 1, vocabulary) of the token after each prefix. For `generate`.

        question_keys_values: (batch, layers, 2, heads, tokens, head width), one tensor that `generate` can repeat.
        cache, or past_key_values by its former name: see `decode`.
        """
        if question_keys_values is None:
            raise ValueError("the decoder needs a question: call generate of AlbefForQuestionAnswering")
        memory = [(both[:, 0], both[:, 1]) for both in question_keys_values.unbind(1)]
        cache = past_key_values if cache is None else cache
        states = self.decode(input_ids, attention_mask, memory, question_mask, cache)
        return CausalLMOutputWithCrossAttentions(logits=self.predict(states[:, -1:]))


__all__ = ["AlbefAnswerDecoder"]
