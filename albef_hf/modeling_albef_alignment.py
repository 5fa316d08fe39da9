"""Alignment and matching of images and texts, which pre-training and retrieval share (Li et al. 2021, section 3.2).

`AlbefAlignmentModel` has a method for each part of a step: encode, teach, contrast, draw negatives, match. The
dataclasses are what these methods pass on. B: pairs; T: text tokens; D: width of the contrastive space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_albef import AlbefConfig
from .gathering import RowExchange, gather_rows, rank, world_size
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
class Pairs:
    """The arguments of `forward`, see there: B images with their texts."""

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: Any  # (B, T); `check` fills it in
    image_ids: torch.Tensor | None
    caption_ids: torch.Tensor | None
    negative_draws: torch.Tensor | None
    mlm_input_ids: torch.Tensor | None = None
    mlm_labels: torch.Tensor | None = None
    mlm_positions: torch.Tensor | None = None


@dataclass
class Encoded:
    """What the online encoders make of the pairs.

    image_tokens: (B, image tokens, width); image_keys_values: their keys and values for each fusion layer, projected
    once for all texts that an image is fused with; text_states, masked_states: (B, T, hidden_size) of the texts and of
    the masked texts; image_embeds, text_embeds: unit vectors (B, D).
    """

    image_tokens: torch.Tensor
    image_keys_values: list[KeysValues]
    image_embeds: torch.Tensor
    text_states: torch.Tensor
    text_embeds: torch.Tensor
    masked_states: torch.Tensor | None
    attention_mask: torch.Tensor


@dataclass
class Teacher:
    """What the momentum copies make of the pairs: unit vectors (B, D) and, where word predictions are distilled, the
    fused states (B, T, hidden_size) of image and masked text."""

    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    fused_states: torch.Tensor | None


@dataclass
class Keys:
    """In-batch keys (rows, D) of this rank, or of all ranks; ids: (rows, 2) of image and caption, -100 where unknown.

    pair_rows: (B,) the row of each pair of this rank; pair_ids: (B, 2) its ids.
    """

    image: torch.Tensor
    text: torch.Tensor
    ids: torch.Tensor
    pair_rows: torch.Tensor
    pair_ids: torch.Tensor


@dataclass
class Contrast:
    """loss, temperature: scalars; image_to_text, text_to_image: (B, rows), similarity with the in-batch keys, divided
    by the temperature; logits_per_image: (B, B), the same between the online embeddings."""

    loss: torch.Tensor
    image_to_text: torch.Tensor
    text_to_image: torch.Tensor
    logits_per_image: torch.Tensor
    temperature: torch.Tensor


@dataclass
class Negatives:
    """(B,) each: row of the negative image of each text and negative text of each image; whether there is one."""

    images: torch.Tensor
    texts: torch.Tensor
    has_image: torch.Tensor
    has_text: torch.Tensor


class AlbefAlignmentModel(AlbefMomentumModel):
    """Base of the models that are trained with image-text contrast and image-text matching.

    Call `enqueue(output)` after each backward pass and `update_momentum()` after each optimizer step.
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
        """The modules with momentum copies; the matching head and the temperature have none (published code)."""
        names = ("vision_model", "text_model", "vision_projection", "text_projection")
        return {name: getattr(self.albef, name) for name in names}

    def same_id_policies(self) -> tuple[str, str]:
        """How another pair with the same image, and one with the same caption, is treated; see `AlbefConfig`."""
        return self.config.same_image, self.config.same_caption

    @torch.no_grad()
    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None:
        """Move the momentum copies and clamp the temperature to its bounds. Call after each optimizer step."""
        self.momentum_copy.update(self.online_modules(), self.config.momentum)
        self.albef.temperature.clamp_(*self.albef.temperature_bounds)

    @torch.no_grad()
    def enqueue(self, output: Any) -> None:
        """Put this batch's keys, of all ranks, into the queues. Call after each backward pass."""
        image_keys, text_keys, ids = output.image_keys, output.text_keys, output.key_ids
        if torch.distributed.is_initialized() and not self.config.gather_negatives:  # otherwise, forward has
            image_keys, text_keys = gather_rows(torch.cat([image_keys, text_keys], dim=1)).chunk(2, dim=1)
            ids = gather_rows(ids)
        self.image_queue.enqueue(image_keys, ids)
        self.text_queue.enqueue(text_keys, ids)

    @torch.no_grad()
    def metrics(self, output: Any) -> dict[str, torch.Tensor]:
        """See `Trainable.metrics`."""
        rows = torch.arange(len(output.logits_per_image), device=output.logits_per_image.device)
        return {
            "temperature": output.temperature,
            "itc_accuracy": (output.logits_per_image.argmax(1) == rows).float().mean(),
            "itm_accuracy": (output.itm_logits.argmax(1) == output.itm_labels).float().mean(),
        }

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        """See `Trainable.chance_losses`. batch_size: pairs that are contrasted with each other."""
        keys = torch.tensor(float(batch_size + self.config.queue_size))
        shares = torch.tensor([1 / 3, 2 / 3])  # of matching and of negative pairs
        return {"loss_itc": keys.log().item(), "loss_itm": -(shares * shares.log()).sum().item()}

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
        """Logits (batch, 2) for whether each text matches its image; class 1 is "match".

        Args:
            text_states: `last_hidden_state` of `get_text_features`, (batch, tokens, hidden_size).
            image_keys_values: from `project_image_tokens`, one image for each text.
        """
        fused = self.albef.text_model.fuse(text_states, attention_mask, image_keys_values, queries=1)
        return self.itm_head(fused[:, 0])

    def check(self, pairs: Pairs) -> Pairs:
        """Check the pairs, and fill in a missing attention mask. Raises: ValueError: see `forward`."""
        check_pairs(pairs.pixel_values, pairs.input_ids)
        if (pairs.mlm_input_ids is None) != (pairs.mlm_labels is None):
            raise ValueError("mlm_input_ids and mlm_labels belong together: give both, or neither")
        if len(pairs.input_ids) == 1 and not (self.config.gather_negatives and world_size() > 1):
            raise ValueError("image-text matching draws negatives from the batch, so a batch needs at least 2 pairs")
        if pairs.attention_mask is None:
            pairs.attention_mask = torch.ones_like(pairs.input_ids)
        return pairs

    def encode(self, pairs: Pairs) -> Encoded:
        """Encode images and texts separately; texts and masked texts go through the encoder in one pass."""
        albef, mask, masked_states = self.albef, pairs.attention_mask, None
        image = albef.vision_model(pairs.pixel_values)
        if pairs.mlm_input_ids is None:
            text_states = albef.text_model.encode_text(pairs.input_ids, mask)
        else:
            texts = torch.cat([pairs.input_ids, pairs.mlm_input_ids])
            text_states, masked_states = albef.text_model.encode_text(texts, mask.repeat(2, 1)).chunk(2)
        return Encoded(
            image_tokens=image.tokens,
            image_keys_values=albef.text_model.project_image_tokens(image.tokens),
            image_embeds=unit_vectors(albef.vision_projection(image.pooled)),
            text_states=text_states,
            text_embeds=unit_vectors(albef.text_projection(text_states[:, 0])),
            masked_states=masked_states,
            attention_mask=mask,
        )

    @torch.no_grad()
    def teach(self, pairs: Pairs, alpha: float | torch.Tensor) -> Teacher:
        """Encode the pairs with the momentum copies (section 3.3). In training they use dropout, as published."""
        copies: Any = self.momentum_copy
        image = copies.vision_model(pairs.pixel_values)
        class_state = copies.text_model.encode_text(pairs.input_ids, pairs.attention_mask, queries=1)
        fused = None
        if pairs.mlm_input_ids is not None and distills(alpha):
            states = copies.text_model.encode_text(pairs.mlm_input_ids, pairs.attention_mask)
            keys_values = copies.text_model.project_image_tokens(image.tokens)
            fused = copies.text_model.fuse(states, pairs.attention_mask, keys_values)
        return Teacher(
            image_embeds=unit_vectors(copies.vision_projection(image.pooled)),
            text_embeds=unit_vectors(copies.text_projection(class_state[:, 0])),
            fused_states=fused,
        )

    @torch.no_grad()
    def collect_keys(self, teacher: Teacher, pairs: Pairs) -> Keys:
        """The keys of this batch with their ids; of the batches of all ranks where `gather_negatives` is set."""
        image, text = teacher.image_embeds, teacher.text_embeds
        rows = torch.arange(len(image), device=image.device)
        ids = [torch.full_like(rows, IGNORED) if i is None else i for i in (pairs.image_ids, pairs.caption_ids)]
        pair_ids = torch.stack(ids, dim=1)
        if not self.config.gather_negatives:
            return Keys(image, text, pair_ids, rows, pair_ids)
        images, texts = gather_rows(torch.cat([image, text], dim=1)).chunk(2, dim=1)
        return Keys(images, texts, gather_rows(pair_ids), rows + rank() * len(image), pair_ids)

    def _same(self, keys: Keys, ids: torch.Tensor, policy: str) -> torch.Tensor | None:
        """(B, len(ids)) True where a key has the same image or caption, and that is treated by `policy`."""
        columns = [index for index, name in enumerate(self.same_id_policies()) if name == policy]
        if not columns:
            return None
        pair_ids = keys.pair_ids[:, None, columns]
        return ((pair_ids == ids[None, :, columns]) & (pair_ids != IGNORED)).any(-1)

    def contrast(self, online: Encoded, teacher: Teacher, keys: Keys, alpha: float | torch.Tensor) -> Contrast:
        """Contrast online features with momentum keys of the batch and of the queues (equations 1, 2 and 6)."""
        ids = torch.cat([keys.ids, self.image_queue.ids])
        is_pair = keys.pair_rows[:, None] == torch.arange(len(ids), device=ids.device)
        same, left_out = self._same(keys, ids, "positive"), self._same(keys, ids, "mask")
        positives = keys.pair_rows if same is None else same | is_pair
        if left_out is not None:
            left_out = left_out & ~(is_pair if same is None else positives)
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
            loss_per_image = contrastive_loss(image_to_text, positives, soft_image_to_text, alpha, left_out)
            loss_per_text = contrastive_loss(text_to_image, positives, soft_text_to_image, alpha, left_out)
            loss = (loss_per_image + loss_per_text) / 2
            logits_per_image = online.image_embeds @ online.text_embeds.T / temperature
        batch = slice(len(keys.image))
        return Contrast(loss, image_to_text[:, batch], text_to_image[:, batch], logits_per_image, temperature.detach())

    @torch.no_grad()
    def draw_negatives(self, contrast: Contrast, keys: Keys, draws: torch.Tensor | None) -> Negatives:
        """Draw a hard negative image for each text and a hard negative text for each image (section 3.2)."""
        excluded = keys.pair_rows[:, None] == torch.arange(len(keys.ids), device=keys.ids.device)
        related = [same for policy in ("mask", "positive") if (same := self._same(keys, keys.ids, policy)) is not None]
        for same in related:
            excluded = excluded | same
        # On a GPU this check would wait for the device in every step. It is left out there, and a batch without
        # negatives trains matching on its positive pairs alone.
        if related and excluded.device.type == "cpu" and bool(excluded.all()):
            raise _no_negatives(*self.same_id_policies())
        if draws is None:
            draws = torch.rand(len(keys.pair_rows), 2, device=keys.pair_rows.device)
        images, has_image = sample_hard_negatives(contrast.text_to_image, excluded, draws[:, 0])
        texts, has_text = sample_hard_negatives(contrast.image_to_text, excluded, draws[:, 1])
        return Negatives(images=images, texts=texts, has_image=has_image, has_text=has_text)

    def match(self, online: Encoded, negatives: Negatives) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Classify the pairs, each text with its negative image, and each image with its negative text (equation 4).
        Returns: loss; logits (3B, 2) in this order; labels (3B,), -100 where there is no negative."""
        text, mask, keys_values = online.text_states, online.attention_mask, online.image_keys_values
        if self.config.gather_negatives and world_size() > 1:
            other_text, other_mask, triples = self._negatives_of_all_ranks(online, negatives)
        else:
            other_text, other_mask = text[negatives.texts], mask[negatives.texts]
            rows = torch.arange(len(text), device=text.device)
            which = torch.cat([rows, negatives.images, rows])
            triples = [(key.index_select(0, which), value.index_select(0, which)) for key, value in keys_values]
        texts, masks = torch.cat([text, text, other_text]), torch.cat([mask, mask, other_mask])
        logits = full_precision(self.matching_logits(texts, masks, triples))
        no_image, no_text = (torch.where(has, 0, IGNORED) for has in (negatives.has_image, negatives.has_text))
        labels = torch.cat([torch.ones_like(no_image), no_image, no_text])
        return matching_loss(logits, labels), logits, labels

    def _negatives_of_all_ranks(
        self, online: Encoded, negatives: Negatives
    ) -> tuple[torch.Tensor, torch.Tensor, list[KeysValues]]:
        """States and mask of the negative texts; keys and values of images, negative images, and images again."""
        count = len(online.text_states)
        tokens = RowExchange(negatives.images, count).fetch(online.image_tokens)
        others = self.albef.text_model.project_image_tokens(tokens)
        texts = RowExchange(negatives.texts, count)
        text, mask = texts.fetch(online.text_states), texts.fetch(online.attention_mask)
        triples = [
            (torch.cat([key, other_key, key]), torch.cat([value, other_value, value]))
            for (key, value), (other_key, other_value) in zip(online.image_keys_values, others, strict=True)
        ]
        return text, mask, triples


def _no_negatives(same_image: str, same_caption: str) -> ValueError:
    return ValueError(
        "no pair of this batch has a negative: all of them share one image id or caption id, which "
        f"same_image={same_image!r} and same_caption={same_caption!r} exclude as negatives"
    )


__all__ = ["AlbefAlignmentModel", "Encoded", "Pairs", "Teacher"]
