"""Visual entailment: does a picture contradict a sentence, leave it open, or entail it? (SNLI-VE; paper section 5)"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..modeling_albef_classification import AlbefForVisualEntailment
from ..modeling_albef_loading import AlbefPreTrainedModel
from .classification import PRINT_CLASSES, ClassifyingTask


class VisualEntailment(ClassifyingTask):
    """Columns: `image`, the premise; `sentence`, the hypothesis; `label`; `identifier`. See `ClassifyingTask`."""

    name = "visual_entailment"
    model_class: type[AlbefPreTrainedModel] = AlbefForVisualEntailment
    needed = {"image": "image", "sentence": "sentence", "label": "label"}
    optional = {"identifier": "identifier"}
    text_columns = ("sentence",)
    description = "Says whether a picture contradicts a sentence, leaves it open, or entails it."
    usage = ('inputs = processor(images=picture, text="there is a tree")', *PRINT_CLASSES)

    def prepare(self, row: Mapping[str, Any], generator: np.random.Generator, training: bool) -> dict[str, Any]:
        """The picture, the sentence and the number of its class."""
        return {
            "pixel_values": self.pixels(row["image"], generator, training),
            "text": self.text(row, "sentence"),
            "label": self.label(row),
        }
