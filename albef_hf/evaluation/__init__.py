"""Measuring a model: retrieval, answers, classes, boxes, heat maps and frozen features."""

from pathlib import Path

from .recall import recall_from_scores
from .retrieval import RetrievalResult, evaluate_retrieval, read_result

# Folders for `evaluate.load`, which needs no network for them.
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
