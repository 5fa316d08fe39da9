"""Alignment and matching of images and texts, which pre-training and retrieval share (Li et al. 2021, section 3.2).

`AlbefAlignmentModel` has the parts of a step by name: encode, teach, contrast, draw negatives, match.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_albef import AlbefConfig
from .gathering import gather_rows, gather_rows_with_gradient, rank, world_size
from .losses import (
    IGNORED,
    check_pairs,
    contrastive_loss,
    distills,
    full_precision,
    matching_loss,
    sample_hard_negatives,
    unit_vectors,
    without_autocast,
)
from .modeling_albef import AlbefModel
from .modeling_albef_attention import KeysValues
from .modeling_albef_momentum import AlbefMomentumModel, check_images_per_text
from .momentum import FeatureQueue


@dataclass
class Encoded:
    """B pairs as the online encoders see them. T text tokens, D the width of the contrastive space.

    Args:
        image_tokens: (B, image tokens, width).
        text_states: (B, T, hidden_size) of the text encoder. masked_states: the same of the text with masked words.
        attention_mask: (B, T).
        image_embeds, text_embeds: unit vectors (B, D).
        image_keys_values: of the fusion layers; an image is projected once, for all the texts it meets.
    """

    image_tokens: torch.Tensor
    text_states: torch.Tensor
    masked_states: torch.Tensor | None
    attention_mask: torch.Tensor
    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    image_keys_values: list[KeysValues]


@dataclass
class Teacher:
    """The momentum copies' view of the same B pairs.

    image_embeds, text_embeds: unit vectors (B, D); fused_states: (B, T, hidden_size) of image and masked text, where
    words are distilled.
    """

    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    fused_states: torch.Tensor | None


@dataclass
class Keys:
    """In-batch keys (rows, D) of this rank, or of all ranks; the keys of this rank's own pairs begin at row `first`.

    ids: (rows, 2) image and caption ids; own_ids: (B, 2) of this rank's pairs; -100 where unknown.
    """

    image: torch.Tensor
    text: torch.Tensor
    ids: torch.Tensor
    own_ids: torch.Tensor
    first: int


@dataclass
class Contrast:
    """Image-text contrast of B pairs.

    loss: scalar; image_to_text, text_to_image: (B, rows), similarity over temperature with the in-batch keys;
    logits_per_image: (B, B), the same of the online encoders alone; temperature: scalar.
    """

    loss: torch.Tensor
    image_to_text: torch.Tensor
    text_to_image: torch.Tensor
    logits_per_image: torch.Tensor
    temperature: torch.Tensor


@dataclass
class Negatives:
    """Row of the negative image of each text, and of the negative text of each image; whether there was one. (B,)"""

    images: torch.Tensor
    texts: torch.Tensor
    has_image: torch.Tensor
    has_text: torch.Tensor


class AlbefAlignmentModel(AlbefMomentumModel):
    """Base of the models that contrast images with texts and tell matching pairs from hard negatives.

    After each backward pass call `enqueue(output)`; after each optimizer step call `update_momentum()`.
    """

    image_queue: FeatureQueue
    text_queue: FeatureQueue

    def __init__(self, config: AlbefConfig) -> None:
        check_images_per_text(config)
        super().__init__(config)
        self.albef = AlbefModel(config)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)

    def _add_queues(self) -> None:
        size, dim = self.config.queue_size, self.config.projection_dim
        self.image_queue = FeatureQueue(size, dim, id_columns=2)
        self.text_queue = FeatureQueue(size, dim, id_columns=2)

    def online_modules(self) -> dict[str, nn.Module]:
        """What the momentum copies follow; the matching head and the temperature have no copy (published code)."""
        return {
            "vision_model": self.albef.vision_model,
            "text_model": self.albef.text_model,
            "vision_projection": self.albef.vision_projection,
            "text_projection": self.albef.text_projection,
        }

    def same_id_policies(self) -> tuple[str, str]:
        """What another pair with the same image, and with the same caption, is: `negative`, `mask` or `positive`."""
        return self.config.same_image, self.config.same_caption

    @torch.no_grad()
    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None:
        """Move the momentum copies, and bring the temperature back inside its bounds. Once per optimizer step."""
        self.momentum_copy.update(self.online_modules(), self.config.momentum)
        self.albef.temperature.clamp_(*self.albef.temperature_bounds)

    @torch.no_grad()
    def enqueue(self, output: Any) -> None:
        """Put this batch's keys, of all ranks, into the queues. After the backward pass, once per micro-batch."""
        image_keys, text_keys, ids = output.image_keys, output.text_keys, output.key_ids
        if torch.distributed.is_initialized() and not self.config.gather_negatives:  # else forward has gathered them
            image_keys, text_keys = gather_rows(torch.cat([image_keys, text_keys], dim=1)).chunk(2, dim=1)
            ids = gather_rows(ids)
        self.image_queue.enqueue(image_keys, ids)
        self.text_queue.enqueue(text_keys, ids)

    @torch.no_grad()
    def metrics(self, output: Any) -> dict[str, torch.Tensor]:
        """See `Trainable.metrics`."""
        pairs = torch.arange(output.logits_per_image.shape[0], device=output.logits_per_image.device)
        return {
            "temperature": output.temperature,
            "itc_accuracy": (output.logits_per_image.argmax(1) == pairs).float().mean(),
            "itm_accuracy": (output.itm_logits.argmax(1) == output.itm_labels).float().mean(),
        }

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        """The value of each loss for a model that knows nothing. batch_size: pairs that share one contrast."""
        keys = torch.tensor(float(batch_size + self.config.queue_size))
        third = torch.tensor([1 / 3, 2 / 3])
        return {"loss_itc": keys.log().item(), "loss_itm": -(third * third.log()).sum().item()}

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `AlbefModel.get_image_features`."""
        return self.albef.get_image_features(pixel_values, **kwargs)

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See `AlbefModel.get_text_features`."""
        return self.albef.get_text_features(input_ids, attention_mask, **kwargs)

    def project_image_tokens(self, image_tokens: torch.Tensor) -> list[KeysValues]:
        """See `AlbefTextModel.project_image_tokens`."""
        return self.albef.text_model.project_image_tokens(image_tokens)

    def matching_logits(
        self, text_states: torch.Tensor, attention_mask: torch.Tensor | None, image_keys_values: Sequence[KeysValues]
    ) -> torch.Tensor:
        """Do these texts and images match? (batch, 2), class 1 is "match".

        Args:
            text_states: (batch, tokens, hidden_size) of `get_text_features(...).last_hidden_state`.
            image_keys_values: of `project_image_tokens`, one image a text.
        """
        fused = self.albef.text_model.fuse(text_states, attention_mask, image_keys_values, queries=1)
        return self.itm_head(fused[:, 0])

    def _check_pairs(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> None:
        check_pairs(pixel_values, input_ids)
        if input_ids.shape[0] == 1 and not (self.config.gather_negatives and world_size() > 1):
            raise ValueError("image-text matching draws negatives from the batch, so a batch needs at least 2 pairs")

    def encode(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        masked_input_ids: torch.Tensor | None = None,
    ) -> Encoded:
        """Images (B, channels, height, width) and texts (B, T), each alone; a text and its masked form in one pass."""
        albef = self.albef
        image = albef.vision_model(pixel_values)
        if masked_input_ids is None:
            text_states, masked_states = albef.text_model.encode_text(input_ids, attention_mask), None
        else:
            texts = torch.cat([input_ids, masked_input_ids])
            text_states, masked_states = albef.text_model.encode_text(texts, attention_mask.repeat(2, 1)).chunk(2)
        return Encoded(
            image_tokens=image.tokens,
            text_states=text_states,
            masked_states=masked_states,
            attention_mask=attention_mask,
            image_embeds=unit_vectors(albef.vision_projection(image.pooled)),
            text_embeds=unit_vectors(albef.text_projection(text_states[:, 0])),
            image_keys_values=albef.text_model.project_image_tokens(image.tokens),
        )

    @torch.no_grad()
    def teach(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        masked_input_ids: torch.Tensor | None = None,
    ) -> Teacher:
        """The momentum copies' view of the batch (section 3.5). They keep dropout in training, as published."""
        copies: Any = self.momentum_copy
        image = copies.vision_model(pixel_values)
        class_state = copies.text_model.encode_text(input_ids, attention_mask, queries=1)
        fused = None
        if masked_input_ids is not None:
            states = copies.text_model.encode_text(masked_input_ids, attention_mask)
            keys_values = copies.text_model.project_image_tokens(image.tokens)
            fused = copies.text_model.fuse(states, attention_mask, keys_values)
        return Teacher(
            image_embeds=unit_vectors(copies.vision_projection(image.pooled)),
            text_embeds=unit_vectors(copies.text_projection(class_state[:, 0])),
            fused_states=fused,
        )

    @torch.no_grad()
    def collect_keys(self, teacher: Teacher, image_ids: torch.Tensor | None, caption_ids: torch.Tensor | None) -> Keys:
        """The in-batch keys, of all ranks where `gather_negatives` is set, and what they are known by."""
        image, text = teacher.image_embeds, teacher.text_embeds
        unknown = torch.full((image.shape[0],), IGNORED, dtype=torch.int64, device=image.device)
        own_ids = torch.stack([unknown if ids is None else ids for ids in (image_ids, caption_ids)], dim=1)
        if not self.config.gather_negatives:
            return Keys(image, text, own_ids, own_ids, first=0)
        images, texts = gather_rows(torch.cat([image, text], dim=1)).chunk(2, dim=1)
        return Keys(images, texts, gather_rows(own_ids), own_ids, first=rank() * image.shape[0])

    def _same(self, keys: Keys, ids: torch.Tensor, policy: str) -> torch.Tensor | None:
        """(B, len(ids)) True where a key has the same image, or the same caption, and `policy` applies to it."""
        columns = [index for index, name in enumerate(self.same_id_policies()) if name == policy]
        if not columns:
            return None
        own = keys.own_ids[:, None, columns]
        return ((own == ids[None, :, columns]) & (own != IGNORED)).any(-1)

    def contrast(self, online: Encoded, teacher: Teacher, keys: Keys, alpha: float | torch.Tensor) -> Contrast:
        """Align: online features against momentum keys of this batch and of the queues (equations 1, 2 and 6)."""
        own = keys.first + torch.arange(online.text_embeds.shape[0], device=keys.ids.device)  # column of each own pair
        ids = torch.cat([keys.ids, self.image_queue.ids])
        is_own = own[:, None] == torch.arange(ids.shape[0], device=own.device)
        same, left_out = self._same(keys, ids, "positive"), self._same(keys, ids, "mask")
        positives = own if same is None else same | is_own
        if left_out is not None:
            left_out = left_out & ~(is_own if same is None else positives)
        with without_autocast(online.image_embeds):
            temperature = full_precision(self.albef.temperature).clamp(*self.albef.temperature_bounds)
            all_text = torch.cat([keys.text, self.text_queue.features.to(keys.text.dtype)])
            all_image = torch.cat([keys.image, self.image_queue.features.to(keys.image.dtype)])
            image_to_text = online.image_embeds @ all_text.T / temperature  # (B, in-batch keys + queue)
            text_to_image = online.text_embeds @ all_image.T / temperature
            soft_image_to_text = soft_text_to_image = None
            if distills(alpha):
                with torch.no_grad():
                    soft_image_to_text = teacher.image_embeds @ all_text.T / temperature
                    soft_text_to_image = teacher.text_embeds @ all_image.T / temperature
            loss = (
                contrastive_loss(image_to_text, positives, soft_image_to_text, alpha, left_out)
                + contrastive_loss(text_to_image, positives, soft_text_to_image, alpha, left_out)
            ) / 2
            logits_per_image = online.image_embeds @ online.text_embeds.T / temperature
        in_batch = keys.image.shape[0]
        return Contrast(
            loss, image_to_text[:, :in_batch], text_to_image[:, :in_batch], logits_per_image, temperature.detach()
        )

    @torch.no_grad()
    def draw_negatives(self, contrast: Contrast, keys: Keys, draws: torch.Tensor | None) -> Negatives:
        """One hard negative image for each text and one hard negative text for each image (section 3.2)."""
        pairs, candidates = contrast.image_to_text.shape
        own = keys.first + torch.arange(pairs, device=keys.ids.device)
        excluded = own[:, None] == torch.arange(candidates, device=own.device)
        related = [same for policy in ("mask", "positive") if (same := self._same(keys, keys.ids, policy)) is not None]
        for same in related:
            excluded = excluded | same
        # On the host the check costs nothing; on a device it would be a host read in every step, so there a batch
        # without negatives simply teaches no matching.
        if related and excluded.device.type == "cpu" and bool(excluded.all()):
            same_image, same_caption = self.same_id_policies()
            raise ValueError(
                "no pair of this batch has a negative: all of them share one image id or caption id, which "
                f"same_image={same_image!r} and same_caption={same_caption!r} exclude"
            )
        if draws is None:
            draws = torch.rand(pairs, 2, device=own.device)
        images, has_image = sample_hard_negatives(contrast.text_to_image, excluded, draws[:, 0])
        texts, has_text = sample_hard_negatives(contrast.image_to_text, excluded, draws[:, 1])
        return Negatives(images=images, texts=texts, has_image=has_image, has_text=has_text)

    def match(self, online: Encoded, negatives: Negatives) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Fuse and tell apart the pairs, (text, negative image) and (negative text, image) (equation 4).

        Returns: the loss; logits (3B, 2) in this order; labels (3B,), -100 where there was no negative.
        """
        text, mask, keys_values = online.text_states, online.attention_mask, online.image_keys_values
        if self.config.gather_negatives and world_size() > 1:
            other_tokens = gather_rows_with_gradient(online.image_tokens)[negatives.images]
            other_keys_values = self.albef.text_model.project_image_tokens(other_tokens)
            other_text = gather_rows_with_gradient(text)[negatives.texts]
            other_mask = gather_rows(mask)[negatives.texts]
            triples = [
                (torch.cat([key, other_key, key]), torch.cat([value, other_value, value]))
                for (key, value), (other_key, other_value) in zip(keys_values, other_keys_values, strict=True)
            ]
        else:
            other_text, other_mask = text[negatives.texts], mask[negatives.texts]
            pairs = torch.arange(text.shape[0], device=text.device)
            which = torch.cat([pairs, negatives.images, pairs])
            triples = [(key.index_select(0, which), value.index_select(0, which)) for key, value in keys_values]
        texts, masks = torch.cat([text, text, other_text]), torch.cat([mask, mask, other_mask])
        logits = full_precision(self.matching_logits(texts, masks, triples))
        no_image, no_text = (torch.where(has, 0, IGNORED) for has in (negatives.has_image, negatives.has_text))
        labels = torch.cat([torch.ones_like(no_image), no_image, no_text])
        return matching_loss(logits, labels), logits, labels


__all__ = ["AlbefAlignmentModel", "Encoded", "Keys", "Teacher"]
