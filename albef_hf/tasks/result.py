"""The settings of a task, and the result of its evaluation."""

from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from ..data.arguments import DataArguments
from ..data.retrieval import RetrievalData
from ..evaluation.protocols import RetrievalProtocol
from ..evaluation.retrieval import RetrievalResult


@dataclass
class TaskSettings:
    """How a task makes samples and is evaluated. Each task reads the fields that it needs.

    Args:
        data: `augmentation_options`, `max_image_pixels` and `workers` are used.
        accelerator: its ranks share the rows; None: this process measures every row.
        evaluation_batch_size: rows per device and batch in evaluation.
        fixed_length: pad captions to full length in training, so that ranks agree on it.
        rerank: candidates of each query that retrieval re-ranks by matching; 0: none.
        protocol: of retrieval; it sets picture size and `rerank` itself. None: no protocol.
        answer_list: file with answers for question answering; None: all answers of the training data.
        ranked_answers: candidate answers that question answering scores in full for each question.
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
    """The result of evaluating a task on one data set.

    Args:
        name: of the data set.
        samples: how many rows were measured.
        metrics: fractions in 0 .. 1 by name; empty where the rows hold no right answers.
        baselines: values of the main metric that are reached without a model, by name.
        predictions: one for each row, as `Task.write_predictions` takes them.
        details: tables for `results.json` and the report, such as `confusion`.
        correct: for each row, how correct the prediction is, in 0 .. 1; empty where that is not known.
        extras: for each row, what else `Task.example` shows; may be empty.
        retrieval, retrieval_data: a retrieval result and its data, for the table and the gallery of the report.
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
