"""Alignment and matching of images and texts, which pre-training and retrieval share (Li et al. 2021, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_albef import AlbefConfig
from .gathering import gather_rows, gather_rows_with_gradient, rank, world_size
from .losses import IGNORED, contrastive_loss, matching_loss, sample_hard_negatives
from .modeling_albef import AlbefModel, full_precision, unit_vectors, without_autocast
from .modeling_albef_momentum import AlbefMomentumModel, check_images_per_text, check_pairs
from .modeling_albef_text import KeysValues
from .momentum import FeatureQueue
from .vision_backbone import VisionBackboneOutput


@dataclass
class Teacher:
    """Momentum features (B, projection_dim) and, where words are distilled, fused states (B, T, hidden_size)."""

    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    fused: torch.Tensor | None


@dataclass
class _Keys:
    """In-batch keys (rows, projection_dim), of this rank or of all; own pairs start at row `first`."""

    image: torch.Tensor
    text: torch.Tensor
    ids: torch.Tensor
    own_ids: torch.Tensor
    first: int


@dataclass
class _Negatives:
    """Row of the negative image of each text, and of the negative text of each image; whether there was one."""

    images: torch.Tensor
    texts: torch.Tensor
    has_image: torch.Tensor
    has_text: torch.Tensor


def alignment_metrics(output: Any) -> dict[str, torch.Tensor]:
    """Scalars of a training output worth a curve, still on the device."""
    if output.loss is None:
        return {}
    with torch.no_grad():
        pairs = torch.arange(output.logits_per_image.shape[0], device=output.logits_per_image.device)
        return {
            "temperature": output.temperature,
            "itc_accuracy": (output.logits_per_image.argmax(1) == pairs).float().mean(),
            "itm_accuracy": (output.itm_logits.argmax(1) == output.itm_labels).float().mean(),
        }


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

    # -- what the outside calls ---------------------------------------------------------------------------------------

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
        """Move the momentum copies, and bring the temperature back inside its bounds. Once per optimizer step.

        The momentum is constant; step and total_steps are for methods with a schedule.
        """
        super().update_momentum(step, total_steps)
        self.albef.temperature.copy_(self.albef.clamped_temperature())

    @torch.no_grad()
    def enqueue(self, output: Any) -> None:
        """Put this batch's keys, of all ranks, into the queues. After the backward pass, once per micro-batch."""
        image_keys, text_keys, ids = output.image_keys, output.text_keys, output.key_ids
        assert image_keys is not None and text_keys is not None and ids is not None
        if not self.config.gather_negatives:  # else forward has gathered them already
            image_keys, text_keys = gather_rows(torch.cat([image_keys, text_keys], dim=1)).chunk(2, dim=1)
            ids = gather_rows(ids)
        self.image_queue.enqueue(image_keys, ids)
        self.text_queue.enqueue(text_keys, ids)

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

    # -- the step -----------------------------------------------------------------------------------------------------

    def _align_and_match(
        self,
        image: VisionBackboneOutput,
        text_states: torch.Tensor,
        attention_mask: torch.Tensor,
        teacher: Teacher,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        image_ids: torch.Tensor | None,
        caption_ids: torch.Tensor | None,
        negative_draws: torch.Tensor | None,
        alpha: float | torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], list[KeysValues]]:
        """The fields of an output that contrast and matching fill, and the images' keys and values."""
        # Align: contrast of the online features with momentum keys of this batch and of the queues.
        keys = self._collect_keys(teacher, image_ids, caption_ids)
        loss_itc, image_to_text, text_to_image = self._contrast(image_embeds, text_embeds, teacher, keys, alpha)

        # Match. An image's keys and values are projected once, and serve its pair, its negatives and its masked text.
        image_tokens: Any = image.tokens
        image_keys_values = self.albef.text_model.project_image_tokens(image_tokens)
        negatives = self._draw_negatives(image_to_text, text_to_image, keys, negative_draws)
        itm_logits, itm_labels = self._match(image_tokens, image_keys_values, text_states, attention_mask, negatives)

        with without_autocast(image_embeds):
            temperature = self.albef.clamped_temperature()
            logits_per_image = image_embeds @ text_embeds.T / temperature
        fields = {
            "loss_itc": loss_itc,
            "loss_itm": matching_loss(itm_logits, itm_labels),
            "logits_per_image": logits_per_image,
            "logits_per_text": logits_per_image.T,
            "image_embeds": image_embeds,
            "text_embeds": text_embeds,
            "itm_logits": itm_logits,
            "itm_labels": itm_labels,
            "negative_image_index": negatives.images,
            "negative_text_index": negatives.texts,
            "image_keys": keys.image,
            "text_keys": keys.text,
            "key_ids": keys.ids,
            "temperature": temperature.detach(),
        }
        return fields, image_keys_values

    def _check_pairs(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> None:
        check_pairs(pixel_values, input_ids)
        batch_size = input_ids.shape[0]
        candidates = batch_size * (world_size() if self.config.gather_negatives else 1)
        if candidates < 2:
            raise ValueError("image-text matching draws negatives from the batch, so a batch needs at least 2 pairs")

    @torch.no_grad()
    def _teach(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        mlm_input_ids: torch.Tensor | None,
    ) -> Teacher:
        """The momentum copies' view of the batch. They keep dropout in training, as published."""
        copies = self.momentum_copy
        image = copies.vision_model(pixel_values)
        class_state = copies.text_model.encode_text(input_ids, attention_mask, queries=1)
        fused = None
        if mlm_input_ids is not None:
            states = copies.text_model.encode_text(mlm_input_ids, attention_mask)
            fused = copies.text_model.fuse(
                states, attention_mask, copies.text_model.project_image_tokens(image.tokens)
            )
        return Teacher(
            image_embeds=unit_vectors(copies.vision_projection(image.pooled)),
            text_embeds=unit_vectors(copies.text_projection(class_state[:, 0])),
            fused=fused,
        )

    @torch.no_grad()
    def _collect_keys(
        self, teacher: Teacher, image_ids: torch.Tensor | None, caption_ids: torch.Tensor | None
    ) -> _Keys:
        image, text = teacher.image_embeds, teacher.text_embeds
        missing = torch.full((image.shape[0],), IGNORED, dtype=torch.int64, device=image.device)
        own_ids = torch.stack(
            [missing if image_ids is None else image_ids, missing if caption_ids is None else caption_ids], dim=1
        )
        ids, first = own_ids, 0
        if self.config.gather_negatives:
            first = rank() * image.shape[0]
            image, text = gather_rows(torch.cat([image, text], dim=1)).chunk(2, dim=1)
            ids = gather_rows(own_ids)
        return _Keys(image=image, text=text, ids=ids, own_ids=own_ids, first=first)

    def _same(self, keys: _Keys, ids: torch.Tensor, policy: str) -> torch.Tensor | None:
        """(B, len(ids)) True where a key has the same image, or the same caption, and `policy` applies to it."""
        columns = [index for index, name in enumerate(self.same_id_policies()) if name == policy]
        if not columns:
            return None
        own = keys.own_ids[:, None, columns]
        return ((own == ids[None, :, columns]) & (own != IGNORED)).any(-1)

    def _contrast(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        teacher: Teacher,
        keys: _Keys,
        alpha: float | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, and the similarities over temperature to the in-batch keys in both directions (for hard negatives)."""
        batch_keys = keys.image.shape[0]
        own = keys.first + torch.arange(image_embeds.shape[0], device=image_embeds.device)  # column of each own pair
        ids = torch.cat([keys.ids, self.image_queue.ids])
        is_own = own[:, None] == torch.arange(ids.shape[0], device=own.device)
        positives: torch.Tensor = own
        same = self._same(keys, ids, "positive")
        if same is not None:
            positives = same | is_own
        left_out = self._same(keys, ids, "mask")
        if left_out is not None:
            left_out = left_out & ~(is_own if positives is own else positives)
        with without_autocast(image_embeds):
            temperature = self.albef.clamped_temperature()
            all_text = torch.cat([keys.text, self.text_queue.features.to(keys.text.dtype)])
            all_image = torch.cat([keys.image, self.image_queue.features.to(keys.image.dtype)])
            image_to_text = image_embeds @ all_text.T / temperature  # (B, batch keys + queue)
            text_to_image = text_embeds @ all_image.T / temperature
            soft_image_to_text = soft_text_to_image = None
            if self._distils(alpha):
                with torch.no_grad():
                    soft_image_to_text = teacher.image_embeds @ all_text.T / temperature
                    soft_text_to_image = teacher.text_embeds @ all_image.T / temperature
            loss = (
                contrastive_loss(image_to_text, positives, soft_image_to_text, alpha, left_out)
                + contrastive_loss(text_to_image, positives, soft_text_to_image, alpha, left_out)
            ) / 2
        return loss, image_to_text[:, :batch_keys], text_to_image[:, :batch_keys]

    @torch.no_grad()
    def _draw_negatives(
        self,
        image_to_text: torch.Tensor,
        text_to_image: torch.Tensor,
        keys: _Keys,
        draws: torch.Tensor | None,
    ) -> _Negatives:
        """One hard negative image for each text and one hard negative text for each image (section 3.2)."""
        batch_size, candidates = image_to_text.shape
        own = keys.first + torch.arange(batch_size, device=image_to_text.device)
        excluded = own[:, None] == torch.arange(candidates, device=own.device)
        related = [self._same(keys, keys.ids, policy) for policy in ("mask", "positive")]
        for same in related:
            if same is not None:
                excluded = excluded | same
        # On the host the check costs nothing; on a device it would be a host read in every step, so there a batch
        # without negatives simply teaches no matching.
        if any(same is not None for same in related) and excluded.device.type == "cpu" and bool(excluded.all()):
            same_image, same_caption = self.same_id_policies()
            raise ValueError(
                "no pair of this batch has a negative: all of them share one image id or caption id, which "
                f"same_image={same_image!r} and same_caption={same_caption!r} exclude"
            )
        if draws is None:
            draws = torch.rand(batch_size, 2, device=image_to_text.device)
        images, has_image = sample_hard_negatives(text_to_image, excluded, draws[:, 0])
        texts, has_text = sample_hard_negatives(image_to_text, excluded, draws[:, 1])
        return _Negatives(images=images, texts=texts, has_image=has_image, has_text=has_text)

    def _match(
        self,
        image_tokens: torch.Tensor,
        image_keys_values: list[KeysValues],
        text_states: torch.Tensor,
        attention_mask: torch.Tensor,
        negatives: _Negatives,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (3B, 2) and labels (3B,) of the pairs, (text, negative image) and (negative text, image)."""
        text_model = self.albef.text_model
        if self.config.gather_negatives and world_size() > 1:
            other_keys_values = text_model.project_image_tokens(
                gather_rows_with_gradient(image_tokens)[negatives.images]
            )
            other_text = gather_rows_with_gradient(text_states)[negatives.texts]
            other_mask = gather_rows(attention_mask)[negatives.texts]
            triples = [
                (torch.cat([key, other_key, key]), torch.cat([value, other_value, value]))
                for (key, value), (other_key, other_value) in zip(image_keys_values, other_keys_values, strict=True)
            ]
        else:
            other_text, other_mask = text_states[negatives.texts], attention_mask[negatives.texts]
            pairs = torch.arange(text_states.shape[0], device=text_states.device)
            which = torch.cat([pairs, negatives.images, pairs])
            triples = [(key.index_select(0, which), value.index_select(0, which)) for key, value in image_keys_values]
        logits = self.matching_logits(
            torch.cat([text_states, text_states, other_text]),
            torch.cat([attention_mask, attention_mask, other_mask]),
            triples,
        )
        labels = torch.cat(
            [
                torch.ones_like(negatives.images),
                torch.where(negatives.has_image, 0, IGNORED),
                torch.where(negatives.has_text, 0, IGNORED),
            ]
        )
        return full_precision(logits), labels


__all__ = ["AlbefAlignmentModel", "Teacher", "alignment_metrics"]
