"""The training loop. It knows of a method only that `forward(**batch)` returns an output with `loss`, and these calls
outside `forward`, where the method has them: `enqueue` after each backward pass, `update_momentum` after each step,
`warnings` before the first, `health` and `alarm` with each row of the log."""

import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from torch import nn
from tqdm import tqdm

from ..data.batches import RejectionLog, TrainingData
from ..reporting.log import LogWriter
from .arguments import TrainingArguments
from .checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from .optimization import build_optimizer, learning_rate, scaled_rates


def build_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Queues are buffers and equal on all ranks: broadcasting them at every forward would only cost.

    Raises:
        ValueError: a tracker that is unknown or not installed.
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
    """What a reader of the log would call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


@dataclass
class Length:
    """Optimizer steps of a run and of an epoch."""

    steps_per_epoch: int
    total_steps: int


def run_length(arguments: TrainingArguments, data: TrainingData) -> Length:
    steps_per_epoch = max(1, data.steps_per_epoch // arguments.accumulation)
    return Length(steps_per_epoch, arguments.max_steps or math.ceil(arguments.epochs * steps_per_epoch))


def train(
    method: nn.Module,
    data: TrainingData,
    arguments: TrainingArguments,
    accelerator: Accelerator,
    *,
    max_rejected_fraction: float = 0.01,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    evaluation_name: str = "",
    evaluated: Callable[[nn.Module, int, dict[str, float]], None] | None = None,
) -> nn.Module:
    """Train a method for the configured steps. Losses of micro-batches are averaged over an optimizer step.
    `evaluated(method, step, metrics)` is called on all ranks after each evaluation.

    A run is a pure function of its arguments: before each micro-batch torch's generators are seeded from (seed,
    micro-batch, rank), so a run stopped at any checkpoint and resumed equals one that never stopped, bit for bit.

    A step whose gradients are not finite changes no parameter; that is decided on the device, and counted as
    `skipped_steps` in the log. On SIGTERM the ranks agree when they next log, save and end with status 143.

    Raises:
        ValueError: no step since the last row of the log had finite gradients, or too many unusable samples.
    """
    folder = Path(arguments.output_dir)
    length = run_length(arguments, data)
    samples_per_step = data.batch_size * accelerator.num_processes * arguments.accumulation
    arguments = scaled_rates(arguments, samples_per_step, length.steps_per_epoch)
    optimizer = build_optimizer(method, arguments)
    method.to(accelerator.device)
    step = 0
    found = latest_checkpoint(folder / "checkpoints") if arguments.resume else None
    if found is not None:
        progress = load_checkpoint(found, method, optimizer)
        step = progress["step"]
        accelerator.print(f"resuming from {found}")
        if accelerator.scaler is not None and progress.get("scaler"):
            accelerator.scaler.load_state_dict(progress["scaler"])
    model, prepared = accelerator.prepare(method, optimizer)
    method = accelerator.unwrap_model(model)
    main = accelerator.is_main_process
    if main:
        log = LogWriter(folder / "log.jsonl", step)
        chance = method.chance_losses(data.batch_size) if hasattr(method, "chance_losses") else {}
        parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
        name = getattr(getattr(method, "config", None), "model_type", getattr(method, "name", type(method).__name__))
        levels = method.levels(data.batch_size) if hasattr(method, "levels") else {}
        row = {"method": name, "chance": chance, "levels": levels, "parameters": parameters, "start": step}
        row |= {"devices": accelerator.num_processes, "device": device_name(accelerator.device)}
        log.write({"kind": "run", **row, **vars(length)})
        if hasattr(method, "warnings"):
            known = {"rows": data.rows, "batch_size": data.batch_size, "total_steps": length.total_steps}
            for text in method.warnings(**known, optimizer=arguments.optimizer):
                accelerator.print(f"warning: {text}")
                log.write({"kind": "warning", "step": step, "text": text})
    rejections = RejectionLog(folder / f"rejected{accelerator.process_index or ''}.jsonl", max_rejected_fraction)
    stop = {"asked": False}
    before = signal.signal(signal.SIGTERM, lambda *_: stop.update(asked=True))
    batches = data.batches(start=step * arguments.accumulation)
    bar = tqdm(total=length.total_steps, initial=step, disable=not main, desc="training", unit="step")
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    summed, since, started = 0, time.monotonic(), time.monotonic()
    model.train()
    agreed = False
    while step < length.total_steps and not agreed:
        rate = learning_rate(arguments, step, length.steps_per_epoch, length.total_steps)
        for group in prepared.param_groups:
            group["lr"] = rate * group["rate_factor"]
        extra = {}
        if hasattr(method, "step_arguments"):
            extra = method.step_arguments(step, length.steps_per_epoch, length.total_steps)
        for micro in range(arguments.accumulation):
            index = step * arguments.accumulation + micro
            batch = next(batches)
            rejections.add(batch.pop("rejected"), data.batch_size)
            batch = data.to_device(batch, accelerator.device)
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
        norm = accelerator.clip_grad_norm_(model.parameters(), arguments.max_gradient_norm or math.inf)
        finite = torch.isfinite(norm)
        sums["gradient_norm"] += torch.where(finite, norm, 0.0)
        sums["skipped_steps"] += ~finite
        if accelerator.scaler is None:  # a scaler does the same itself
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        prepared.step()
        prepared.zero_grad()
        if hasattr(method, "update_momentum"):
            method.update_momentum(step, length.total_steps)
        step += 1
        bar.update()
        if step % arguments.log_every == 0 or step == length.total_steps:
            sums["stop"] += stop["asked"] * summed
            if hasattr(method, "health"):
                sums |= {name: value.float() * summed for name, value in method.health(output).items()}
            means = accelerator.reduce(torch.stack(list(sums.values())), "mean") / summed  # one host read for all
            values = dict(zip(sums, means.tolist(), strict=True))
            steps = summed // arguments.accumulation
            values["gradient_norm"] *= arguments.accumulation
            values["skipped_steps"] = round(values["skipped_steps"] * summed)
            agreed = values.pop("stop") > 0
            sums.clear()
            seconds = time.monotonic() - since
            rows = summed * data.batch_size * accelerator.num_processes
            summed, since = 0, time.monotonic()
            if values["skipped_steps"] == steps and (steps > 1 or arguments.log_every == 1):
                raise ValueError(
                    f"no step of the last {steps} before step {step} had finite gradients; "
                    "lower the learning rate and resume from the last checkpoint"
                )
            row = {"step": step, "epoch": step / length.steps_per_epoch, **values, "learning_rate": rate, **extra}
            if hasattr(method, "momentum_at"):
                row["momentum"] = method.momentum_at(step - 1, length.total_steps)
            row |= {"samples_per_second": rows / seconds, "seconds": time.monotonic() - started}
            bar.set_postfix(loss=f"{values['loss']:.3f}")
            accelerator.log(values, step=step)
            if main:
                log.write({"kind": "train", **row})
                text = method.alarm(values) if hasattr(method, "alarm") else None
                if text is not None:
                    bar.write(f"warning, step {step}: {text}")
                    log.write({"kind": "warning", "step": step, "text": text})
        if evaluate is not None and arguments.evaluate_every and step % arguments.evaluate_every == 0:
            metrics = evaluate(method)
            if main:
                log.write({"kind": "evaluation", "step": step, "name": evaluation_name, "metrics": metrics})
            if evaluated is not None:
                evaluated(method, step, metrics)
            model.train()
        if accelerator.num_processes == 1:
            agreed = stop["asked"]
        if step % arguments.save_every == 0 or agreed:
            if main:
                progress = {"step": step, "scaler": accelerator.scaler and accelerator.scaler.state_dict()}
                save_checkpoint(folder / "checkpoints", method, optimizer, progress, arguments.keep_checkpoints)
            accelerator.wait_for_everyone()
    bar.close()
    signal.signal(signal.SIGTERM, before)
    if agreed:
        raise SystemExit(143)
    return method
