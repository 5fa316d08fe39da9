"""A run of a downstream task, for `scripts/finetune.py`, `scripts/finetune_retrieval.py` and `scripts/evaluate.py`.

Validation chooses the weights. Test data is measured once, after the last step, with the chosen and with the last
weights; it chooses nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import nn

from ..data.arguments import DataArguments
from ..data.hints import nearest_hint
from ..data.vocabulary import check_vocabulary
from ..evaluation.mode import evaluation_mode
from ..evaluation.protocols import retrieval_protocol
from ..reporting.curves import plot_curves
from ..reporting.log import put_evaluation
from ..reporting.model_card import write_model_card
from ..tasks import TASKS, task_named
from ..tasks.batches import build_task_data, sampled_texts
from ..tasks.report import write_task_report
from ..tasks.result import TaskResult, TaskSettings
from ..tasks.task import Task
from .arguments import ModelArguments, TrainingArguments
from .best_weights import Chosen
from .checkpoints import saved_checkpoints
from .dry_run import draw_first_batch
from .initialization import build_task_model, load_trained_model
from .launch import Run, attempt, launch
from .processes import start_processes
from .task_arguments import TaskArguments, check_task_data, load_evaluation_rows, load_training_parts

CHOSEN, LAST = "chosen", "last"


def fine_tune(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainingArguments,
    task_arguments: TaskArguments,
    *,
    tasks: Sequence[type[Task]] = tuple(TASKS.values()),
) -> None:
    """Fine-tune on a task as the arguments say.

    Args:
        tasks: those that `task` may name.

    Raises:
        ValueError: `task` is none of them, or something else is wrong with the arguments or the data.
    """
    task_named(task_arguments.task, tasks)
    launch(TaskRun, model_arguments, data_arguments, arguments, task_arguments, name=task_arguments.task)


def task_settings(
    data_arguments: DataArguments,
    arguments: TrainingArguments,
    task_arguments: TaskArguments,
    accelerator: Accelerator,
    **others: Any,
) -> TaskSettings:
    """The settings of a task, from the arguments of a run. others: further fields of `TaskSettings`."""
    return TaskSettings(
        data_arguments,
        accelerator,
        evaluation_batch_size=task_arguments.evaluation_batch_size,
        rerank=arguments.rerank,
        answer_list=task_arguments.answer_list,
        ranked_answers=task_arguments.ranked_answers,
        **others,
    )


class TaskRun(Run):
    """Fine-tuning on a task, with validation during training and tests after it."""

    method: Any  # an ALBEF model that is `Trainable`

    def __init__(
        self,
        model_arguments: ModelArguments,
        data_arguments: DataArguments,
        arguments: TrainingArguments,
        task_arguments: TaskArguments,
        accelerator: Accelerator,
    ) -> None:
        self.accelerator = accelerator
        task_class = task_named(task_arguments.task)
        check_task_data(data_arguments)
        parts, weights = load_training_parts(task_class, data_arguments, task_arguments)
        classes = task_class.classes_of(parts)
        self.method, processor = build_task_model(task_class.model_class, model_arguments, classes)
        accelerator.print(f"{type(self.method).__name__}: {self.method.loading_report}")
        fixed_length = model_arguments.gather_negatives
        settings = task_settings(data_arguments, arguments, task_arguments, accelerator, fixed_length=fixed_length)
        self.task = task_class(processor, settings)
        self.task.prepare_training(parts)
        self.data = build_task_data(
            self.task,
            parts,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            accumulation=arguments.accumulation,
            weights=weights,
        )
        for name, rows_of_part in parts.items():
            for line in check_vocabulary(sampled_texts(self.task, rows_of_part), processor, name):
                accelerator.print(line)

        def rows(changes: Any, name: str, chooses: bool) -> datasets.Dataset:
            loaded = load_evaluation_rows(task_class, data_arguments, task_arguments, changes, name)
            self.task.check_rows(loaded, name, chooses)
            return loaded

        validation = task_arguments.validation
        self.validation = rows(validation, "validation", chooses=True) if validation else None
        self.tests = {name: rows(changes, name, chooses=False) for name, changes in task_arguments.tests.items()}
        self.evaluation_name = "" if self.validation is None else "validation"
        folder = Path(arguments.output_dir)
        resumed = bool(arguments.resume) and bool(saved_checkpoints(folder / "checkpoints"))
        metric, known = task_arguments.chosen_by or self.task.metric, self.task.metric_names()
        if metric not in known:
            raise ValueError(f"chosen_by {metric!r}: {nearest_hint(metric, known)}")
        self.chosen = Chosen(folder, metric, resumed, self.task.saved_files())
        self.measured = -1  # the step of the last validation

    def _measure(self, model: nn.Module, rows: datasets.Dataset, name: str) -> TaskResult:
        with evaluation_mode(model):
            return self.task.measure(model, rows, name)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on the validation data. Called on all ranks."""
        assert self.validation is not None
        return self._measure(model, self.validation, "validation").metrics

    def evaluated(self, method: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Keep these weights if they are the best by validation so far. Called on all ranks."""
        self.measured = step
        self.chosen.offer(method, self.task.processor, step, metrics, self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()

    def draw(self, batch: dict[str, Any], path: Path) -> Path:
        """See `Run.draw`."""
        return draw_first_batch(batch, self.task.processor, path)

    def finish(self, method: nn.Module, folder: Path, step: int) -> None:
        """Validate the last weights, measure the tests once, write the report. Called on all ranks."""
        main = self.accelerator.is_main_process
        if self.validation is None:
            self.evaluated(method, step, {})
        elif self.measured != step:
            metrics: dict[str, float] = {}
            with attempt("the last validation", folder, step):
                metrics = self.evaluate(method)
            if main and metrics:
                row = {"kind": "evaluation", "step": step, "name": self.evaluation_name, "metrics": metrics}
                put_evaluation(folder / "log.jsonl", row)
            if metrics or self.chosen.best is None:
                self.evaluated(method, step, metrics)
        assert self.chosen.best is not None
        results: dict[str, dict[str, TaskResult]] = {}
        last_is_chosen = self.chosen.kept == step
        chosen = method
        if not last_is_chosen:
            chosen, _ = load_trained_model(self.task.model_class, str(folder / "model"))
            chosen.to(self.accelerator.device)
        for name, rows in self.tests.items():
            with attempt(f"the measurement of {name}", folder, step):
                measured = self._measure(chosen, rows, name)
                last = measured if last_is_chosen else self._measure(method, rows, name)
                results[name] = {CHOSEN: measured, LAST: last}
        if not main:
            return
        save_results(folder, self.task, self.chosen.best, results, step)
        tables = {name: by_weights[CHOSEN] for name, by_weights in results.items()}
        with attempt("the report", folder, step):
            plot_curves(folder / "log.jsonl", folder / "curves.png")
            write_model_card(folder, folder / "model", task=self.task.card(tables))
            print(f"report: {write_task_report(folder, self.task, chosen, results, self.tests)}")


def save_results(
    folder: Path,
    task: Task,
    chosen: Mapping[str, Any],
    results: Mapping[str, Mapping[str, TaskResult]],
    step: int,
) -> None:
    """Write results.json with the metrics of each test, and the predictions of the chosen weights.

    results: by the name of the test, then by the weights, `chosen` or `last`.
    """
    summary: dict[str, Any] = {"task": task.name, "chosen": chosen, "last_step": step, "tests": {}}
    for name, by_weights in results.items():
        result = by_weights[CHOSEN]
        save_predictions(folder, task, result)
        summary["tests"][name] = {which: each.metrics for which, each in by_weights.items()}
        summary["tests"][name] |= {"baselines": result.baselines, "details": result.details}
        print_metrics(result)
    (folder / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def save_predictions(folder: Path, task: Task, result: TaskResult) -> None:
    """Write predictions into the folder `predictions` of a run folder."""
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    task.write_predictions(result, folder / "predictions")


def print_metrics(result: TaskResult) -> None:
    """Print a line for each metric and each baseline."""
    for name, value in result.metrics.items():
        print(f"{result.name:14} {name:32} {100 * value:6.2f} %")
    for name, value in result.baselines.items():
        print(f"{result.name:14} {'(' + name + ')':32} {100 * value:6.2f} %")


def evaluate_saved(
    model_path: str,
    protocol: str | None,
    data_arguments: DataArguments,
    arguments: TrainingArguments,
    task_arguments: TaskArguments,
) -> dict[str, TaskResult]:
    """Measure a saved model on the tests of a configuration. Predictions, results and a report are written into the
    folder `evaluated` in the output folder.

    Args:
        model_path: folder or Hub id of a model trained for the task.
        protocol: name of a retrieval protocol, which sets picture size and k; None: none.

    Returns: the result of each test, by its name.

    Raises:
        ValueError: there are no tests, the weights are of another class, or a protocol is given for another task.
    """
    task_class = task_named(task_arguments.task)
    check_task_data(data_arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    accelerator = start_processes()
    if not task_arguments.tests:
        raise ValueError("there is nothing to evaluate on: the configuration names no tests")
    if protocol is not None and not task_class.uses_protocol:
        raise ValueError(f"protocol {protocol!r} is for retrieval, but the task is {task_class.name}")
    model, processor = load_trained_model(task_class.model_class, model_path)
    model.to(accelerator.device).eval()
    settings = task_settings(
        data_arguments,
        arguments,
        task_arguments,
        accelerator,
        protocol=None if protocol is None else retrieval_protocol(protocol),
    )
    task = task_class(processor, settings)
    task.read_saved(model_path)
    rows = {
        name: load_evaluation_rows(task_class, data_arguments, task_arguments, changes, name)
        for name, changes in task_arguments.tests.items()
    }
    for name, each in rows.items():
        task.check_rows(each, name, chooses=False)
    folder = Path(arguments.output_dir) / "evaluated"
    folder.mkdir(parents=True, exist_ok=True)  # before the work, so that nothing is lost where it cannot be made
    results = {name: task.measure(model, each, name) for name, each in rows.items()}
    if accelerator.is_main_process:
        for result in results.values():
            save_predictions(folder, task, result)
            print_metrics(result)
        tests = {
            name: {"metrics": result.metrics, "baselines": result.baselines, "details": result.details}
            for name, result in results.items()
        }
        summary = {"task": task.name, "model": Path(model_path).name, "protocol": protocol, "tests": tests}
        (folder / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        by_weights = {name: {CHOSEN: result} for name, result in results.items()}
        print(f"report: {write_task_report(folder, task, model, by_weights, rows)}")
    return results
