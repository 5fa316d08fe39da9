"""VQA v2 accuracy as an `evaluate` metric. It loads from the path of this file, without a network.

import evaluate
from albef_hf.evaluation import VQA_ACCURACY

metric = evaluate.load(VQA_ACCURACY)
metric.compute(predictions=["cat"], references=[["cat"] * 9 + ["kitten"]], answer_types=["other"])
"""

from typing import Any

import datasets
import evaluate

from albef_hf.evaluation.answers import answer_metrics

_DESCRIPTION = """
The accuracy of the VQA challenge: the mean, over leaving out each person, of one third for each other person who gave
the same answer, at most 1. Answers are normalized as by the official scorer.
"""

_INPUTS = """
Args:
    predictions: one answer per question.
    references: one list per question: the answers of people, ten in VQA v2.
    question_types: optional, one per question.
    answer_types: optional, one per question.
Returns:
    accuracy, and where types are given accuracy_per_question_type and accuracy_per_answer_type, as fractions.
Example:
    >>> metric.compute(predictions=["2"], references=[["two"] * 10], answer_types=["number"])
"""

_CITATION = """
@inproceedings{goyal2017making,
  title={Making the V in VQA Matter: Elevating the Role of Image Understanding in Visual Question Answering},
  author={Goyal, Yash and Khot, Tejas and Summers-Stay, Douglas and Batra, Dhruv and Parikh, Devi},
  booktitle={Conference on Computer Vision and Pattern Recognition},
  year={2017}
}
"""

_FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


class VqaAccuracy(evaluate.Metric):
    """See the module; the arithmetic is that of `albef_hf.evaluation.answers`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(_DESCRIPTION, _CITATION, _FEATURES, _INPUTS)

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        question_types: list[str] | None = None,
        answer_types: list[str] | None = None,
    ) -> dict[str, Any]:
        return answer_metrics(predictions, references, question_types, answer_types)
