"""Measuring a model, and what a run tells of itself.

`retrieval`, `recall`, `protocols`, `answers`, `classification`, `grounding` and `probes` measure. `curves`, `report`
and `model_card` draw and write; import them by their own names, they need matplotlib.
"""

from pathlib import Path

from .recall import recall_from_scores
from .retrieval import RetrievalResult, evaluate_retrieval, read_result

# `evaluate.load(RETRIEVAL_RECALL)` needs no network; nor do the others.
_METRICS = Path(__file__).parent / "metrics"
RETRIEVAL_RECALL = str(_METRICS / "retrieval_recall")
VQA_ACCURACY = str(_METRICS / "vqa_accuracy")
LABEL_ACCURACY = str(_METRICS / "label_accuracy")
GROUNDING_ACCURACY = str(_METRICS / "grounding_accuracy")

__all__ = [
    "GROUNDING_ACCURACY",
    "LABEL_ACCURACY",
    "RETRIEVAL_RECALL",
    "VQA_ACCURACY",
    "RetrievalResult",
    "evaluate_retrieval",
    "read_result",
    "recall_from_scores",
]
