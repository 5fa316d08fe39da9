"""Image-text retrieval recall as an `evaluate` metric. It loads from the path of this file, without a network.

import evaluate
from albef_hf.evaluation import RETRIEVAL_RECALL

metric = evaluate.load(RETRIEVAL_RECALL)
metric.compute(predictions=scores, references=image_groups, text_groups=text_groups)
"""

import datasets
import evaluate
import torch

from albef_hf.evaluation.recall import recall_from_scores

_DESCRIPTION = """
Recall at 1, 5 and 10 of retrieving texts with images, and images with texts. A query is a hit at K if any of its right
answers is among its first K. A wrong answer with the same score as the best right one counts as ahead of it.
"""

_INPUTS = """
Args:
    predictions: for each image its scores with every text; higher is better.
    references: the group of each image, a string or an integer.
    text_groups: the group of each text, of the same type. A text is a right answer for the images of its group.
Returns:
    image_to_text_r1, image_to_text_r5, image_to_text_r10, text_to_image_r1, text_to_image_r5, text_to_image_r10 and
    mean_recall (of the six), as fractions; and what a random order would reach, under names that begin with "chance_".
Example:
    >>> metric.compute(predictions=[[0.9, 0.1], [0.2, 0.7]], references=["cat", "dog"], text_groups=["cat", "dog"])
"""

_CITATION = """
@inproceedings{li2021align,
  title={Align before Fuse: Vision and Language Representation Learning with Momentum Distillation},
  author={Li, Junnan and Selvaraju, Ramprasaath R. and Gotmare, Akhilesh and Joty, Shafiq and Xiong, Caiming and
          Hoi, Steven},
  booktitle={Advances in Neural Information Processing Systems},
  year={2021}
}
"""

# Groups may be strings or integers; `evaluate` takes the first of these that fits.
_FEATURES = [
    datasets.Features(
        {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value(group)}
    )
    for group in ("string", "int64")
]


class RetrievalRecall(evaluate.Metric):
    """See the module; the arithmetic is that of `albef_hf.evaluation.recall`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(_DESCRIPTION, _CITATION, _FEATURES, _INPUTS)

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[str] | list[int],
        text_groups: list[str] | list[int] | None = None,
    ) -> dict[str, float]:
        if text_groups is None:
            raise ValueError("text_groups is missing: give the group of each text (column of the scores)")
        scores = torch.as_tensor(predictions, dtype=torch.float64)
        metrics, chance = recall_from_scores(scores, references, text_groups)
        return metrics | {f"chance_{name}": value for name, value in chance.items()}
