"""Accuracy and confusion matrix as an `evaluate` metric. It loads from the path of this file, without a network.

import evaluate
from albef_hf.evaluation import LABEL_ACCURACY

metric = evaluate.load(LABEL_ACCURACY)
metric.compute(predictions=[2, 0], references=[2, 1], labels=["contradiction", "neutral", "entailment"])
"""

from typing import Any

import datasets
import evaluate

from albef_hf.evaluation.classification import NLVR2_LABELS, classification_metrics

_DESCRIPTION = """
Accuracy in all and per class, and the confusion matrix, for visual reasoning (NLVR2) and visual entailment (SNLI-VE).
"""

_INPUTS = """
Args:
    predictions: the predicted class of each sample, an integer.
    references: the true class of each sample.
    labels: the names of the classes; "false" and "true" where left out.
Returns:
    accuracy; accuracy_per_class, by name; confusion, with a row for each true class, a column for each predicted one.
Example:
    >>> metric.compute(predictions=[1, 0], references=[1, 1])
"""

_CITATION = """
@inproceedings{suhr2019corpus,
  title={A Corpus for Reasoning about Natural Language Grounded in Photographs},
  author={Suhr, Alane and Zhou, Stephanie and Zhang, Ally and Zhang, Iris and Bai, Huajun and Artzi, Yoav},
  booktitle={Annual Meeting of the Association for Computational Linguistics},
  year={2019}
}
"""

_FEATURES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})


class LabelAccuracy(evaluate.Metric):
    """See the module; the arithmetic is that of `albef_hf.evaluation.classification`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(_DESCRIPTION, _CITATION, _FEATURES, _INPUTS)

    def _compute(
        self, predictions: list[int], references: list[int], labels: list[str] | None = None
    ) -> dict[str, Any]:
        return classification_metrics(predictions, references, labels or NLVR2_LABELS)
