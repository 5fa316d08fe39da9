"""ALBEF for classification tasks (Li et al. 2021, https://arxiv.org/abs/2107.07651, section 5).

Visual entailment reads a text with one image, visual reasoning (NLVR2) with two. Text assignment, which also reads a
text with two images, takes parts from here.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_albef import AlbefConfig, AlbefTextConfig
from .losses import (
    IGNORED,
    accuracy,
    check_pairs,
    distills,
    full_precision,
    mean_cross_entropy,
)
from .modeling_albef import AlbefModel
from .modeling_albef_attention import KeysValues, asked_outputs, recording
from .modeling_albef_momentum import AlbefMomentumModel, check_images_per_text
from .modeling_albef_text import AlbefTextModel
from .momentum import MomentumCopy
from .trainable import Trainable


@dataclass
class AlbefClassificationOutput(ModelOutput):
    """The output for B texts.

    Args:
        loss: cross-entropy with the labels and, with a teacher, its soft targets; None without labels.
        logits: (B, classes).
        labels: (B,), as given or drawn; -100 is ignored.
        first_image_index, second_image_index: (B,) rows of the batch, the two images of each text; for text
            assignment only.
        hidden_states, attentions, cross_attentions: of the text and fusion encoder, layer by layer, where asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    first_image_index: torch.Tensor | None = None
    second_image_index: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class AlbefClassifier(nn.Module):
    """States (..., hidden_size) -> logits (..., classes), with one hidden layer."""

    def __init__(self, config: AlbefTextConfig, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, classes)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.output(self.dense(states).relu())


def task_config(config: AlbefConfig, classes: Sequence[str], images_per_text: int) -> AlbefConfig:
    """A copy of a configuration with the classes of a task, and with fusion layers repeated for each image of a text.

    Raises:
        ValueError: the configuration is for another number of images, and that is not 1.
    """
    config = copy.deepcopy(config)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    text: Any = config.text_config
    if text.images_per_text == images_per_text:
        return config
    if text.images_per_text != 1:
        check_images_per_text(config, images_per_text)
    text.num_hidden_layers = text.fusion_layer + images_per_text * (text.num_hidden_layers - text.fusion_layer)
    text.images_per_text = images_per_text
    return config


def repeated_layer_names(checkpoint_config: AlbefConfig | None, images_per_text: int) -> dict[str, str]:
    """New names for the fusion layers of a checkpoint that reads each text with one image.

    Layer i becomes layer  first + images * (i - first);  the layers in between start as copies of it. The last layer
    is renamed first, so that none is renamed twice.
    """
    if checkpoint_config is None or checkpoint_config.text_config.images_per_text == images_per_text:
        return {}
    text: Any = checkpoint_config.text_config
    first, layer = text.fusion_layer, "text_model.encoder.layer"
    return {
        re.escape(f"{layer}.{index}."): f"{layer}.{first + images_per_text * (index - first)}."
        for index in range(text.num_hidden_layers - 1, first, -1)
    }


def check_labels(labels: torch.Tensor, texts: int, classes: Sequence[str]) -> None:
    """Raise a ValueError unless labels are (texts,) numbers of classes or -100. Values are checked on the CPU only."""
    if labels.shape != (texts,):
        raise ValueError(f"{texts} texts need as many labels, not {tuple(labels.shape)}")
    # On a GPU this check would wait for the device in every step.
    if labels.device.type == "cpu":
        wrong = ((labels < 0) | (labels >= len(classes))) & (labels != IGNORED)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            names = ", ".join(f"{number} ({name})" for number, name in enumerate(classes))
            raise ValueError(f"label {int(labels[row])} of row {row} is none of {names}, nor {IGNORED} (no label)")


class Classifies(Trainable):
    """Chance loss and metrics of models that predict one of their `classes`."""

    name = "albef"
    classes: tuple[str, ...]

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        """See `Trainable.chance_losses`."""
        return {"loss": torch.tensor(float(len(self.classes))).log().item()}

    def metrics(self, output: AlbefClassificationOutput) -> dict[str, torch.Tensor]:
        """See `Trainable.metrics`."""
        return {"accuracy": accuracy(output.logits, output.labels)}  # type: ignore[arg-type]


class _AlbefForClassification(Classifies, AlbefMomentumModel):
    """Classifies the fused state of the class token. Momentum copies of all modules teach it (published code)."""

    images_per_text = 1

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(task_config(config, self.classes, self.images_per_text))
        self.albef = AlbefModel(self.config, contrastive=False)
        self.classifier = AlbefClassifier(self.config.text_config, len(self.classes))  # type: ignore[arg-type]
        self.momentum_copy = MomentumCopy(self.online_modules())
        self.post_init()

    def online_modules(self) -> dict[str, nn.Module]:
        """The modules with momentum copies: all of them (published code)."""
        return {
            "vision_model": self.albef.vision_model,
            "text_model": self.albef.text_model,
            "classifier": self.classifier,
        }

    @classmethod
    def _check_images(cls, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> None:
        check_pairs(pixel_values, input_ids)

    @staticmethod
    def _keys_values(
        vision_model: nn.Module, text_model: AlbefTextModel, pixel_values: torch.Tensor
    ) -> list[KeysValues]:
        """Keys and values of the images for each fusion layer."""
        return text_model.project_image_tokens(vision_model(pixel_values).tokens)

    def _logits(
        self,
        modules: Any,
        classifier: nn.Module,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        queries: int | None = 1,
    ) -> torch.Tensor:
        keys_values = self._keys_values(modules.vision_model, modules.text_model, pixel_values)
        states = modules.text_model.encode_text(input_ids, attention_mask)
        fused = modules.text_model.fuse(states, attention_mask, keys_values, queries)
        return full_precision(classifier(fused[:, 0]))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        alpha: float | None = None,
        **kwargs: Any,
    ) -> AlbefClassificationOutput:
        """Logits of B texts with their images, and the loss where labels are given.

        Args:
            input_ids, attention_mask: (B, T).
            pixel_values: (B, channels, height, width), or (B, 2, channels, height, width) where a text has two images.
            labels: (B,) integers; -100 is ignored.
            alpha: weight of the momentum copies' soft targets; `config.alpha` where left out.

        Raises:
            ValueError: a text without its image or images, or a label that is not the number of a class.
        """
        self._check_images(pixel_values, input_ids)
        asked = asked_outputs(self.config, kwargs)
        with recording(self.albef.text_model.encoder.layer, asked) as record:
            queries = None if asked else 1
            logits = self._logits(self.albef, self.classifier, input_ids, pixel_values, attention_mask, queries)
        if labels is None:
            return AlbefClassificationOutput(logits=logits, **record)
        check_labels(labels, input_ids.shape[0], self.classes)
        alpha = self.config.alpha if alpha is None else alpha
        teacher_logits = None
        if distills(alpha):
            with torch.no_grad():
                copies: Any = self.momentum_copy
                teacher_logits = self._logits(copies, copies.classifier, input_ids, pixel_values, attention_mask)
        loss = mean_cross_entropy(logits, labels, teacher_logits, alpha)
        return AlbefClassificationOutput(loss=loss, logits=logits, labels=labels, **record)


class AlbefForVisualEntailment(_AlbefForClassification):
    """Does the image (premise) contradict the text (hypothesis), leave it open, or entail it? (SNLI-VE)

    The published recipe has no ramp of alpha here: set `alpha_ramp_epochs` to 0.
    """

    classes: tuple[str, ...] = ("contradiction", "neutral", "entailment")


class AlbefForImageTextClassification(_AlbefForClassification):
    """Puts an image with a text into one of the classes that `config.id2label` names."""

    def __init__(self, config: AlbefConfig) -> None:
        names: Any = config.id2label
        self.classes = tuple(names[number] for number in range(len(names)))
        super().__init__(config)


def _two_images(vision_model: nn.Module, text_model: AlbefTextModel, pixel_values: torch.Tensor) -> list[KeysValues]:
    """Images (B, 2, channels, height, width) -> keys and values, projected once for each pair of layers."""
    projected = text_model.project_image_tokens(vision_model(pixel_values.flatten(0, 1)).tokens)
    return text_model.interleave(projected, [slice(0, None, 2), slice(1, None, 2)])


class AlbefForVisualReasoning(_AlbefForClassification):
    """Is the text true of two images? (NLVR2)

    Each fusion layer exists twice, for the first and for the second image, and the two share the key and value
    projections of their cross-attention. Loaded from a pre-training checkpoint, both start as its one layer.
    """

    classes = ("False", "True")
    images_per_text = 2
    starts = {r"text_model\.encoder\.layer\.": "copied from the layer before, which reads the first image"}

    @classmethod
    def renamed_keys(cls, checkpoint_config: AlbefConfig | None) -> dict[str, str]:
        """See `LoadsFromOtherTasks.renamed_keys`."""
        return repeated_layer_names(checkpoint_config, cls.images_per_text)

    @classmethod
    def _check_images(cls, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> None:
        check_pairs(pixel_values, input_ids)
        if pixel_values.dim() != 5 or pixel_values.shape[1] != cls.images_per_text:
            raise ValueError(
                "each text needs two images, pixel_values (batch, 2, channels, height, width), not "
                f"{tuple(pixel_values.shape)}"
            )

    _keys_values = staticmethod(_two_images)


__all__ = [
    "AlbefClassificationOutput",
    "AlbefForImageTextClassification",
    "AlbefForVisualEntailment",
    "AlbefForVisualReasoning",
    "Classifies",
    "check_labels",
    "repeated_layer_names",
    "task_config",
]
