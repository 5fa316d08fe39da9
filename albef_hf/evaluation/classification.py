"""Accuracy and confusion matrix of classes (NLVR2, SNLI-VE), and the baseline of the most frequent class."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

NLVR2_LABELS = ("false", "true")
SNLI_VE_LABELS = ("contradiction", "neutral", "entailment")


def classification_metrics(
    predictions: Sequence[int], references: Sequence[int], labels: Sequence[str]
) -> dict[str, Any]:
    """Accuracy in all, per class, and the confusion matrix.

    Args:
        predictions, references: the number of the predicted and of the true class of each sample.
        labels: the name of each class.

    Returns: `accuracy`; `accuracy_per_class`, by name (the share of a class's samples that were predicted right;
        classes without samples are left out); `confusion`, with a row for each true class and a column for each
        predicted one.

    Raises:
        ValueError: the lists differ in length or are empty, or a class has no name.
    """
    predicted, true = np.asarray(predictions, dtype=np.int64), np.asarray(references, dtype=np.int64)
    if predicted.shape != true.shape or predicted.ndim != 1 or not len(true):
        raise ValueError(f"{predicted.shape} predictions do not fit {true.shape} references")
    for name, values in (("prediction", predicted), ("reference", true)):
        wrong = np.flatnonzero((values < 0) | (values >= len(labels)))
        if len(wrong):
            raise ValueError(f"{name} {wrong[0]} is class {values[wrong[0]]}; there are {len(labels)}: {list(labels)}")
    confusion = np.bincount(true * len(labels) + predicted, minlength=len(labels) ** 2).reshape(-1, len(labels))
    counts = confusion.sum(1)
    return {
        "accuracy": float((predicted == true).mean()),
        "accuracy_per_class": {
            label: float(confusion[row, row] / counts[row]) for row, label in enumerate(labels) if counts[row]
        },
        "confusion": confusion.tolist(),
    }


def majority(values: Sequence[Hashable]) -> Hashable:
    """The most frequent value: what ignoring the input scores. Of several that tie, the one that comes first."""
    if not len(values):
        raise ValueError("there is no majority of nothing")
    return Counter(values).most_common(1)[0][0]


def majority_baseline(
    train: Sequence[Hashable],
    test: Sequence[Hashable],
    train_types: Sequence[Hashable] | None = None,
    test_types: Sequence[Hashable] | None = None,
) -> float:
    """Test accuracy of always giving the most frequent answer of the training set.

    Args:
        train, test: answers or labels.
        train_types, test_types: the type of each, such as the type of the question. Where they are given, each type
            gets its own most frequent answer.

    Raises:
        ValueError: a set is empty, or a type does not occur in the training set.
    """
    known, asked = train_types or [None] * len(train), test_types or [None] * len(test)
    grouped: dict[Hashable, list[Hashable]] = {}
    for type_, value in zip(known, train, strict=True):
        grouped.setdefault(type_, []).append(value)
    best = {type_: majority(values) for type_, values in grouped.items()}
    unseen = set(asked) - set(best)
    if unseen or not len(test):
        raise ValueError(f"there is no majority for {sorted(map(str, unseen))}" if unseen else "nothing to measure")
    return float(np.mean([best[type_] == value for type_, value in zip(asked, test, strict=True)]))
