"""How a task is measured, and what came out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from ..data.arguments import DataArguments
from ..data.retrieval import RetrievalData
from ..evaluation.grounding import Grounding
from ..evaluation.protocols import RetrievalProtocol
from ..evaluation.retrieval import RetrievalResult


@dataclass
class TaskSettings:
    """How to measure.

    Args:
        data: `max_image_pixels` and `workers` are used.
        accelerator: knows the ranks and the device; without one this process does everything where the model is.
        batch_size: rows at a time.
        k: candidates that retrieval re-ranks.
        protocol: of retrieval, in place of k and the picture size.
        answers: what question answering may answer.
        ranked_answers: how many of them it scores in full.
    """

    data: DataArguments
    accelerator: Accelerator | None = None
    batch_size: int = 64
    k: int = 0
    protocol: RetrievalProtocol | None = None
    answers: Sequence[str] = ()
    ranked_answers: int = 128


@dataclass
class TaskResult:
    """What an evaluation found.

    Args:
        name: of the evaluated data.
        samples: how many rows.
        metrics: fractions by name; empty where the rows hold no right answers.
        baselines: what needs no model reaches in the metric that matters most, by name.
        predictions: one a row, in the form in which the task's server takes them; see `predictions.py`.
        details: tables: `confusion` (rows are true classes), `labels`, `accuracy_per_question_type` ...
        correct: one a row, how right the prediction was, in 0 .. 1; empty where that is not known.
        retrieval, retrieval_data: of retrieval, which has its own tables.
        groundings: of grounding, one a row.
    """

    name: str
    samples: int
    metrics: dict[str, float]
    baselines: dict[str, float] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    correct: list[float] = field(default_factory=list)
    retrieval: RetrievalResult | None = None
    retrieval_data: RetrievalData | None = None
    groundings: list[Grounding] = field(default_factory=list)
