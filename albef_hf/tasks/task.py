"""A model of a downstream task on rows it has not seen: predictions, metrics, and what needs no model reaches.

Everything runs in the dtype of the model's weights. Ranks share the rows; every rank gets the whole result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from ..data.retrieval import gallery
from ..evaluation.answers import answer_accuracy, answer_metrics
from ..evaluation.boxes import intersection_over_union
from ..evaluation.classification import classification_metrics, majority
from ..evaluation.grounding import AlbefGrounder, Grounding, GroundingSample, evaluate_grounding
from ..evaluation.recall import CUTOFFS
from ..evaluation.retrieval import RERANKED, check_candidates, evaluate_retrieval
from ..modeling_albef_assignment import AlbefForTextAssignment
from ..modeling_albef_classification import AlbefForVisualEntailment, AlbefForVisualReasoning
from ..modeling_albef_loading import AlbefPreTrainedModel
from ..modeling_albef_question_answering import AlbefForQuestionAnswering
from ..modeling_albef_retrieval import AlbefForImageTextRetrieval
from ..processing_albef import AlbefProcessor
from .batches import RETRIEVAL_TOKENS, evaluation_batches, tokenize_answers
from .result import TaskResult, TaskSettings
from .rows import answers_of, label_number

ANSWERS_KEPT = 5


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _predict(
    task: str,
    processor: AlbefProcessor,
    rows: datasets.Dataset,
    settings: TaskSettings,
    name: str,
    predict: Callable[[dict[str, torch.Tensor]], list[Any]],
) -> list[Any]:
    """`predict` of every row, in order. Each rank does every so many-th row."""
    place, ranks = 0, 1
    if settings.accelerator is not None:
        place, ranks = settings.accelerator.process_index, settings.accelerator.num_processes
    mine = range(place, len(rows), ranks)
    label = name if ranks == 1 else f"{name} (every row {ranks} n + {place})"
    batches = evaluation_batches(
        task, rows.select(mine), processor, settings.data, batch_size=settings.batch_size, name=label
    )
    found: list[Any] = []
    with torch.inference_mode(), tqdm(total=len(mine), desc=name, disable=None, leave=False) as bar:
        for batch in batches:
            made = predict(batch)
            found += made
            bar.update(len(made))
    together = gather_object(list(zip(mine, found, strict=True)))
    return [value for _, value in sorted(together, key=lambda pair: pair[0])]


# ---------------------------------------------------------------------------------------------------------------------
# Question answering
# ---------------------------------------------------------------------------------------------------------------------


def measure_answers(
    model: AlbefForQuestionAnswering,
    processor: AlbefProcessor,
    rows: datasets.Dataset,
    settings: TaskSettings,
    name: str = "questions",
) -> TaskResult:
    """VQA accuracy of the answers ranked highest; without answers in the rows, predictions alone.

    Raises:
        ValueError: there is nothing to answer with.
    """
    answers = list(settings.answers)
    if not answers:
        raise ValueError("question answering ranks a list of answers: set answer_list")
    device = _device(model)
    candidates = {name: tensor.to(device) for name, tensor in tokenize_answers(processor, answers).items()}

    def predict(batch: dict[str, torch.Tensor]) -> list[Any]:
        ranking = model.rank_answers(
            batch["input_ids"].to(device),
            batch["pixel_values"].to(device),
            batch["attention_mask"].to(device),
            candidate_input_ids=candidates["input_ids"],
            candidate_attention_mask=candidates["attention_mask"],
            k=settings.ranked_answers,
        )
        assert ranking.answer_ids is not None and ranking.probabilities is not None
        best, probabilities = (
            values[:, :ANSWERS_KEPT].tolist() for values in (ranking.answer_ids, ranking.probabilities)
        )
        return [
            [(answers[number], probability) for number, probability in zip(*row, strict=True)]
            for row in zip(best, probabilities, strict=True)
        ]

    ranked = _predict("question_answering", processor, rows, settings, name, predict)
    given = [row[0][0] for row in ranked]
    identifiers = rows["question_id"] if "question_id" in rows.column_names else range(len(rows))
    predictions = [
        {"question_id": identifier, "answer": answer, "ranked": row}
        for identifier, answer, row in zip(identifiers, given, ranked, strict=True)
    ]
    result = TaskResult(name, len(rows), {}, predictions=predictions)
    if "answers" not in rows.column_names:
        return result
    references = [answers_of(row) for row in rows.select_columns(["answers"])]
    kinds = {
        key: list(rows[column])
        for key, column in (("question_types", "question_type"), ("answer_types", "answer_type"))
        if column in rows.column_names
    }
    found = answer_metrics(given, references, **kinds)
    result.metrics = {key: value for key, value in found.items() if isinstance(value, float)}
    result.details = {key: value for key, value in found.items() if not isinstance(value, float)}
    result.correct = [answer_accuracy(answer, right) for answer, right in zip(given, references, strict=True)]
    one = majority([majority(right) for right in references])
    result.baselines["most frequent answer"] = float(answer_metrics([str(one)] * len(rows), references)["accuracy"])  # type: ignore[arg-type]
    if "question_types" in kinds:
        of_kind: dict[str, list[Any]] = {}
        for kind, right in zip(kinds["question_types"], references, strict=True):
            of_kind.setdefault(kind, []).append(majority(right))
        guesses = [str(majority(of_kind[kind])) for kind in kinds["question_types"]]
        result.baselines["most frequent answer of a question's type"] = float(
            answer_metrics(guesses, references)["accuracy"]  # type: ignore[arg-type]
        )
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


def _classified(
    name: str, predicted: Sequence[int], references: Sequence[int], classes: Sequence[str], rows: list[dict[str, Any]]
) -> TaskResult:
    found = classification_metrics(predicted, references, classes)
    frequent = np.bincount(references).max() / len(references)
    return TaskResult(
        name,
        len(references),
        {"accuracy": found["accuracy"]},
        {"most frequent class": float(frequent)},
        rows,
        {"labels": list(classes), "confusion": found["confusion"], "accuracy_per_class": found["accuracy_per_class"]},
        [float(a == b) for a, b in zip(predicted, references, strict=True)],
    )


def _measure_classes(
    task: str, model: Any, processor: AlbefProcessor, rows: datasets.Dataset, settings: TaskSettings, name: str
) -> TaskResult:
    device = _device(model)

    def predict(batch: dict[str, torch.Tensor]) -> list[Any]:
        inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask", "pixel_values")}
        return model(**inputs).logits.softmax(1).tolist()

    probabilities = _predict(task, processor, rows, settings, name, predict)
    predicted = [int(np.argmax(row)) for row in probabilities]
    references = [label_number(task, value) for value in rows["label"]]
    identifiers = rows["identifier"] if "identifier" in rows.column_names else range(len(rows))
    listed = [
        {"identifier": identifier, "prediction": model.classes[number], "probabilities": row}
        for identifier, number, row in zip(identifiers, predicted, probabilities, strict=True)
    ]
    return _classified(name, predicted, references, model.classes, listed)


def measure_reasoning(
    model: AlbefForVisualReasoning,
    processor: AlbefProcessor,
    rows: datasets.Dataset,
    settings: TaskSettings,
    name: str = "reasoning",
) -> TaskResult:
    """Accuracy of True and False over two images."""
    return _measure_classes("visual_reasoning", model, processor, rows, settings, name)


def measure_entailment(
    model: AlbefForVisualEntailment,
    processor: AlbefProcessor,
    rows: datasets.Dataset,
    settings: TaskSettings,
    name: str = "entailment",
) -> TaskResult:
    """Accuracy of contradiction, neutral and entailment."""
    return _measure_classes("visual_entailment", model, processor, rows, settings, name)


def measure_assignment(
    model: AlbefForTextAssignment,
    processor: AlbefProcessor,
    rows: datasets.Dataset,
    settings: TaskSettings,
    name: str = "assignment",
) -> TaskResult:
    """Accuracy of text assignment: images of a batch are drawn beside each other by numbers that depend on its place
    alone. Every rank does all rows, since what is drawn depends on the batch."""
    device = _device(model)
    generator = torch.Generator().manual_seed(0)
    predicted: list[int] = []
    references: list[int] = []
    options = {"batch_size": settings.batch_size, "name": name}
    with torch.inference_mode():
        for batch in evaluation_batches("retrieval", rows, processor, settings.data, **options):  # type: ignore[arg-type]
            count = len(batch["input_ids"])
            if count < 3:  # too few to draw others from
                continue
            batch["assignment_draws"] = torch.rand(count, 3, generator=generator)
            output = model(**{key: value.to(device) for key, value in batch.items()})
            counts = output.labels >= 0
            predicted += output.logits.argmax(1)[counts].tolist()
            references += output.labels[counts].tolist()
    if not references:
        raise ValueError(f"{name}: text assignment needs three rows or more in a batch, there are {len(rows)} rows")
    return _classified(name, predicted, references, model.classes, [])


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval and grounding
# ---------------------------------------------------------------------------------------------------------------------


def measure_retrieval(
    model: AlbefForImageTextRetrieval,
    processor: AlbefProcessor,
    rows: datasets.Dataset,
    settings: TaskSettings,
    name: str = "retrieval",
) -> TaskResult:
    """Recalls in both directions, with k candidates re-ranked by matching, or as a named protocol lays down."""
    data = gallery(rows, "image_id", name)
    options: dict[str, Any] = {"batch_size": settings.batch_size, "accelerator": settings.accelerator}
    options["workers"] = settings.data.workers
    if settings.protocol is not None:
        found = settings.protocol.evaluate(model, processor, data, **options)
    else:
        found = evaluate_retrieval(model, processor, data, k=settings.k, max_length=RETRIEVAL_TOKENS, **options)
    last = RERANKED if found.k > 0 else ""
    metrics = dict(found.metrics)
    metrics["final_mean_recall"] = found.metrics[f"{last}mean_recall"]
    return TaskResult(
        name,
        len(data.image_groups),
        metrics,
        {"random order": found.chance["mean_recall"]},
        retrieval=found,
        retrieval_data=data,
    )


class _Found:
    """Boxes that have been found, handed out again."""

    def __init__(self, groundings: Sequence[Grounding]) -> None:
        self.left = iter(groundings)

    def ground(self, samples: Sequence[GroundingSample]) -> list[Grounding]:
        return [next(self.left) for _ in samples]


def grounding_samples(rows: datasets.Dataset) -> list[GroundingSample]:
    """Rows of the grounding task. Pictures stay undecoded."""
    return [
        GroundingSample(row["image"], row["expression"], row.get("box"), row.get("proposals") or ()) for row in rows
    ]


def measure_grounding(
    model: AlbefForImageTextRetrieval,
    processor: AlbefProcessor,
    rows: datasets.Dataset,
    settings: TaskSettings,
    name: str = "grounding",
) -> TaskResult:
    """How often the box with most heat is the right one; beside it the middle one, a random one, the best there is."""
    samples = grounding_samples(rows)
    grounder = AlbefGrounder(model, processor)
    place, ranks = 0, 1
    if settings.accelerator is not None:
        place, ranks = settings.accelerator.process_index, settings.accelerator.num_processes
    mine = range(place, len(samples), ranks)
    found: list[tuple[int, Grounding]] = []
    for start in tqdm(range(0, len(mine), settings.batch_size), desc=name, disable=None, leave=False):
        numbers = mine[start : start + settings.batch_size]
        found += zip(numbers, grounder.ground([samples[number] for number in numbers]), strict=True)
    groundings = [value for _, value in sorted(gather_object(found), key=lambda pair: pair[0])]
    metrics = evaluate_grounding(_Found(groundings), samples, settings.batch_size)  # type: ignore[arg-type]
    names = {
        "centre_box_accuracy": "the box in the middle",
        "random_box_accuracy": "a box at random",
        "best_proposal_accuracy": "the best proposal, the most there is to reach",
    }
    overlaps = [
        float(intersection_over_union(each.box, np.asarray(sample.box)))
        for each, sample in zip(groundings, samples, strict=True)
    ]
    predictions = [
        {"row": row, "expression": sample.expression, "box": [round(float(edge), 2) for edge in each.box]}
        for row, (sample, each) in enumerate(zip(samples, groundings, strict=True))
    ]
    return TaskResult(
        name,
        len(samples),
        {"accuracy": metrics.pop("accuracy")},
        {names[key]: value for key, value in metrics.items()},
        predictions,
        correct=[float(overlap >= 0.5) for overlap in overlaps],
        groundings=groundings,
    )


def check_rows(task: str, rows: datasets.Dataset, name: str, k: int = 0) -> None:
    """Can these rows be measured? Asked before anything trains.

    Raises:
        ValueError: boxes are missing, or more candidates are to be re-ranked than there are.
    """
    if task == "grounding" and "box" not in rows.column_names:
        raise ValueError(f"{name} has no boxes to compare with: say which column with columns: {{box: ...}}")
    if task == "retrieval":
        data = gallery(rows, "image_id", name)
        check_candidates(k, len(data.image_groups), len(data.texts))


def metric_names(task: str) -> list[str]:
    """The metrics that can choose weights."""
    if task != "retrieval":
        return [TASK_KINDS[task].metric]
    directions = [f"{direction}_r{cutoff}" for direction in ("image_to_text", "text_to_image") for cutoff in CUTOFFS]
    names = [*directions, "mean_recall"]
    return ["final_mean_recall", *names, *(RERANKED + name for name in names)]


@dataclass(frozen=True)
class TaskKind:
    """A task: its model, the form of its rows (`data.tasks.TASKS`), how it is measured, and which metric matters."""

    model: type[AlbefPreTrainedModel]
    rows: str
    measure: Callable[..., TaskResult]
    metric: str


TASK_KINDS: Mapping[str, TaskKind] = {
    "retrieval": TaskKind(AlbefForImageTextRetrieval, "retrieval", measure_retrieval, "final_mean_recall"),
    "question_answering": TaskKind(AlbefForQuestionAnswering, "question_answering", measure_answers, "accuracy"),
    "visual_reasoning": TaskKind(AlbefForVisualReasoning, "visual_reasoning", measure_reasoning, "accuracy"),
    "visual_entailment": TaskKind(AlbefForVisualEntailment, "visual_entailment", measure_entailment, "accuracy"),
    "text_assignment": TaskKind(AlbefForTextAssignment, "retrieval", measure_assignment, "accuracy"),
    "grounding": TaskKind(AlbefForImageTextRetrieval, "grounding", measure_grounding, "accuracy"),
}
