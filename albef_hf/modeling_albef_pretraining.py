"""ALBEF's pre-training (Li et al. 2021, https://arxiv.org/abs/2107.07651, section 3).

`AlbefForPreTraining.forward` reads as the paper's figure 1: encode, contrast, draw hard negatives, match, predict
words.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_albef import AlbefConfig
from .gathering import mean_over_ranks
from .losses import IGNORED, full_precision, mean_cross_entropy
from .modeling_albef import AlbefOutput
from .modeling_albef_alignment import AlbefAlignmentModel, Encoded, Pairs, Teacher
from .modeling_albef_attention import refuse_outputs
from .modeling_albef_text import AlbefMaskedLanguageModelingHead
from .momentum import MomentumCopy


@dataclass
class AlbefForPreTrainingOutput(ModelOutput):
    """The output for B pairs with T text tokens and M masked positions.

    Args:
        loss: loss_itc + loss_itm + loss_mlm, unweighted (equation 5); None without `return_loss`.
        loss_itc: image-text contrast.
        loss_itm: image-text matching with hard negatives.
        loss_mlm: masked language modeling; None without masked inputs.
        logits_per_image: (images, texts), cosine similarity of the embeddings divided by the temperature.
        logits_per_text: its transpose.
        image_embeds, text_embeds: unit vectors (B, projection_dim).
        itm_logits: (3B, 2): the B pairs, each text with its hard negative image, each image with its hard negative
            text; class 1 is "match".
        itm_labels: (3B,), 1 for a match; -100 where there was no negative to draw.
        mlm_logits: (M, vocabulary).
        negative_image_index, negative_text_index: (B,) row of the image drawn for each text, and of the text drawn for
            each image; of all ranks' batches where negatives are gathered.
        image_keys, text_keys: (B or ranks * B, projection_dim), which `enqueue` puts into the queues.
        key_ids: (as many rows, 2) image and caption ids, -100 where unknown.
        temperature: scalar.
        text_model_output, vision_model_output: as in `AlbefOutput`, without losses.
    """

    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None
    loss_itm: torch.Tensor | None = None
    loss_mlm: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    itm_logits: torch.Tensor | None = None
    itm_labels: torch.Tensor | None = None
    mlm_logits: torch.Tensor | None = None
    negative_image_index: torch.Tensor | None = None
    negative_text_index: torch.Tensor | None = None
    image_keys: torch.Tensor | None = None
    text_keys: torch.Tensor | None = None
    key_ids: torch.Tensor | None = None
    temperature: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    to_tuple = AlbefOutput.to_tuple


class AlbefForPreTraining(AlbefAlignmentModel):
    """ALBEF with its three objectives, its momentum copies and its queues (paper, section 3).

    `forward` changes nothing. Call `enqueue(output)` after each backward pass and `update_momentum()` after each
    optimizer step. `save_pretrained` leaves out copies and queues unless `save_momentum=True`; a checkpoint without
    them loads with copies equal to its weights and with random queues.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(config)
        self.cls = AlbefMaskedLanguageModelingHead(config.text_config)  # type: ignore[arg-type]
        self.momentum_copy = MomentumCopy(self.online_modules())
        self._add_queues()
        self.post_init()

    def online_modules(self) -> dict[str, nn.Module]:
        """The modules with momentum copies; the matching head and the temperature have none (published code)."""
        return super().online_modules() | {"cls": self.cls}

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        """See `Trainable.chance_losses`. batch_size: pairs that are contrasted with each other."""
        words = torch.tensor(float(self.config.text_config.vocab_size))
        return super().chance_losses(batch_size) | {"loss_mlm": words.log().item()}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mlm_input_ids: torch.Tensor | None = None,
        mlm_labels: torch.Tensor | None = None,
        mlm_positions: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        caption_ids: torch.Tensor | None = None,
        negative_draws: torch.Tensor | None = None,
        alpha: float | None = None,
        return_loss: bool | None = None,
        **kwargs: Any,
    ) -> AlbefForPreTrainingOutput:
        """The pre-training losses of B image-text pairs, or contrastive scores alone.

        Args:
            input_ids, attention_mask: (B, T); pixel_values: (B, channels, height, width).
            mlm_input_ids, mlm_labels: (B, T), `input_ids` with some tokens masked; their original ids, -100 elsewhere.
            mlm_positions: (M,), where the flattened labels (B * T) are not -100. Searched, slowly, where left out.
            image_ids, caption_ids: (B,) integers, equal for the same, -100 if unknown; see `config.same_image`.
            negative_draws: (B, 2) uniform in [0, 1), for the hard negatives; from torch's generator where left out.
            alpha: weight of the soft targets; `config.alpha` where left out.
            return_loss: compute losses; where left out, if `mlm_labels` are given.

        Raises:
            ValueError: losses of a single pair, of different numbers of images and texts, or without any negative.
        """
        return_loss = mlm_labels is not None if return_loss is None else return_loss
        if not return_loss:
            scores = self.albef(input_ids, pixel_values, attention_mask, return_dict=True, **kwargs)
            return AlbefForPreTrainingOutput(**scores)
        if kwargs:
            refuse_outputs(self.config, kwargs)
        alpha = self.config.alpha if alpha is None else alpha
        masked = (mlm_input_ids, mlm_labels, mlm_positions)
        given = Pairs(pixel_values, input_ids, attention_mask, image_ids, caption_ids, negative_draws, *masked)
        pairs = self.check(given)
        online = self.encode(pairs)
        teacher = self.teach(pairs, alpha)
        keys = self.collect_keys(teacher, pairs)
        contrast = self.contrast(online, teacher, keys, alpha)
        negatives = self.draw_negatives(contrast, keys, pairs.negative_draws)
        loss_itm, itm_logits, itm_labels = self.match(online, negatives)
        loss_mlm, mlm_logits = self.predict_words(online, teacher, pairs, alpha)
        return AlbefForPreTrainingOutput(
            loss=contrast.loss + loss_itm if loss_mlm is None else contrast.loss + loss_itm + loss_mlm,
            loss_itc=contrast.loss,
            loss_itm=loss_itm,
            loss_mlm=loss_mlm,
            logits_per_image=contrast.logits_per_image,
            logits_per_text=contrast.logits_per_image.T,
            image_embeds=online.image_embeds,
            text_embeds=online.text_embeds,
            itm_logits=itm_logits,
            itm_labels=itm_labels,
            mlm_logits=mlm_logits,
            negative_image_index=negatives.images,
            negative_text_index=negatives.texts,
            image_keys=keys.image,
            text_keys=keys.text,
            key_ids=keys.ids,
            temperature=contrast.temperature,
        )

    def predict_words(
        self, online: Encoded, teacher: Teacher, pairs: Pairs, alpha: float | torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Masked language modeling with the image (equations 3 and 7). Returns: loss; logits (M, vocabulary)."""
        if pairs.mlm_labels is None or online.masked_states is None:
            return None, None
        text_model, labels, positions = self.albef.text_model, pairs.mlm_labels.flatten(), pairs.mlm_positions
        if positions is None:
            positions = (labels != IGNORED).nonzero().squeeze(1)
        labels = labels[positions]
        fused = text_model.fuse(online.masked_states, online.attention_mask, online.image_keys_values)
        embeddings: Any = text_model.embeddings.word_embeddings.weight
        logits = full_precision(self.cls(fused.flatten(0, 1)[positions], embeddings))
        teacher_logits = count = None
        if teacher.fused_states is not None:
            with torch.no_grad():
                copies, states = self.momentum_copy, teacher.fused_states.flatten(0, 1)[positions]
                embeddings = copies.text_model.embeddings.word_embeddings.weight
                teacher_logits = full_precision(copies.cls(states, embeddings))
        if self.config.gather_negatives:  # divide as one process with the global batch would
            count = mean_over_ranks((labels != IGNORED).sum().to(logits.dtype))
        return mean_cross_entropy(logits, labels, teacher_logits, alpha, count), logits


__all__ = ["AlbefForPreTraining", "AlbefForPreTrainingOutput"]
