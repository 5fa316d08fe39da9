"""Fine-tuning ALBEF for image-text retrieval (Li et al. 2021, https://arxiv.org/abs/2107.07651, section 5)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_albef import AlbefConfig
from .modeling_albef_alignment import AlbefAlignmentModel, Pairs
from .momentum import MomentumCopy


@dataclass
class AlbefForImageTextRetrievalOutput(ModelOutput):
    """What one step of fine-tuning computes. B pairs.

    Args:
        loss: loss_itc + loss_itm; None where no loss was asked for.
        loss_itc: image-text contrast, its target shared by all texts of an image.
        loss_itm: image-text matching with hard negatives of other images.
        logits_per_image: (images, texts), cosine similarity over temperature, of the online encoders.
        logits_per_text: its transpose.
        image_embeds, text_embeds: unit vectors (B, projection_dim).
        itm_logits, itm_labels, negative_image_index, negative_text_index, image_keys, text_keys, key_ids, temperature:
            as in `AlbefForPreTrainingOutput`.
    """

    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None
    loss_itm: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    itm_logits: torch.Tensor | None = None
    itm_labels: torch.Tensor | None = None
    negative_image_index: torch.Tensor | None = None
    negative_text_index: torch.Tensor | None = None
    image_keys: torch.Tensor | None = None
    text_keys: torch.Tensor | None = None
    key_ids: torch.Tensor | None = None
    temperature: torch.Tensor | None = None


class AlbefForImageTextRetrieval(AlbefAlignmentModel):
    """ALBEF fine-tuned with contrast and matching on pairs of which several may show the same image.

    All texts of an image share the target of the contrast, within the batch and the queue, and none of them is its
    hard negative, whatever `config.same_image` says; `config.same_caption` is followed. The published code does not
    keep the temperature inside its bounds here; nor does this model with `config.published_defects`.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(config)
        if config.published_defects:
            self.albef.temperature_bounds = (-math.inf, math.inf)
        self.momentum_copy = MomentumCopy(self.online_modules())
        self._add_queues()
        self.post_init()

    def same_id_policies(self) -> tuple[str, str]:
        """See `AlbefAlignmentModel.same_id_policies`."""
        return "positive", self.config.same_caption

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        caption_ids: torch.Tensor | None = None,
        negative_draws: torch.Tensor | None = None,
        alpha: float | None = None,
        return_loss: bool | None = None,
        **kwargs: Any,
    ) -> AlbefForImageTextRetrievalOutput:
        """Contrast and matching of B image-text pairs, or contrastive scores where no loss is asked for.

        Args:
            input_ids, attention_mask: (B, T).
            pixel_values: (B, channels, height, width), one image a text: an image with two texts is given twice.
            image_ids, caption_ids: (B,) integers; equal ones mark the same image or caption, -100 marks none.
            negative_draws: (B, 2) uniform in [0, 1): they choose the hard negative image of each text and text of each
                image. Drawn from torch's generator where left out.
            alpha: weight of the soft targets; `config.alpha` where left out.
            return_loss: compute losses; True where `image_ids` are given.

        Raises:
            ValueError: an image without a text, losses of a single pair, of different numbers of images and texts, or
                of a batch in which all images are the same.
        """
        if return_loss is None:
            return_loss = image_ids is not None
        if not return_loss:
            return AlbefForImageTextRetrievalOutput(**self.albef(input_ids, pixel_values, attention_mask))
        alpha = self.config.alpha if alpha is None else alpha
        pairs = self.check(Pairs(pixel_values, input_ids, attention_mask, image_ids, caption_ids, negative_draws))
        online = self.encode(pairs)
        teacher = self.teach(pairs, alpha)
        keys = self.collect_keys(teacher, pairs)
        contrast = self.contrast(online, teacher, keys, alpha)
        negatives = self.draw_negatives(contrast, keys, pairs.negative_draws)
        loss_itm, itm_logits, itm_labels = self.match(online, negatives)
        return AlbefForImageTextRetrievalOutput(
            loss=contrast.loss + loss_itm,
            loss_itc=contrast.loss,
            loss_itm=loss_itm,
            logits_per_image=contrast.logits_per_image,
            logits_per_text=contrast.logits_per_image.T,
            image_embeds=online.image_embeds,
            text_embeds=online.text_embeds,
            itm_logits=itm_logits,
            itm_labels=itm_labels,
            negative_image_index=negatives.images,
            negative_text_index=negatives.texts,
            image_keys=keys.image,
            text_keys=keys.text,
            key_ids=keys.ids,
            temperature=contrast.temperature,
        )


__all__ = ["AlbefForImageTextRetrieval", "AlbefForImageTextRetrievalOutput"]
