"""Fine-tuning ALBEF for image-text retrieval (Li et al. 2021, https://arxiv.org/abs/2107.07651, section 5)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_albef import AlbefConfig
from .modeling_albef import AlbefOutput
from .modeling_albef_alignment import AlbefAlignmentModel, Pairs
from .modeling_albef_attention import refuse_outputs
from .momentum import MomentumCopy


@dataclass
class AlbefForImageTextRetrievalOutput(ModelOutput):
    """The output for B pairs.

    Args:
        loss: loss_itc + loss_itm; None without `return_loss`.
        loss_itc: image-text contrast; all texts of an image share the target.
        loss_itm: image-text matching with hard negatives of other images.
        logits_per_image: (images, texts), cosine similarity of the embeddings divided by the temperature.
        logits_per_text: its transpose.
        image_embeds, text_embeds: unit vectors (B, projection_dim).
        itm_logits, itm_labels, negative_image_index, negative_text_index, image_keys, text_keys, key_ids, temperature:
            as in `AlbefForPreTrainingOutput`.
        text_model_output, vision_model_output: as in `AlbefOutput`, without losses.
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
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    to_tuple = AlbefOutput.to_tuple


class AlbefForImageTextRetrieval(AlbefAlignmentModel):
    """ALBEF fine-tuned with contrast and matching on pairs, several of which may have the same image.

    All texts of an image, in the batch and in the queue, share the contrastive target, and none of them is its hard
    negative: `config.same_image` has no effect here, `config.same_caption` has. The published code does not bound the
    temperature in this task; with `config.published_defects` this model does not either.
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
        """The losses of B image-text pairs, or contrastive scores alone.

        Args:
            input_ids, attention_mask: (B, T).
            pixel_values: (B, channels, height, width), one for each text: an image with two texts is given twice.
            image_ids, caption_ids: (B,) integers, equal for the same image or caption, -100 where unknown.
            negative_draws: (B, 2) uniform in [0, 1), which determine the hard negative image of each text and text of
                each image. Drawn from torch's generator where left out.
            alpha: weight of the soft targets; `config.alpha` where left out.
            return_loss: compute losses; where left out, if `image_ids` are given.

        Raises:
            ValueError: neither images nor texts are given; or losses are asked of a single pair, of different numbers
                of images and texts, or of a batch in which all images are the same.
        """
        if return_loss is None:
            return_loss = image_ids is not None
        if not return_loss:
            scores = self.albef(input_ids, pixel_values, attention_mask, return_dict=True, **kwargs)
            return AlbefForImageTextRetrievalOutput(**scores)
        if kwargs:
            refuse_outputs(self.config, kwargs)
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
