"""Grounding accuracy as an `evaluate` metric. It loads from the path of this file, without a network.

import evaluate
from albef_hf.evaluation import GROUNDING_ACCURACY

metric = evaluate.load(GROUNDING_ACCURACY)
metric.compute(predictions=[[0, 0, 10, 8]], references=[[0, 0, 10, 10]])
"""

import datasets
import evaluate
import numpy as np

from albef_hf.evaluation.boxes import grounding_accuracy, intersection_over_union

_DESCRIPTION = """
The share of boxes whose intersection over union with the annotated box reaches a threshold, for referring expressions.
"""

_INPUTS = """
Args:
    predictions: one box per sample: x, y, width and height.
    references: the annotated box of each sample.
    threshold: the least intersection over union of a right box; 0.5 where left out.
Returns:
    accuracy, and mean_intersection_over_union, as fractions.
Example:
    >>> metric.compute(predictions=[[0, 0, 10, 8]], references=[[0, 0, 10, 10]])
"""

_CITATION = """
@inproceedings{yu2016modeling,
  title={Modeling Context in Referring Expressions},
  author={Yu, Licheng and Poirson, Patrick and Yang, Shan and Berg, Alexander C. and Berg, Tamara L.},
  booktitle={European Conference on Computer Vision},
  year={2016}
}
"""

_BOX = datasets.Sequence(datasets.Value("float64"))
_FEATURES = datasets.Features({"predictions": _BOX, "references": _BOX})


class GroundingAccuracy(evaluate.Metric):
    """See the module; the arithmetic is that of `albef_hf.evaluation.boxes`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(_DESCRIPTION, _CITATION, _FEATURES, _INPUTS)

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]], threshold: float = 0.5
    ) -> dict[str, float]:
        predicted, true = np.asarray(predictions), np.asarray(references)
        return {
            "accuracy": grounding_accuracy(predicted, true, threshold),
            "mean_intersection_over_union": float(intersection_over_union(predicted, true).mean()),
        }
