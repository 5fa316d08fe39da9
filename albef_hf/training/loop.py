"""The training loop. It knows of a method only that `forward(**batch)` returns an output with `loss`, and these calls
outside `forward`, where the method has them: `enqueue` after each backward pass, `update_momentum` after each step."""

import json
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
from torch import nn
from tqdm import tqdm

from ..data.loading import RejectionLog, TrainingData
from .arguments import TrainingArguments
from .checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from .optimization import build_optimizer, learning_rate


def build_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Queues are buffers and equal on all ranks: broadcasting them at every forward would only cost."""
    return Accelerator(
        mixed_precision=arguments.mixed_precision,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_dir=arguments.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


@dataclass
class Length:
    """Optimizer steps of a run and of an epoch."""

    steps_per_epoch: int
    total_steps: int


def run_length(arguments: TrainingArguments, data: TrainingData) -> Length:
    steps_per_epoch = max(1, data.steps_per_epoch // arguments.accumulation)
    return Length(steps_per_epoch, arguments.max_steps or math.ceil(arguments.epochs * steps_per_epoch))


class RunLog:
    """JSON lines. A resumed run first drops the rows beyond the step it goes on from."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = []
        if step and path.exists():
            rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
            kept = [row for row in rows if json.loads(row).get("step", 0) <= step]
        path.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")


def train(
    method: nn.Module,
    data: TrainingData,
    arguments: TrainingArguments,
    accelerator: Accelerator,
    *,
    max_rejected_fraction: float = 0.01,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    evaluation_name: str = "",
) -> nn.Module:
    """Train a method for the configured steps. Losses of micro-batches are averaged over an optimizer step.

    A run is a pure function of its arguments: before each micro-batch torch's generators are seeded from (seed,
    micro-batch, rank), so a run stopped at any checkpoint and resumed equals one that never stopped, bit for bit.

    Raises:
        ValueError: a loss that is not finite (looked at when logging), or too many unusable samples.
    """
    folder = Path(arguments.output_dir)
    length = run_length(arguments, data)
    optimizer = build_optimizer(method, arguments)
    method.to(accelerator.device)
    step = 0
    found = latest_checkpoint(folder / "checkpoints") if arguments.resume else None
    if found is not None:
        step = load_checkpoint(found, method, optimizer)["step"]
        accelerator.print(f"resuming from {found}")
    model, prepared = accelerator.prepare(method, optimizer)
    method = accelerator.unwrap_model(model)
    main = accelerator.is_main_process
    if main:
        log = RunLog(folder / "log.jsonl", step)
        chance = method.chance_losses(data.batch_size) if hasattr(method, "chance_losses") else {}
        parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
        log.write({"kind": "run", "chance": chance, "parameters": parameters, "start": step, **vars(length)})
    rejections = RejectionLog(folder / f"rejected{accelerator.process_index or ''}.jsonl", max_rejected_fraction)
    stop = {"asked": False}
    before = signal.signal(signal.SIGTERM, lambda *_: stop.update(asked=True))
    batches = data.batches(start=step * arguments.accumulation)
    bar = tqdm(total=length.total_steps, initial=step, disable=not main, desc="training", unit="step")
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    summed, since, started = 0, time.monotonic(), time.monotonic()
    model.train()
    while step < length.total_steps and not stop["asked"]:
        rate = learning_rate(arguments, step, length.steps_per_epoch, length.total_steps)
        for group in prepared.param_groups:
            group["lr"] = rate
        extra = {}
        if hasattr(method, "step_arguments"):
            extra = method.step_arguments(step, length.steps_per_epoch, length.total_steps)
        for micro in range(arguments.accumulation):
            index = step * arguments.accumulation + micro
            batch = next(batches)
            rejections.add(batch.pop("rejected"), data.batch_size)
            batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in batch.items()}
            torch.manual_seed(((arguments.seed * 1_000_003 + index) * 1024 + accelerator.process_index) % 2**63)
            last = micro == arguments.accumulation - 1
            with accelerator.no_sync(model) if not last else accelerator.autocast():
                output = model(**batch, **extra)
                accelerator.backward(output.loss / arguments.accumulation)
            if hasattr(method, "enqueue"):
                method.enqueue(output)
            shown = {k: v for k, v in output.items() if k.startswith("loss") and v is not None}
            shown |= output.metrics() if hasattr(output, "metrics") else {}
            for name, value in shown.items():
                sums[name] += value.detach().float()
            summed += 1
        if arguments.max_gradient_norm > 0:
            sums["gradient_norm"] += accelerator.clip_grad_norm_(model.parameters(), arguments.max_gradient_norm)
        prepared.step()
        prepared.zero_grad()
        if hasattr(method, "update_momentum"):
            method.update_momentum()
        step += 1
        bar.update()
        if step % arguments.log_every == 0 or step == length.total_steps:
            values = {name: (accelerator.reduce(value, "mean") / summed).item() for name, value in sums.items()}
            if "gradient_norm" in values:
                values["gradient_norm"] *= arguments.accumulation
            sums.clear()
            seconds = time.monotonic() - since
            rows = summed * data.batch_size * accelerator.num_processes
            summed, since = 0, time.monotonic()
            if not math.isfinite(values["loss"]):
                raise ValueError(f"the loss is {values['loss']} at step {step}; lower the learning rate and resume")
            row = {"step": step, "epoch": step / length.steps_per_epoch, **values, "learning_rate": rate, **extra}
            row |= {"samples_per_second": rows / seconds, "seconds": time.monotonic() - started}
            bar.set_postfix(loss=f"{values['loss']:.3f}")
            accelerator.log(values, step=step)
            if main:
                log.write({"kind": "train", **row})
        if evaluate is not None and arguments.evaluate_every and step % arguments.evaluate_every == 0:
            metrics = evaluate(method)
            if main:
                log.write({"kind": "evaluation", "step": step, "name": evaluation_name, "metrics": metrics})
            model.train()
        if step % arguments.save_every == 0 or stop["asked"]:
            if main:
                save_checkpoint(folder / "checkpoints", method, optimizer, {"step": step}, arguments.keep_checkpoints)
            accelerator.wait_for_everyone()
    bar.close()
    signal.signal(signal.SIGTERM, before)
    if stop["asked"]:
        raise SystemExit(143)
    return method
