"""The training loop, on one screen: forward, backward, enqueue, optimizer, momentum.

`albef_hf/trainable.py` lists everything that it calls on the method it trains.

A run is a pure function of its arguments: before each micro-batch torch's generators are seeded from (seed,
micro-batch, rank). So a run that is resumed from a checkpoint equals one that never stopped, bit for bit. A step
whose gradients are not finite changes no parameter; this is decided on the device, and the log counts such steps as
`skipped_steps`. After SIGTERM the run saves a checkpoint and exits with status 143; several ranks do so at the next
row of the log, where they agree on it.
"""

import contextlib
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from tqdm import tqdm

from ..data.batches import RejectionLog, TrainingData
from ..reporting.log import LogWriter
from ..trainable import Trainable
from .arguments import TrainingArguments
from .checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from .optimization import build_optimizer, learning_rates, scaled_rates


def build_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Make an Accelerator that does not broadcast buffers: queues are equal on all ranks already.

    Raises:
        ValueError: the tracker is unknown or not installed.
    """
    if arguments.report_to != "none":
        installed = [tracker.value for tracker in get_available_trackers()]
        if arguments.report_to not in installed:
            raise ValueError(
                f"report_to {arguments.report_to!r}: no such tracker is installed (there are: "
                f'{", ".join(installed) or "none"}); pip install "albef-hf[train]" for tensorboard, or set it to none'
            )
    return Accelerator(
        mixed_precision=arguments.mixed_precision,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_dir=arguments.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def device_name(device: torch.device) -> str:
    """The name of a device in the log."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


@dataclass
class Length:
    """Optimizer steps of a run and of an epoch."""

    steps_per_epoch: int
    total_steps: int


def run_length(arguments: TrainingArguments, data: TrainingData) -> Length:
    """The length of a run, from `max_steps` or else from `epochs`."""
    steps_per_epoch = max(1, data.steps_per_epoch // arguments.accumulation)
    return Length(steps_per_epoch, arguments.max_steps or math.ceil(arguments.epochs * steps_per_epoch))


class StopSignal:
    """A context in which SIGTERM only asks the loop to stop.

    Attributes:
        asked: this process got the signal.
        agreed: some rank got it and all ranks know, so they stop after this step.
    """

    def __init__(self) -> None:
        self.asked = self.agreed = False

    def __enter__(self) -> "StopSignal":
        self.before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.before)


class TrainingLog:
    """The rows of a run's log, its progress bar and its trackers. Scalars stay on the device between rows.

    Args:
        path: of log.jsonl, which only the main process writes.
        method, data, arguments, accelerator: as in `train`.
        length: of the run.
        start: the step that the run resumes from; 0 for a new run.
    """

    def __init__(
        self,
        path: Path,
        method: Trainable,
        data: TrainingData,
        arguments: TrainingArguments,
        accelerator: Accelerator,
        length: Length,
        start: int,
    ) -> None:
        self.method, self.data, self.arguments, self.accelerator = method, data, arguments, accelerator
        self.length = length
        main = accelerator.is_main_process
        self.writer = LogWriter(path, start) if main else None
        if self.writer is not None:
            self._describe(self.writer, start)
        self.bar = tqdm(total=length.total_steps, initial=start, disable=not main, desc="training", unit="step")
        self.sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        self.micro_batches, self.since, self.started = 0, time.monotonic(), time.monotonic()

    def _describe(self, writer: LogWriter, start: int) -> None:
        """Write the first row, and the method's warnings about the settings of the run."""
        method, batch_size = self.method, self.data.batch_size
        parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
        row: dict[str, Any] = {"kind": "run", "method": method.name, "chance": method.chance_losses(batch_size)}
        row |= {"levels": method.levels(batch_size), "parameters": parameters, "start": start}
        row |= {"devices": self.accelerator.num_processes, "device": device_name(self.accelerator.device)}
        writer.write(row | vars(self.length))
        known = {"rows": self.data.rows, "batch_size": batch_size, "total_steps": self.length.total_steps}
        for text in method.warnings(**known, optimizer=self.arguments.optimizer):
            self.accelerator.print(f"warning: {text}")
            writer.write({"kind": "warning", "step": start, "text": text})

    def add(self, output: Any) -> None:
        """Add the losses and metrics of a micro-batch."""
        losses = {name: value for name, value in output.items() if name.startswith("loss") and value is not None}
        for name, value in (losses | self.method.metrics(output)).items():
            self.sums[name] += value.detach().float()
        self.micro_batches += 1

    def add_step(self, norm: torch.Tensor, finite: torch.Tensor) -> None:
        """Add the gradient norm of an optimizer step, or count the step as skipped where the norm is not finite."""
        self.sums["gradient_norm"] += torch.where(finite, norm, 0.0)
        self.sums["skipped_steps"] += ~finite
        self.bar.update()

    def write(self, step: int, output: Any, scheduled: dict[str, float], stop: StopSignal) -> None:
        """Write the means since the last row, and let the ranks agree on stopping. This reads from the device once.

        Raises:
            ValueError: no step since the last row had finite gradients.
        """
        micro_batches, accumulation = self.micro_batches, self.arguments.accumulation
        self.sums["stop"] += stop.asked * micro_batches
        self.sums |= {name: value.float() * micro_batches for name, value in self.method.health(output).items()}
        means = self.accelerator.reduce(torch.stack(list(self.sums.values())), "mean") / micro_batches
        values = dict(zip(self.sums, means.tolist(), strict=True))
        values["gradient_norm"] *= accumulation
        values["skipped_steps"] = round(values["skipped_steps"] * micro_batches)
        stop.agreed = values.pop("stop") > 0
        seconds, steps = time.monotonic() - self.since, micro_batches // accumulation
        self.sums.clear()
        self.micro_batches, self.since = 0, time.monotonic()
        if values["skipped_steps"] == steps and (steps > 1 or self.arguments.log_every == 1):
            raise ValueError(
                f"no step of the last {steps} before step {step} had finite gradients; "
                "lower the learning rate and resume from the last checkpoint"
            )
        self.bar.set_postfix(loss=f"{values['loss']:.3f}")
        self.accelerator.log(values, step=step)
        if self.writer is None:
            return
        row = {"kind": "train", "step": step, "epoch": step / self.length.steps_per_epoch, **values, **scheduled}
        momentum = self.method.momentum_at(step - 1, self.length.total_steps)
        row |= {} if momentum is None else {"momentum": momentum}
        samples = micro_batches * self.data.batch_size * self.accelerator.num_processes
        row |= {"samples_per_second": samples / seconds, "seconds": time.monotonic() - self.started}
        self.writer.write(row)
        text = self.method.alarm(values)
        if text is not None:
            self.bar.write(f"warning, step {step}: {text}")
            self.writer.write({"kind": "warning", "step": step, "text": text})

    def write_evaluation(self, step: int, name: str, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation."""
        if self.writer is not None:
            self.writer.write({"kind": "evaluation", "step": step, "name": name, "metrics": metrics})


def train(
    method: Trainable,
    data: TrainingData,
    arguments: TrainingArguments,
    accelerator: Accelerator,
    *,
    max_rejected_fraction: float = 0.01,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    evaluation_name: str = "",
    evaluated: Callable[[Any, int, dict[str, float]], None] = lambda method, step, metrics: None,
) -> Trainable:
    """Train a method for the configured steps. Losses of micro-batches are averaged over an optimizer step.

    `evaluated(method, step, metrics)` is called on all ranks after each evaluation. Raises: ValueError: no step since
    the last row of the log had finite gradients, or too many unusable samples.
    """
    folder, accumulation, length = Path(arguments.output_dir), arguments.accumulation, run_length(arguments, data)
    batch_size = data.batch_size * accelerator.num_processes * accumulation
    arguments = scaled_rates(arguments, batch_size, length.steps_per_epoch)
    rates = learning_rates(arguments, length.steps_per_epoch, length.total_steps)
    schedules = method.schedules(length.steps_per_epoch, length.total_steps)
    optimizer = build_optimizer(method, arguments)
    method.to(accelerator.device)
    step = resume(folder, method, optimizer, accelerator) if arguments.resume else 0
    model, prepared = accelerator.prepare(method, optimizer)
    method = accelerator.unwrap_model(model)
    log = TrainingLog(folder / "log.jsonl", method, data, arguments, accelerator, length, step)
    rejections = RejectionLog(folder / f"rejected{accelerator.process_index or ''}.jsonl", max_rejected_fraction)
    batches = data.batches(start=step * accumulation)
    model.train()
    with StopSignal() as stop:
        while step < length.total_steps and not stop.agreed:
            for group in prepared.param_groups:
                group["lr"] = rates[step] * group["rate_factor"]
            scheduled = {name: values[step] for name, values in schedules.items()}
            for micro in range(accumulation):
                batch = next(batches)
                rejections.add(batch.pop("rejected"), data.batch_size)
                batch = data.to_device(batch, accelerator.device)
                index = arguments.seed * 1_000_003 + step * accumulation + micro
                torch.manual_seed((index * 1024 + accelerator.process_index) % 2**63)
                last = micro == accumulation - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    output = model(**batch, **scheduled)
                    accelerator.backward(output.loss / accumulation)
                method.enqueue(output)
                log.add(output)
            norm = accelerator.clip_grad_norm_(model.parameters(), arguments.max_gradient_norm or math.inf)
            finite = torch.isfinite(norm)
            if accelerator.scaler is None:  # a gradient scaler sets this itself
                optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            prepared.step()
            prepared.zero_grad()
            method.update_momentum(step, length.total_steps)
            log.add_step(norm, finite)
            step += 1
            if step % arguments.log_every == 0 or step == length.total_steps:
                log.write(step, output, {"learning_rate": rates[step - 1], **scheduled}, stop)
            if evaluate is not None and arguments.evaluate_every and step % arguments.evaluate_every == 0:
                metrics = evaluate(method)
                log.write_evaluation(step, evaluation_name, metrics)
                evaluated(method, step, metrics)
                model.train()
            if accelerator.num_processes == 1:
                stop.agreed = stop.asked
            if step % arguments.save_every == 0 or stop.agreed:
                save(folder, method, optimizer, accelerator, step, arguments.keep_checkpoints)
    log.bar.close()
    if stop.agreed:
        raise SystemExit(143)
    return method


def resume(folder: Path, method: Trainable, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> int:
    """Load the newest checkpoint of a run folder and return its step; 0: there is none."""
    checkpoint = latest_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        return 0
    progress = load_checkpoint(checkpoint, method, optimizer)
    accelerator.print(f"resuming from {checkpoint}")
    if accelerator.scaler is not None and progress.get("scaler"):
        accelerator.scaler.load_state_dict(progress["scaler"])
    return progress["step"]


def save(
    folder: Path, method: Trainable, optimizer: torch.optim.Optimizer, accelerator: Accelerator, step: int, keep: int
) -> None:
    """Write a checkpoint into a run folder and keep the newest `keep`. Called on all ranks; the main one writes."""
    if accelerator.is_main_process:
        progress = {"step": step, "scaler": accelerator.scaler and accelerator.scaler.state_dict()}
        save_checkpoint(folder / "checkpoints", method, optimizer, progress, keep)
    accelerator.wait_for_everyone()
