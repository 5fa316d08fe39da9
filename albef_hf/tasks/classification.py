"""What classification tasks share: labels, accuracy and confusion, and examples with probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch

from ..data.images import BadImage, decode_image
from ..evaluation.classification import classification_metrics
from ..reporting.html import Example, table_section
from .batches import predict_rows
from .result import TaskResult
from .task import Task

# Lines of code for the card, after those that make `inputs`.
PRINT_CLASSES = (
    "with torch.no_grad():",
    "    print(dict(zip(model.classes, model(**inputs).logits.softmax(-1)[0].tolist())))",
)


class ClassifyingTask(Task):
    """Classifies a sentence with one picture or several. The classes are `model_class.classes`.

    Columns: `sentence`; `label`, see `label_number`; `identifier`, the row's name for an evaluation server.
    """

    @classmethod
    def label_number(cls, value: Any) -> int:
        """A label as data sets write it ("True", "entailment", a boolean, a number) -> the number of its class.

        Raises:
            ValueError: there is no such class; names the classes.
        """
        classes: Sequence[str] = cls.model_class.classes  # type: ignore[attr-defined]
        if isinstance(value, int) and 0 <= value < len(classes):  # booleans are integers too
            return int(value)
        text, names = str(value).strip().lower(), [name.lower() for name in classes]
        if text not in names:
            raise ValueError(f"label {value!r} is none of {', '.join(names)}")
        return names.index(text)

    def label(self, row: Mapping[str, Any]) -> int:
        """The number of the class that a row is labeled with.

        Raises:
            BadImage: there is no such class.
        """
        try:
            return self.label_number(row["label"])
        except ValueError as problem:
            raise BadImage(str(problem)) from problem

    def images(self, row: Mapping[str, Any]) -> Sequence[Any]:
        """The pictures of a row, undecoded."""
        return [row["image"]]

    def collate(self, samples: Sequence[Mapping[str, Any]], training: bool) -> dict[str, torch.Tensor]:
        """Adds `labels` (samples,)."""
        batch = super().collate(samples, training)
        batch["labels"] = torch.tensor([sample["label"] for sample in samples])
        return batch

    def measure(self, model: Any, rows: datasets.Dataset, name: str) -> TaskResult:
        """Predict the most probable class. The metric is accuracy."""

        def predict(batch: dict[str, torch.Tensor]) -> list[list[float]]:
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}
            return model(**inputs).logits.softmax(1).tolist()

        probabilities = predict_rows(self, model, rows, name, predict)
        predicted = [int(np.argmax(row)) for row in probabilities]
        references = [self.label_number(value) for value in rows["label"]]
        identifiers = rows["identifier"] if "identifier" in rows.column_names else range(len(rows))
        predictions = [
            {"identifier": identifier, "prediction": model.classes[number], "probabilities": row}
            for identifier, number, row in zip(identifiers, predicted, probabilities, strict=True)
        ]
        return classification_result(name, predicted, references, model.classes, predictions)

    def example(self, result: TaskResult, row: int, data: Mapping[str, Any]) -> Example:
        """A row with the probability of every class and its label."""
        prediction = result.predictions[row]
        lines: list[tuple[str, bool | None]] = []
        for label, share in zip(result.details["labels"], prediction["probabilities"], strict=True):
            right = bool(result.correct[row]) if label == prediction["prediction"] else None
            lines.append((f"{label} ({share:.0%})", right))
        lines.append((f"label: {data['label']}", None))
        return Example([decode_image(image) for image in self.images(data)], data["sentence"], lines)

    def tables(self, result: TaskResult) -> list[str]:
        """The confusion matrix."""
        return [confusion_section(result)]


def classification_result(
    name: str,
    predicted: Sequence[int],
    references: Sequence[int],
    classes: Sequence[str],
    predictions: list[dict[str, Any]],
) -> TaskResult:
    """Accuracy and confusion matrix, with the accuracy of always predicting the most frequent class as baseline.

    Args:
        predicted, references: the number of a class for each row.
        predictions: see `TaskResult`.
    """
    figures = classification_metrics(predicted, references, classes)
    frequent = np.bincount(references).max() / len(references)
    return TaskResult(
        name,
        len(references),
        {"accuracy": figures["accuracy"]},
        {"most frequent class": float(frequent)},
        predictions,
        {"labels": list(classes)} | {key: figures[key] for key in ("confusion", "accuracy_per_class")},
        [float(a == b) for a, b in zip(predicted, references, strict=True)],
    )


def confusion_section(result: TaskResult) -> str:
    """The confusion matrix of a `classification_result` as a section of the report."""
    labels = result.details["labels"]
    lines = [
        [label, *(f"{count:,}" for count in counts), f"{counts[row] / max(1, sum(counts)):.1%}"]
        for row, (label, counts) in enumerate(zip(labels, result.details["confusion"], strict=True))
    ]
    heads = ["true class", *(f"predicted: {label}" for label in labels), "accuracy"]
    return table_section(f"Confusion: {result.name}", "One row for each true class.", heads, lines)
