"""Text assignment, a further pre-training step before visual reasoning (Li et al. 2021, section 5, "NLVR")."""

from typing import Any

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from .configuration_albef import AlbefConfig
from .losses import (
    IGNORED,
    check_pairs,
    full_precision,
    mean_cross_entropy,
    sample_hard_negatives,
    without_autocast,
)
from .modeling_albef import AlbefModel
from .modeling_albef_attention import asked_outputs, recording
from .modeling_albef_classification import (
    AlbefClassificationOutput,
    AlbefForVisualReasoning,
    Classifies,
    check_labels,
    repeated_layer_names,
    task_config,
)
from .modeling_albef_loading import AlbefPreTrainedModel


class AlbefForTextAssignment(Classifies, AlbefPreTrainedModel):
    """Pre-training for visual reasoning: does the text belong to the first image, to the second, or to neither?

    For each text, other images are drawn from the batch, the more often the more similar they are to its own image
    (section 5, "NLVR"). There is no teacher. The projections only serve this draw and are not trained.
    """

    classes = ("first image", "second image", "neither")
    images_per_text = 2
    albef: AlbefModel
    starts = AlbefForVisualReasoning.starts

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(task_config(config, self.classes, self.images_per_text))
        self.albef = AlbefModel(self.config)
        self.assignment_head = nn.Linear(self.config.text_config.hidden_size, len(self.classes))
        self.post_init()
        self.freeze()

    @classmethod
    def renamed_keys(cls, checkpoint_config: AlbefConfig | None) -> dict[str, str]:
        """See `LoadsFromOtherTasks.renamed_keys`."""
        return repeated_layer_names(checkpoint_config, cls.images_per_text)

    def freeze(self) -> None:
        """Freeze the projections, which only serve to draw images, and the temperature, which is not used."""
        self.albef.vision_projection.requires_grad_(False)
        self.albef.text_projection.requires_grad_(False)
        self.albef.temperature.requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        first_image_index: torch.Tensor | None = None,
        second_image_index: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        assignment_draws: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> AlbefClassificationOutput:
        """Classify B texts, each read with two images of the batch.

        Args:
            input_ids, attention_mask: (B, T).
            pixel_values: (B, channels, height, width), the image of each text.
            first_image_index, second_image_index: (B,) rows of `pixel_values`, the two images of each text. If left
                out, they are drawn together with `labels`: with probability 1/3 each, the text's own image is the
                first, the second, or neither.
            labels: (B,) 0 where the text belongs to the first image, 1 to the second, 2 to neither; -100 is ignored.
            image_ids: (B,) integers, -100 where unknown. An image with the id of the text's own image is never drawn
                as another image.
            assignment_draws: (B, 3) uniform in [0, 1), which determine the label and the other images. Drawn from
                torch's generator where left out.

        Raises:
            ValueError: there are different numbers of images and texts, or fewer than three pairs to draw from; or
                only some of `labels` and the two indices are given, or one of them is out of range.
        """
        check_pairs(pixel_values, input_ids)
        texts = input_ids.shape[0]
        image = self.albef.vision_model(pixel_values)
        given = [value is not None for value in (labels, first_image_index, second_image_index)]
        if not any(given):
            labels, first_image_index, second_image_index = self._draw(image, image_ids, assignment_draws)
        elif not all(given):
            raise ValueError("give all of labels, first_image_index and second_image_index, or none of them")
        check_labels(labels, texts, self.classes)  # type: ignore[arg-type]
        for name, index in (("first", first_image_index), ("second", second_image_index)):
            if index.shape != (texts,) or (index.device.type == "cpu" and not ((index >= 0) & (index < texts)).all()):
                raise ValueError(f"{name}_image_index must hold {texts} rows of the batch, not {index}")
        text_model = self.albef.text_model
        # Each image's keys and values are projected once, however many texts are read with it.
        keys_values = text_model.interleave(
            text_model.project_image_tokens(image.tokens),
            [first_image_index, second_image_index],  # type: ignore[list-item]
        )
        asked = asked_outputs(self.config, kwargs)
        with recording(text_model.encoder.layer, asked) as record:
            states = text_model.encode_text(input_ids, attention_mask)
            fused = text_model.fuse(states, attention_mask, keys_values, None if asked else 1)
        logits = full_precision(self.assignment_head(fused[:, 0]))
        return AlbefClassificationOutput(
            loss=mean_cross_entropy(logits, labels),  # type: ignore[arg-type]
            logits=logits,
            labels=labels,
            first_image_index=first_image_index,
            second_image_index=second_image_index,
            **record,
        )

    @torch.no_grad()
    def _draw(
        self, image: Any, image_ids: torch.Tensor | None, draws: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw label, first and second image of each text, at the initial temperature (published code)."""
        texts, device = image.pooled.shape[0], image.pooled.device
        if texts < 3:
            raise ValueError(
                f"two other images of the batch are drawn for each text, so it needs at least 3 pairs, not {texts}"
            )
        embeds = self.albef.project_image(image)
        rows = torch.arange(texts, device=device)
        excluded = rows[:, None] == rows
        if image_ids is not None:
            excluded |= (image_ids[:, None] == image_ids) & (image_ids != IGNORED)
        if draws is None:
            draws = torch.rand(texts, 3, device=device)
        with without_autocast(embeds):
            similarity = embeds @ embeds.T / self.config.temperature
        other, has_other = sample_hard_negatives(similarity, excluded, draws[:, 1])
        another, has_another = sample_hard_negatives(similarity, excluded | (other[:, None] == rows), draws[:, 2])
        neither = draws[:, 0] < 1 / 3
        in_second = ~neither & (draws[:, 0] < 2 / 3)
        labels = torch.where(neither, 2, torch.where(in_second, 1, 0))
        # Where the batch has too few other images for a text, its label is ignored.
        labels = labels.masked_fill(~torch.where(neither, has_another, has_other), IGNORED)
        first = torch.where(neither | in_second, other, rows)
        second = torch.where(neither, another, torch.where(in_second, rows, other))
        return labels, first, second


__all__ = ["AlbefForTextAssignment"]
