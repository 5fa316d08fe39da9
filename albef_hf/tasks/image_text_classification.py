"""Classes of one's own for a picture with a sentence: their number and names come from the training data."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from ..configuration_albef import AlbefConfig
from ..data.labels import ordered_classes
from ..modeling_albef_classification import AlbefForImageTextClassification
from ..processing_albef import AlbefProcessor
from .result import TaskSettings
from .visual_entailment import VisualEntailment


class ImageTextClassification(VisualEntailment):
    """Columns: `image`; `sentence`; `label`, the name of a class; `identifier`. See `ClassifyingTask`."""

    name = "image_text_classification"
    model_class = AlbefForImageTextClassification
    description = "Puts a picture with a sentence into one of the classes of its training data."

    @classmethod
    def classes_of(cls, parts: Mapping[str, datasets.Dataset]) -> list[str]:
        """The classes of the training data: in the order of their numbers where these are in use, else by name.

        Raises:
            ValueError: there are fewer than two, or two differ only in capitals, which labels may be written in.
        """
        labels = [label for part in parts.values() for label in part["label"]]
        classes = ordered_classes(labels)
        if len(classes) < 2:
            raise ValueError(f"{cls.name}: the training data has {len(classes)} classes ({', '.join(classes)})")
        written: dict[str, str] = {}
        for label in classes:
            if (other := written.setdefault(label.lower(), label)) != label:
                raise ValueError(f"{cls.name}: the classes {other!r} and {label!r} differ only in capitals")
        return classes

    def __init__(self, processor: AlbefProcessor, settings: TaskSettings | None = None) -> None:
        super().__init__(processor, settings)
        self._classes: list[str] = []

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes, in the order of the model."""
        return self._classes

    def prepare_training(self, parts: Mapping[str, datasets.Dataset]) -> None:
        """Set `classes`: those of the training data."""
        self._classes = self.classes_of(parts)

    def read_saved(self, model_path: str) -> None:
        """Set `classes`: those of the saved model."""
        names: Any = AlbefConfig.from_pretrained(model_path).id2label
        self._classes = [names[number] for number in range(len(names))]
