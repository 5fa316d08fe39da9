"""Measuring a model, and what a run tells of itself.

`retrieval` and `recall` measure. `curves`, `report` and `model_card` draw and write; import them by their own names,
they need matplotlib.
"""

from pathlib import Path

from .recall import recall_from_scores
from .retrieval import RetrievalResult, evaluate_retrieval, read_result

# `evaluate.load(RETRIEVAL_RECALL)` needs no network.
RETRIEVAL_RECALL = str(Path(__file__).parent / "metrics" / "retrieval_recall")

__all__ = ["RETRIEVAL_RECALL", "RetrievalResult", "evaluate_retrieval", "read_result", "recall_from_scores"]
