"""Accuracy with confusion as an `evaluate` metric; loads without a network from the path of this file.

import evaluate
from albef_hf.evaluation import LABEL_ACCURACY

metric = evaluate.load(LABEL_ACCURACY)
metric.compute(predictions=[2, 0], references=[2, 1], labels=["contradiction", "neutral", "entailment"])
"""

from typing import Any

import datasets
import evaluate

from albef_hf.evaluation.classification import classification_metrics

_DESCRIPTION = """
The share of right classes, for each class too, and the confusion matrix: of visual reasoning (NLVR2) and visual
entailment (SNLI-VE).
"""

_INPUTS = """
Args:
    predictions: the class of each sample, an integer.
    references: the true class.
    labels: the names of the classes; false and true where left out.
Returns:
    accuracy, accuracy_per_class by name, and confusion: a row for each true class, a column for each predicted one.
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


class LabelAccuracy(evaluate.Metric):
    """See the module; the arithmetic is that of `albef_hf.evaluation.classification`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self, predictions: list[int], references: list[int], labels: list[str] | None = None
    ) -> dict[str, Any]:
        return classification_metrics(predictions, references, labels or ["false", "true"])
