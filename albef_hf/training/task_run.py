"""A run of a downstream task, for `scripts/finetune.py`, `scripts/finetune_retrieval.py` and `scripts/evaluate.py`.

Validation chooses the weights; test data is measured once, after the last step, with the chosen weights and with the
last ones, and nothing is chosen by it.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import nn

from ..data.arguments import DataArguments
from ..evaluation.protocols import retrieval_protocol
from ..reporting.log import append_row
from ..reporting.model_card import write_model_card
from ..tasks.batches import build_task_data
from ..tasks.card import task_card
from ..tasks.predictions import write_predictions
from ..tasks.report import write_task_report
from ..tasks.result import TaskResult, TaskSettings
from ..tasks.rows import answers_of, most_frequent_answers, read_answer_list
from ..tasks.task import TASK_KINDS, TaskKind, check_rows, metric_names
from .arguments import ModelArguments, TrainingArguments, nearest_choice
from .best_weights import Chosen
from .checkpoints import latest_checkpoint
from .dry_run import draw_first_batch
from .initialization import build_task_model, load_trained_model
from .task_arguments import TaskArguments, check_task_data, load_evaluation_rows, load_training_parts

ANSWERS = "answer_list.json"
CHOSEN, LAST = "chosen", "last"


def task_kind(task: str, allowed: Sequence[str] = tuple(TASK_KINDS)) -> TaskKind:
    """A task by name.

    Raises:
        ValueError: there is none of this name here; names the nearest.
    """
    if task not in allowed:
        nearest = difflib.get_close_matches(task, allowed, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(allowed)}"
        raise ValueError(f"unknown task {task!r}; {hint}")
    return TASK_KINDS[task]


class TaskRun:
    """What the scripts ask of every kind of run, see `launch.Run`."""

    def __init__(
        self,
        model_arguments: ModelArguments,
        data_arguments: DataArguments,
        arguments: TrainingArguments,
        task: TaskArguments,
        accelerator: Accelerator,
    ) -> None:
        self.arguments, self.data_arguments, self.task = arguments, data_arguments, task
        self.accelerator = accelerator
        self.kind = task_kind(task.task)
        check_task_data(data_arguments)
        self.method, self.processor = build_task_model(self.kind.model, model_arguments)
        accelerator.print(f"{type(self.method).__name__}: {self.method.loading_report}")
        parts, weights = load_training_parts(data_arguments, task, self.kind.rows)
        self.answers = self._answers(parts)
        self.data = build_task_data(
            self.kind.rows,
            parts,
            self.processor,
            data_arguments,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            weights=weights,
            fixed_length=model_arguments.gather_negatives,
        )
        self.validation = self._rows(task.validation, "validation") if task.validation else None
        self.tests = {name: self._rows(changes, name) for name, changes in task.tests.items()}
        self.evaluation_name = "" if self.validation is None else "validation"
        folder = Path(arguments.output_dir)
        goes_on = arguments.resume and latest_checkpoint(folder / "checkpoints") is not None
        files = {ANSWERS: json.dumps(self.answers, ensure_ascii=False)} if self.answers else {}
        metric = task.chosen_by or self.kind.metric
        if metric not in metric_names(task.task):
            raise ValueError(f"chosen_by {metric!r}: {nearest_choice(metric, metric_names(task.task))}")
        self.chosen = Chosen(folder, metric, goes_on, files)
        self.measured = -1  # the step of the last validation

    def _answers(self, parts: dict[str, datasets.Dataset]) -> list[str]:
        if self.task.task != "question_answering":
            return []
        if self.task.answer_list is not None:
            return read_answer_list(self.task.answer_list)
        rows = ({"answers": answers_of(row)} for part in parts.values() for row in part.select_columns(["answers"]))
        return most_frequent_answers(rows)

    def _rows(self, changes: Any, name: str) -> datasets.Dataset:
        rows = load_evaluation_rows(self.data_arguments, self.task, self.kind.rows, changes, name)
        check_rows(self.task.task, rows, name, self.arguments.rerank)
        if name == "validation" and self.task.task == "question_answering" and "answers" not in rows.column_names:
            raise ValueError(
                "validation has no answers to compare with: say which column with columns: {answers: ...}"
            )
        return rows

    def _measure(self, model: nn.Module, rows: datasets.Dataset, name: str) -> TaskResult:
        model.eval()
        settings = TaskSettings(
            self.data_arguments,
            self.accelerator,
            self.task.evaluation_batch_size,
            self.arguments.rerank,
            answers=self.answers,
            ranked_answers=self.task.ranked_answers,
        )
        return self.kind.measure(model, self.processor, rows, settings, name)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of the validation data. On all ranks."""
        assert self.validation is not None
        return self._measure(model, self.validation, "validation").metrics

    def evaluated(self, method: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Keep the weights that validation finds best. On all ranks."""
        self.measured = step
        self.chosen.offer(method, self.processor, step, metrics, self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()

    def draw(self, batch: dict[str, Any], path: Path) -> Path:
        """The first batch as a picture."""
        return draw_first_batch(batch, self.processor, path)

    def finish(self, method: nn.Module, folder: Path, step: int) -> None:
        """Validate the last weights, measure the tests once, write the report. On all ranks."""
        main = self.accelerator.is_main_process
        if self.validation is None:
            self.evaluated(method, step, {})
        elif self.measured != step:
            metrics = self.evaluate(method)
            if main:
                row = {"kind": "evaluation", "step": step, "name": self.evaluation_name, "metrics": metrics}
                append_row(folder / "log.jsonl", row)
            self.evaluated(method, step, metrics)
        assert self.chosen.best is not None
        results: dict[str, dict[str, TaskResult]] = {}
        last_is_chosen = self.chosen.kept == step
        chosen = method
        if not last_is_chosen:
            chosen, _ = load_trained_model(self.kind.model, str(folder / "model"))
            chosen.to(self.accelerator.device)
        for name, rows in self.tests.items():
            results[name] = {CHOSEN: self._measure(chosen, rows, name)}
            results[name][LAST] = results[name][CHOSEN] if last_is_chosen else self._measure(method, rows, name)
        if not main:
            return
        save_results(folder, self.task.task, self.chosen.best, results, step)
        tables = {name: found[CHOSEN] for name, found in results.items()}
        write_model_card(folder, folder / "model", task=task_card(self.task.task, tables))
        rows_of = {name: self.tests[name] for name in results}
        print(f"report: {write_task_report(folder, self.task.task, chosen, self.processor, results, rows_of)}")


def save_results(
    folder: Path, task: str, chosen: dict[str, Any], results: dict[str, dict[str, TaskResult]], step: int
) -> None:
    """results.json with the metrics of every test, by chosen and last weights; predictions of the chosen ones."""
    summary: dict[str, Any] = {"task": task, "chosen": chosen, "last_step": step, "tests": {}}
    for name, found in results.items():
        write_predictions(task, found[CHOSEN], folder / "predictions")
        summary["tests"][name] = {which: result.metrics for which, result in found.items()}
        summary["tests"][name] |= {"baselines": found[CHOSEN].baselines, "details": found[CHOSEN].details}
        print_metrics(found[CHOSEN])
    (folder / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def print_metrics(result: TaskResult) -> None:
    """A line for each metric and each baseline."""
    for name, value in result.metrics.items():
        print(f"{result.name:14} {name:32} {100 * value:6.2f} %")
    for name, value in result.baselines.items():
        print(f"{result.name:14} {'(' + name + ')':32} {100 * value:6.2f} %")


def evaluate_saved(
    model_path: str,
    protocol: str | None,
    data_arguments: DataArguments,
    arguments: TrainingArguments,
    task: TaskArguments,
) -> dict[str, TaskResult]:
    """Measure a saved model on the tests of a configuration; predictions and a report go into `evaluated` of the
    output folder.

    Args:
        model_path: folder or Hub id of a model trained for the task.
        protocol: name of a retrieval protocol, which sets the picture size and k.

    Raises:
        ValueError: no tests, weights of another kind of model, or a protocol for another task than retrieval.
    """
    kind = task_kind(task.task)
    check_task_data(data_arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    accelerator = Accelerator()
    if not task.tests:
        raise ValueError("there is nothing to evaluate on: the configuration names no tests")
    if protocol is not None and task.task != "retrieval":
        raise ValueError(f"protocol {protocol!r} is of retrieval, and the task is {task.task}")
    model, processor = load_trained_model(kind.model, model_path)
    model.to(accelerator.device).eval()
    settings = TaskSettings(
        data_arguments,
        accelerator,
        task.evaluation_batch_size,
        arguments.rerank,
        None if protocol is None else retrieval_protocol(protocol),
        _saved_answers(model_path, task),
        task.ranked_answers,
    )
    rows = {
        name: load_evaluation_rows(data_arguments, task, kind.rows, changes, name)
        for name, changes in task.tests.items()
    }
    results = {name: kind.measure(model, processor, each, settings, name) for name, each in rows.items()}
    if accelerator.is_main_process:
        folder = Path(arguments.output_dir) / "evaluated"
        for result in results.values():
            write_predictions(task.task, result, folder / "predictions")
            print_metrics(result)
        found = {
            name: {"metrics": r.metrics, "baselines": r.baselines, "details": r.details} for name, r in results.items()
        }
        summary = {"task": task.task, "model": Path(model_path).name, "protocol": protocol, "tests": found}
        (folder / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        by_weights = {name: {CHOSEN: result} for name, result in results.items()}
        print(f"report: {write_task_report(folder, task.task, model, processor, by_weights, rows)}")
    return results


def _saved_answers(model_path: str, task: TaskArguments) -> list[str]:
    """The answers a model was trained to give, unless others are asked for."""
    if task.task != "question_answering":
        return []
    beside = Path(model_path) / ANSWERS
    if task.answer_list is None and not beside.is_file():
        raise ValueError(f"question answering ranks a list of answers: set answer_list, there is no {beside}")
    return read_answer_list(task.answer_list if task.answer_list is not None else beside)
