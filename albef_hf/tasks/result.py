"""What a task is told, and what its evaluation gives."""

from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from ..data.arguments import DataArguments
from ..data.retrieval import RetrievalData
from ..evaluation.protocols import RetrievalProtocol
from ..evaluation.retrieval import RetrievalResult


@dataclass
class TaskSettings:
    """How a task makes its samples and how it is measured. A task reads the fields that concern it.

    Args:
        data: `augmentation_options`, `max_image_pixels` and `workers` are used.
        accelerator: knows the ranks; without one this process measures every row itself.
        evaluation_batch_size: rows at a time when nothing trains.
        fixed_length: captions are padded to the full length in training, so that ranks agree on it.
        rerank: candidates of each query that retrieval re-ranks by matching.
        protocol: of retrieval; it sets the picture size and the number of candidates itself.
        answer_list: file with the answers that question answering may give; those of the training data if left out.
        ranked_answers: how many of them it scores in full.
    """

    data: DataArguments = field(default_factory=DataArguments)
    accelerator: Accelerator | None = None
    evaluation_batch_size: int = 64
    fixed_length: bool = False
    rerank: int = 0
    protocol: RetrievalProtocol | None = None
    answer_list: str | None = None
    ranked_answers: int = 128


@dataclass
class TaskResult:
    """What the evaluation of a task on one data set gives.

    Args:
        name: of the data set.
        samples: how many rows were measured.
        metrics: fractions in 0 .. 1 by name; empty where the rows hold no right answers.
        baselines: what needs no model reaches in the metric that chooses, by name.
        predictions: one a row, as `Task.write_predictions` takes them.
        details: tables for `results.json` and the report, such as `confusion`.
        correct: one a row, how right the prediction was, in 0 .. 1; empty where that is not known.
        extras: one a row, whatever else `Task.example` shows of it; empty for nothing.
        retrieval, retrieval_data: a retrieval and its images and texts, for the table and the gallery of the report.
    """

    name: str
    samples: int
    metrics: dict[str, float]
    baselines: dict[str, float] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    correct: list[float] = field(default_factory=list)
    extras: list[Any] = field(default_factory=list)
    retrieval: RetrievalResult | None = None
    retrieval_data: RetrievalData | None = None
