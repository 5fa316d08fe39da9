"""What classification tasks share: labels, accuracy and confusion, and examples with probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch

from ..data.images import BadImage, decode_image
from ..data.labels import are_numbers, class_names
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


def class_number(value: Any, classes: Sequence[str]) -> int:
    """The name of a class as data sets write it ("True", "entailment", a boolean) -> its number.

    Where the classes are false and true, 0 and 1 are names too.

    Raises:
        ValueError: there is no such class; names the classes.
    """
    names = [name.lower() for name in classes]
    text = str(value).strip().lower()
    if names == ["false", "true"] and text in ("0", "1"):
        return int(text)
    if text in names:
        return names.index(text)
    said = f"label {value!r} is none of {', '.join(names)}"
    if text.lstrip("-").isdigit():
        said += "; it is a number without a name: give the names in their order, label_names: [...]"
    raise ValueError(said)


class ClassifyingTask(Task):
    """Classifies a sentence with one picture or several. The classes are `model_class.classes`.

    Columns: `sentence`; `label`, see `class_number`; `identifier`, the row's name for an evaluation server. Class
    numbers become their names, which the type of the column or `label_names` tells.
    """

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes, in the order of the model."""
        return self.model_class.classes  # type: ignore[attr-defined]

    @classmethod
    def name_labels(cls, rows: datasets.Dataset, dataset: str, label_names: Sequence[str] | None) -> datasets.Dataset:
        """See `Task.name_labels`. Where classes are false and true, 0 and 1 need no names.

        Raises:
            ValueError: numbers have no names.
        """
        if "label" not in rows.column_names:
            return rows
        feature, fixed = rows.features["label"], [name.lower() for name in getattr(cls.model_class, "classes", ())]
        if are_numbers(feature) and label_names is None and fixed:
            if fixed == ["false", "true"]:
                return rows
            raise ValueError(
                f"{dataset}: its labels are numbers without names, which could stand for {', '.join(fixed)} in any "
                "order; give the names in the order of the numbers, label_names: [...]"
            )
        try:
            names = class_names(rows["label"], feature, label_names)
        except ValueError as error:
            raise ValueError(f"{dataset}, column of label: {error}") from error
        return rows.remove_columns("label").add_column("label", names, feature=datasets.Value("string"))

    def label(self, row: Mapping[str, Any]) -> int:
        """The number of the class that a row is labeled with.

        Raises:
            BadImage: there is no such class.
        """
        try:
            return class_number(row["label"], self.classes)
        except ValueError as problem:
            raise BadImage(str(problem)) from problem

    def check_row(self, row: Mapping[str, Any]) -> None:
        """See `Task.check_row`."""
        super().check_row(row)
        self.label(row)

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
        references = [self.label({"label": value}) for value in rows["label"]]
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
        [label, *(f"{count:,}" for count in counts), f"{counts[row] / sum(counts):.1%}" if sum(counts) else "no rows"]
        for row, (label, counts) in enumerate(zip(labels, result.details["confusion"], strict=True))
    ]
    heads = ["true class", *(f"predicted: {label}" for label in labels), "accuracy"]
    return table_section(f"Confusion: {result.name}", "One row for each true class.", heads, lines)
