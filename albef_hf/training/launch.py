"""What every training script does around the loop: set up, describe, train and finish a run."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..data.arguments import DataArguments
from ..data.batches import TrainingData
from ..data.lines import append_lines
from ..trainable import Trainable
from .arguments import ModelArguments, TrainingArguments
from .dry_run import describe_memory
from .identity import claim, identify
from .loop import train
from .position import Length, run_length
from .processes import build_accelerator, idle_note, settled_precision
from .stopping import StopSignal, parent_note

MADE_AGAIN = "The trained weights are saved; --resume makes again what is missing"


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
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    accelerator = build_accelerator(arguments)
    arguments = dataclasses.replace(arguments, mixed_precision=settled_precision(arguments, accelerator.print))
    groups = (model_arguments, data_arguments, arguments, *others)
    folder = Path(arguments.output_dir)
    if arguments.dry_run:
        _show(_build(run_class, groups, arguments, accelerator)[0], arguments, accelerator)
        return
    with claim(folder, arguments.resume, arguments.overwrite, accelerator) as claimed:
        run, length = _build(run_class, groups, arguments, accelerator)
        identify(claimed, groups, run.data, accelerator)
        if arguments.evaluate_epochs:
            every = max(1, round(arguments.evaluate_epochs * length.steps_per_epoch))
            arguments = dataclasses.replace(arguments, evaluate_every=every)
        if accelerator.num_processes == 1:
            alone = "note: sharding needs several processes; this one holds everything" if arguments.sharding else None
            for note in filter(None, (parent_note(), idle_note(), alone)):
                print(note)
        if arguments.report_to != "none":
            with attempt(f"starting {arguments.report_to}", folder, then="The run goes on without it"):
                accelerator.init_trackers(name)
        with StopSignal() as stop:
            method = train(
                run.method,
                run.data,
                arguments,
                accelerator,
                max_rejected_fraction=data_arguments.max_rejected_fraction,
                evaluate=run.evaluate if run.evaluation_name else None,
                evaluation_name=run.evaluation_name,
                evaluated=run.evaluated,
                claim=claimed,
                stop=stop,
            )
            try:
                with stop.stopping_at_once():
                    run.finish(method, folder, length.total_steps)
            except SystemExit:
                accelerator.print(f"stopped before the run was complete. {MADE_AGAIN}")
                raise
        with attempt(f"closing {arguments.report_to}", folder, length.total_steps, then="The run is complete"):
            accelerator.end_training()


def _build(
    run_class: Callable[..., Run], groups: tuple[Any, ...], arguments: TrainingArguments, accelerator: Accelerator
) -> tuple[Run, Length]:
    """Build a run, and print its sizes."""
    set_seed(arguments.seed)
    run = run_class(*groups, accelerator=accelerator)
    trainable = sum(p.numel() for p in run.method.parameters() if p.requires_grad)
    length = run_length(arguments, run.data)
    accelerator.print(
        f"{trainable:,} trainable parameters, {run.data.rows:,} rows, {length.total_steps:,} steps "
        f"({length.steps_per_epoch:,} an epoch)"
    )
    return run, length


def _show(run: Run, arguments: TrainingArguments, accelerator: Accelerator) -> None:
    """Draw the first batch, and print the memory of a step."""
    if accelerator.is_main_process:
        batch = next(run.data.batches())
        batch.pop("rejected")
        print(f"first batch: {run.draw(batch, Path(arguments.output_dir) / 'first_batch.png')}")
        batch = run.data.to_device(batch, torch.device("cpu"))
        unsplit = ", without sharding" if arguments.sharding else ""
        print(f"memory of a step{unsplit}: {describe_memory(run.method, batch, arguments, accelerator)}")


@contextmanager
def attempt(what: str, folder: Path, step: int = 0, then: str = MADE_AGAIN) -> Iterator[None]:
    """A context for what the training does not need. If it fails, that costs a warning: printed, and in the log.

    Args:
        what: is done, for the warning.
        folder: of the run.
        step: of the row.
        then: what the failure means for the run.
    """
    try:
        yield
    except Exception as error:
        text = f"{what} failed: {type(error).__name__}: {error}. {then}"
        print(f"warning: {text}")
        with contextlib.suppress(OSError):
            append_lines(folder / "log.jsonl", [{"kind": "warning", "step": step, "text": text, "again": True}])
