"""What every training script does around the loop: set up, describe, train and finish a run."""

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from ..data.arguments import DataArguments
from ..data.batches import TrainingData
from ..trainable import Trainable
from .arguments import ModelArguments, TrainingArguments, resolved
from .dry_run import describe_memory
from .loop import build_accelerator, run_length, train

PACKAGES = ("albef-hf", "torch", "transformers", "datasets", "accelerate", "timm")


class Run:
    """Base of runs: what is trained, on which data, how it is evaluated, and what follows training.

    A subclass takes all groups of arguments and an `accelerator`, and sets the attributes.

    Attributes:
        method: the model or method to train.
        data: its training batches.
        evaluation_name: name of the data that `evaluate` measures on; empty: it is not called.
    """

    method: Trainable
    data: TrainingData
    evaluation_name = ""

    def evaluate(self, method: Any) -> dict[str, float]:
        """Measure metrics during training. Called on all ranks."""
        raise NotImplementedError

    def evaluated(self, method: Any, step: int, metrics: dict[str, float]) -> None:
        """Called on all ranks after each evaluation in the loop, with its metrics."""

    def draw(self, batch: dict[str, Any], path: Path) -> Path:
        """Draw the first batch into the picture file `path`, and return that path."""
        raise NotImplementedError

    def finish(self, method: Any, folder: Path, step: int) -> None:
        """Called on all ranks after the last step: evaluate, save and report. folder: of the run."""
        raise NotImplementedError


def launch(
    run_class: Callable[..., Run],
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainingArguments,
    *others: Any,
    name: str,
) -> None:
    """Build a run and train it. With `dry_run`, only print its sizes and draw its first batch.

    Args:
        run_class: called with all groups of arguments and an `accelerator`.
        others: further groups of arguments.
        name: of the project in trackers.
    """
    groups = (model_arguments, data_arguments, arguments, *others)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    accelerator = build_accelerator(arguments)
    set_seed(arguments.seed)
    run = run_class(*groups, accelerator=accelerator)
    folder = Path(arguments.output_dir)
    trainable = sum(p.numel() for p in run.method.parameters() if p.requires_grad)
    length = run_length(arguments, run.data)
    accelerator.print(
        f"{trainable:,} trainable parameters, {run.data.rows:,} rows, {length.total_steps:,} steps "
        f"({length.steps_per_epoch:,} an epoch)"
    )
    if arguments.dry_run:
        if accelerator.is_main_process:
            batch = next(run.data.batches())
            batch.pop("rejected")
            print(f"first batch: {run.draw(batch, folder / 'first_batch.png')}")
            print(f"memory of a step: {describe_memory(run.method, run.data.to_device(batch, torch.device('cpu')))}")
        return
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(resolved(*groups), encoding="utf-8")
        versions = {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES}
        (folder / "versions.json").write_text(json.dumps(versions, indent=2), encoding="utf-8")
    accelerator.wait_for_everyone()
    if arguments.evaluate_epochs:
        every = max(1, round(arguments.evaluate_epochs * length.steps_per_epoch))
        arguments = dataclasses.replace(arguments, evaluate_every=every)
    if arguments.report_to != "none":
        accelerator.init_trackers(name)
    method = train(
        run.method,
        run.data,
        arguments,
        accelerator,
        max_rejected_fraction=data_arguments.max_rejected_fraction,
        evaluate=run.evaluate if run.evaluation_name else None,
        evaluation_name=run.evaluation_name,
        evaluated=run.evaluated,
    )
    run.finish(method, folder, length.total_steps)
    accelerator.end_training()
