"""Accuracy with confusion, for visual reasoning (NLVR2) and visual entailment (SNLI-VE); and the majority baseline."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

NLVR2_LABELS = ("false", "true")
SNLI_VE_LABELS = ("contradiction", "neutral", "entailment")


def classification_metrics(
    predictions: Sequence[int], references: Sequence[int], labels: Sequence[str]
) -> dict[str, Any]:
    """Args:
        predictions, references: classes as numbers.
        labels: the name of each class.

    Returns: `accuracy`; `accuracy_per_class` by name (of the references of a class, how many were found; classes
        without any are left out); `confusion`, a list of rows, one a true class, one column a predicted one.

    Raises:
        ValueError: numbers that differ, no samples, or a class without a name.
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
    """The most frequent value, the first seen of those that tie: the answer of who has not seen a question."""
    if not len(values):
        raise ValueError("there is no majority of nothing")
    return Counter(values).most_common(1)[0][0]


def majority_baseline(
    train: Sequence[Hashable],
    test: Sequence[Hashable],
    train_kinds: Sequence[Hashable] | None = None,
    test_kinds: Sequence[Hashable] | None = None,
) -> float:
    """Accuracy in the test set of always giving the most frequent answer of the training set.

    Args:
        train, test: answers or labels.
        train_kinds, test_kinds: such as question types: the most frequent answer of each kind is then given to it.

    Raises:
        ValueError: an empty set, or a kind that was never seen in training.
    """
    kinds, asked = train_kinds or [None] * len(train), test_kinds or [None] * len(test)
    grouped: dict[Hashable, list[Hashable]] = {}
    for kind, value in zip(kinds, train, strict=True):
        grouped.setdefault(kind, []).append(value)
    best = {kind: majority(values) for kind, values in grouped.items()}
    unseen = set(asked) - set(best)
    if unseen or not len(test):
        raise ValueError(f"there is no majority for {sorted(map(str, unseen))}" if unseen else "nothing to measure")
    return float(np.mean([best[kind] == value for kind, value in zip(asked, test, strict=True)]))
