"""ALBEF's pre-training (Li et al. 2021, https://arxiv.org/abs/2107.07651, section 3).

`AlbefForPreTraining.forward` reads as the paper's figure 1: encode, align, fuse, predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_albef import AlbefConfig
from .gathering import gather_rows, gather_rows_with_gradient, mean_over_ranks, rank, world_size
from .losses import (
    IGNORED,
    contrastive_loss,
    masked_language_modelling_loss,
    matching_loss,
    sample_hard_negatives,
)
from .modeling_albef import AlbefModel, full_precision, unit_vectors, without_autocast
from .modeling_albef_text import AlbefMaskedLanguageModellingHead, AlbefPreTrainedModel, KeysValues
from .momentum import FeatureQueue, MomentumCopy


@dataclass
class AlbefForPreTrainingOutput(ModelOutput):
    """What one pre-training step computes. B pairs, M masked positions, T text tokens.

    Args:
        loss: loss_itc + loss_itm + loss_mlm, unweighted (equation 5); None where no loss was asked for.
        loss_itc: image-text contrast.
        loss_itm: image-text matching with hard negatives.
        loss_mlm: masked language modelling; None without masked inputs.
        logits_per_image: (images, texts), cosine similarity over temperature, of the online encoders.
        logits_per_text: its transpose.
        image_embeds, text_embeds: unit vectors (B, projection_dim).
        itm_logits: (3B, 2): the B pairs, each text with its hard negative image, each image with its hard negative
            text; class 1 is "match".
        itm_labels: (3B,); -100 where a row has no possible negative.
        mlm_logits: (M, vocabulary).
        negative_image_index, negative_text_index: (B,) which image (text) was drawn for each text (image); over all
            ranks where negatives are gathered.
        image_keys, text_keys: (B or ranks * B, projection_dim), what `enqueue` puts into the queues.
        key_ids: (same rows, 2) image and caption ids, -100 where unknown.
        temperature: scalar.
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

    def metrics(self) -> dict[str, torch.Tensor]:
        """Scalars worth a curve, still on the device."""
        if self.loss is None:
            return {}
        with torch.no_grad():
            pairs = torch.arange(self.logits_per_image.shape[0], device=self.logits_per_image.device)
            return {
                "temperature": self.temperature,  # type: ignore[dict-item]
                "itc_accuracy": (self.logits_per_image.argmax(1) == pairs).float().mean(),
                "itm_accuracy": (self.itm_logits.argmax(1) == self.itm_labels).float().mean(),
            }


class AlbefForPreTraining(AlbefPreTrainedModel):
    """ALBEF with its three objectives, its momentum copies and its queues (paper, section 3).

    `forward` changes nothing. After each backward pass call `enqueue(output)`; after each optimizer step call
    `update_momentum()`. `save_pretrained` leaves copies and queues out unless `save_momentum=True`; a checkpoint
    without them loads with copies equal to its weights and fresh queues.
    """

    # Absent from published folders by design; see `_init_weights`.
    _keys_to_ignore_on_load_missing = [r"^momentum_copy\.", r"^image_queue\.", r"^text_queue\."]

    albef: AlbefModel
    image_queue: FeatureQueue
    text_queue: FeatureQueue

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(config)
        self.albef = AlbefModel(config)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.cls = AlbefMaskedLanguageModellingHead(config.text_config)  # type: ignore[arg-type]
        self.momentum_copy = MomentumCopy(self.online_modules())
        self.image_queue = FeatureQueue(config.queue_size, config.projection_dim, id_columns=2)
        self.text_queue = FeatureQueue(config.queue_size, config.projection_dim, id_columns=2)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FeatureQueue):
            module.start()
        elif module is self.momentum_copy:
            # It comes after the online modules, so their weights are in place, loaded or fresh; loaded copies stay.
            module.start(self.online_modules())

    # -- what the outside calls ---------------------------------------------------------------------------------------

    def online_modules(self) -> dict[str, nn.Module]:
        """What the momentum copies follow; the matching head and the temperature have no copy (published code)."""
        return {
            "vision_model": self.albef.vision_model,
            "text_model": self.albef.text_model,
            "vision_projection": self.albef.vision_projection,
            "text_projection": self.albef.text_projection,
            "cls": self.cls,
        }

    @torch.no_grad()
    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None:
        """Move the momentum copies, and bring the temperature back inside its bounds. Once per optimizer step.

        The momentum is constant; step and total_steps are for methods with a schedule.
        """
        self.momentum_copy.update(self.online_modules(), self.config.momentum)
        self.albef.temperature.clamp_(self.config.temperature_minimum, self.config.temperature_maximum)

    @torch.no_grad()
    def reset_momentum(self) -> None:
        """Make the momentum copies equal to the online weights."""
        self.momentum_copy.reset(self.online_modules())

    @torch.no_grad()
    def enqueue(self, output: AlbefForPreTrainingOutput) -> None:
        """Put this batch's keys, of all ranks, into the queues. After the backward pass, once per micro-batch."""
        image_keys, text_keys, ids = output.image_keys, output.text_keys, output.key_ids
        assert image_keys is not None and text_keys is not None and ids is not None
        if not self.config.gather_negatives:  # else forward has gathered them already
            image_keys, text_keys = gather_rows(torch.cat([image_keys, text_keys], dim=1)).chunk(2, dim=1)
            ids = gather_rows(ids)
        self.image_queue.enqueue(image_keys, ids)
        self.text_queue.enqueue(text_keys, ids)

    def step_arguments(self, step: int, steps_per_epoch: int, total_steps: int) -> dict[str, float]:
        """Arguments of `forward` that follow the schedule. step: optimizer steps done so far."""
        ramp = self.config.alpha_ramp_epochs * steps_per_epoch
        return {"alpha": self.config.alpha * min(1.0, step / ramp) if ramp > 0 else self.config.alpha}

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        """The value of each loss for a model that knows nothing. batch_size: pairs that share one contrast."""
        keys = torch.tensor(float(batch_size + self.config.queue_size))
        third = torch.tensor([1 / 3, 2 / 3])
        return {
            "loss_itc": keys.log().item(),
            "loss_itm": -(third * third.log()).sum().item(),
            "loss_mlm": torch.tensor(float(self.config.text_config.vocab_size)).log().item(),
        }

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

    def save_pretrained(self, save_directory: Any, *args: Any, save_momentum: bool = False, **kwargs: Any) -> None:
        """As in transformers; `save_momentum=True` keeps the momentum copies and the queues."""
        before = self._keys_to_ignore_on_save
        if not save_momentum:
            state = ("momentum_copy.", "image_queue.", "text_queue.")
            self._keys_to_ignore_on_save = set(before or ()) | {
                key for key in self.state_dict() if key.startswith(state)
            }
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self._keys_to_ignore_on_save = before

    # -- the step -----------------------------------------------------------------------------------------------------

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
        """The pre-training objectives of B image-text pairs, or contrastive scores where no loss is asked for.

        Args:
            input_ids, attention_mask: (B, T).
            pixel_values: (B, channels, height, width).
            mlm_input_ids: (B, T), `input_ids` with some tokens masked.
            mlm_labels: (B, T), the original id at masked positions and -100 elsewhere.
            mlm_positions: (M,), indices of the masked positions in the flattened (B * T) labels. Found from
                `mlm_labels` where left out, at the price of one host read.
            image_ids, caption_ids: (B,) integers; equal ones mark the same image or caption, -100 marks none. Used as
                `config.same_image` and `config.same_caption` say.
            negative_draws: (B, 2) uniform in [0, 1): they choose the hard negative image of each text and text of each
                image. Drawn from torch's generator where left out.
            alpha: weight of the soft targets; `config.alpha` where left out.
            return_loss: compute losses; True where `mlm_labels` are given.

        Raises:
            ValueError: losses are asked for a single pair, or for different numbers of images and texts, or for a
                batch in which no image has a text that could be its negative.
        """
        if return_loss is None:
            return_loss = mlm_labels is not None
        if not return_loss:
            output = self.albef(input_ids, pixel_values, attention_mask)
            return AlbefForPreTrainingOutput(**output)
        alpha = self.config.alpha if alpha is None else alpha
        self._check_pairs(pixel_values, input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        text_model = self.albef.text_model

        # Encode. The unmasked text serves contrast and matching, the masked one language modelling; one pass for both.
        image = self.albef.vision_model(pixel_values)
        if mlm_input_ids is None:
            text_states = text_model.encode_text(input_ids, attention_mask)
        else:
            both = text_model.encode_text(torch.cat([input_ids, mlm_input_ids]), attention_mask.repeat(2, 1))
            text_states, masked_text_states = both.chunk(2)
        image_embeds = self.albef.project_image(image)  # (B, projection_dim)
        text_embeds = self.albef.project_text(text_states)
        teacher = self._teach(pixel_values, input_ids, attention_mask, mlm_input_ids if self._distils(alpha) else None)

        # Align: contrast of the online features with momentum keys of this batch and of the queues.
        keys = self._collect_keys(teacher, image_ids, caption_ids)
        loss_itc, image_to_text, text_to_image = self._contrast(image_embeds, text_embeds, teacher, keys, alpha)

        # Fuse. An image's keys and values are projected once, and serve its pair, its negatives and its masked text.
        image_keys_values = text_model.project_image_tokens(image.tokens)
        negatives = self._draw_negatives(image_to_text, text_to_image, keys, negative_draws)
        itm_logits, itm_labels = self._match(image.tokens, image_keys_values, text_states, attention_mask, negatives)
        loss_itm = matching_loss(itm_logits, itm_labels)

        loss, loss_mlm, mlm_logits = loss_itc + loss_itm, None, None
        if mlm_input_ids is not None:
            fused = text_model.fuse(masked_text_states, attention_mask, image_keys_values)
            loss_mlm, mlm_logits = self._predict_words(fused, teacher.fused, mlm_labels, mlm_positions, alpha)  # type: ignore[arg-type]
            loss = loss + loss_mlm

        with without_autocast(image_embeds):
            temperature = self.albef.clamped_temperature()
            logits_per_image = image_embeds @ text_embeds.T / temperature
        return AlbefForPreTrainingOutput(
            loss=loss,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            loss_mlm=loss_mlm,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            itm_logits=itm_logits,
            itm_labels=itm_labels,
            mlm_logits=mlm_logits,
            negative_image_index=negatives.images,
            negative_text_index=negatives.texts,
            image_keys=keys.image,
            text_keys=keys.text,
            key_ids=keys.ids,
            temperature=temperature.detach(),
        )

    def _check_pairs(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> None:
        batch_size = input_ids.shape[0]
        if pixel_values.shape[0] != batch_size:
            raise ValueError(f"losses need pairs, but there are {pixel_values.shape[0]} images and {batch_size} texts")
        candidates = batch_size * (world_size() if self.config.gather_negatives else 1)
        if candidates < 2:
            raise ValueError("image-text matching draws negatives from the batch, so a batch needs at least 2 pairs")

    @staticmethod
    def _distils(alpha: float | torch.Tensor) -> bool:
        return isinstance(alpha, torch.Tensor) or alpha > 0

    @torch.no_grad()
    def _teach(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        mlm_input_ids: torch.Tensor | None,
    ) -> "_Teacher":
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
        return _Teacher(
            image_embeds=unit_vectors(copies.vision_projection(image.pooled)),
            text_embeds=unit_vectors(copies.text_projection(class_state[:, 0])),
            fused=fused,
        )

    @torch.no_grad()
    def _collect_keys(
        self, teacher: "_Teacher", image_ids: torch.Tensor | None, caption_ids: torch.Tensor | None
    ) -> "_Keys":
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

    def _same(self, keys: "_Keys", ids: torch.Tensor, policy: str) -> torch.Tensor | None:
        """(B, len(ids)) True where a key has the same image, or the same caption, and `policy` applies to it."""
        columns = [
            index for index, name in enumerate((self.config.same_image, self.config.same_caption)) if name == policy
        ]
        if not columns:
            return None
        own = keys.own_ids[:, None, columns]
        return ((own == ids[None, :, columns]) & (own != IGNORED)).any(-1)

    def _contrast(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        teacher: "_Teacher",
        keys: "_Keys",
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
        keys: "_Keys",
        draws: torch.Tensor | None,
    ) -> "_Negatives":
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
            raise ValueError(
                "no pair of this batch has a negative: all of them share one image id or caption id, which "
                f"same_image={self.config.same_image!r} and same_caption={self.config.same_caption!r} exclude"
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
        negatives: "_Negatives",
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

    def _predict_words(
        self,
        fused: torch.Tensor,
        teacher_fused: torch.Tensor | None,
        labels: torch.Tensor,
        positions: torch.Tensor | None,
        alpha: float | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Language modelling loss and logits at the masked positions."""
        labels = labels.flatten()
        if positions is None:
            positions = (labels != IGNORED).nonzero().squeeze(1)
        labels = labels[positions]
        word_embeddings = self.albef.text_model.embeddings.word_embeddings.weight
        logits = full_precision(self.cls(fused.flatten(0, 1)[positions], word_embeddings))
        teacher_logits = None
        if teacher_fused is not None:
            with torch.no_grad():
                copies = self.momentum_copy
                word_embeddings = copies.text_model.embeddings.word_embeddings.weight  # type: ignore[assignment]
                teacher_logits = copies.cls(teacher_fused.flatten(0, 1)[positions], word_embeddings)
                teacher_logits = full_precision(teacher_logits)
        count = None
        if self.config.gather_negatives:  # one process would divide by the count of the global batch
            count = mean_over_ranks((labels != IGNORED).sum().to(logits.dtype))
        return masked_language_modelling_loss(logits, labels, teacher_logits, alpha, count), logits


@dataclass
class _Teacher:
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


__all__ = ["AlbefForPreTraining", "AlbefForPreTrainingOutput"]
