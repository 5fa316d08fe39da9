"""Batches of any task, made by its own `prepare` and `collate`.

Training replaces and counts a row that cannot be used, as pre-training does. Evaluation stops with an error that names
the row, since results are comparable only over the same rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.batches import Collator, Samples, TrainingData, started
from ..data.corpora import Corpora
from ..data.images import BadImage
from ..evaluation.mode import failing_together
from .task import Task


class TaskSamples(Samples):
    """Training samples made from the rows of a task."""

    def __init__(self, task: Task, corpus: Corpora, seed: int) -> None:
        super().__init__(corpus, task.settings.data, seed)
        self.task = task

    def prepare(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        return self.task.prepare(row, generator, training=True)


class TaskCollator(Collator):
    """Training samples -> the arguments of the task's model, and `rejected`: the rows that were replaced."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        rejected = [entry for sample in samples for entry in sample["rejected"]]
        return {**self.task.collate(samples, training=True), "rejected": rejected}


def build_task_data(
    task: Task,
    parts: Mapping[str, datasets.Dataset],
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    weights: Sequence[float] | None = None,
    accumulation: int = 1,
) -> TrainingData:
    """Make the training batches of a task.

    Args:
        parts: data sets as `task.load` returns them, by name, such as VQA v2 and Visual Genome.
        batch_size: samples of this rank's batches.
        seed: of the order of rows and of every random choice about them.
        weights: shares of the parts in an epoch; where left out, every row comes once.
        accumulation: micro-batches of an optimizer step.
    """
    samples = TaskSamples(task, Corpora(list(parts.values()), list(parts), weights), seed)
    loading = {"workers": task.settings.data.workers, "accumulation": accumulation}
    return TrainingData(samples, TaskCollator(task), batch_size, seed, rank, world_size, **loading)


def sampled_texts(task: Task, rows: datasets.Dataset, wanted: int = 64) -> list[str]:
    """The texts of some rows, spread over the data set. Rows that cannot be used are left out."""
    texts = []
    for row in range(0, len(rows), max(1, len(rows) // wanted)):
        try:
            texts.append(task.prepare(rows[row], np.random.default_rng(row), training=True)["text"])
        except BadImage:
            continue
    return texts


class _EvaluationRows(Dataset):
    """Evaluation samples in the order of the rows. A row that cannot be used is an error."""

    def __init__(self, task: Task, rows: datasets.Dataset, name: str) -> None:
        self.task, self.rows, self.name = task, rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        try:
            return self.task.prepare(self.rows[row], np.random.default_rng(row), training=False)
        except BadImage as problem:
            raise ValueError(f"{self.name}, row {row}: {problem.reason}") from problem


def evaluation_batches(
    task: Task,
    rows: datasets.Dataset,
    name: str = "evaluation data",
    batches: Sequence[Sequence[int]] | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of rows, unaugmented: those of `batches`, or every row once, in order.

    Args:
        batches: row numbers; where left out, batches of `evaluation_batch_size` (of the task's settings), of which the
            last may be smaller.

    Raises:
        ValueError: a row cannot be used; names the data set, the row and the column.
    """
    loader = DataLoader(
        _EvaluationRows(task, rows, name),
        **({"batch_size": task.settings.evaluation_batch_size} if batches is None else {"batch_sampler": batches}),
        collate_fn=partial(task.collate, training=False),
        num_workers=task.settings.data.workers,
        generator=torch.Generator(),
    )
    yield from started(loader)


def predict_rows(
    task: Task,
    model: nn.Module,
    rows: datasets.Dataset,
    name: str,
    predict: Callable[[dict[str, torch.Tensor]], list[Any]],
) -> list[Any]:
    """Predict every row, in order. Ranks share the rows, and every rank gets all predictions.

    Args:
        predict: a batch of `evaluation_batches` on the model's device -> a prediction for each row, which can be
            pickled.
    """
    numbers = rows_of_rank(len(rows), task.settings.accelerator)
    label = name if numbers.step == 1 else f"{name} (every row {numbers.step} n + {numbers.start})"
    device = next(model.parameters()).device
    predictions: list[Any] = []
    progress = tqdm(total=len(numbers), desc=name, disable=None, leave=False)
    with failing_together(), torch.inference_mode(), progress as bar:
        for batch in evaluation_batches(task, rows.select(numbers), label):
            made = predict({key: tensor.to(device) for key, tensor in batch.items()})
            predictions += made
            bar.update(len(made))
    return gather_rows(numbers, predictions)


def rows_of_rank(count: int, accelerator: Accelerator | None) -> range:
    """The row numbers out of `count` that this rank measures: every n-th, where there are n ranks."""
    if accelerator is None:
        return range(count)
    return range(accelerator.process_index, count, accelerator.num_processes)


def gather_rows(numbers: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """Collect the values of all ranks, in the order of their row numbers. Every rank gets all of them."""
    pairs = gather_object(list(zip(numbers, values, strict=True)))
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]
