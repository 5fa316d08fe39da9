"""The training loop, on one screen: forward, backward, enqueue, optimizer, momentum.

`albef_hf/trainable.py` lists everything that it calls on the method it trains.

A run is a pure function of its arguments: before each micro-batch torch's generators are seeded from (seed,
micro-batch, rank). So a run that is resumed from a checkpoint equals one that never stopped, bit for bit. A step that
is skipped changes nothing: see `StepGuard`. Signals: see `stopping.py`.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers

from ..data.batches import RejectionLog, TrainingData
from ..momentum import MomentumCopy
from ..trainable import Trainable
from .arguments import TrainingArguments
from .checkpoints import check_checkpoint, load_checkpoint, newest_valid, save_checkpoint
from .identity import Claim, on_main, unclaimed
from .optimization import build_optimizer, learning_rates, scaled_rates, start_momentum
from .position import Position, run_length
from .run_log import TrainingLog
from .running_statistics import average_running_statistics
from .stopping import StopSignal

ABSURD = 1e8  # no loss and no gradient norm of these methods comes near


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


class StepGuard:
    """Decides on the device whether an optimizer step counts, and sums up what the log shows. Nothing is read from
    the device.

    A step counts if its loss, gradient norm and buffers are finite on all ranks, loss and norm are below 1e8, and
    neither is a spike: more than `deviations` standard deviations, and more than once its size, above the mean of the
    last 128 steps. A step that does not count leaves parameters, optimizer state, momentum copies and buffers
    (queues, counters, running statistics) as they were.

    Args:
        deviations: 0: spikes count.

    Attributes:
        sums: of losses and metrics since the log last cleared it.
        recent: (128, 2), loss and gradient norm of the last steps. steps: of them that are filled.
        in_row: steps skipped one after the other. worst: the largest such number since the log last reset it.
    """

    def __init__(
        self, method: Trainable, optimizer: torch.optim.Optimizer, accelerator: Accelerator, deviations: float
    ) -> None:
        self.method, self.accelerator, self.deviations = method, accelerator, deviations
        self.copies = [module for module in method.modules() if isinstance(module, MomentumCopy)]
        # Constants such as a mask of -infinity may not be finite. A view of few numbers cannot be written.
        buffers = [b for b in method.buffers() if 0 not in b.stride() and torch.isfinite(b).all()]
        kinds = {buffer.dtype for buffer in buffers}
        self.groups = [[b for b in buffers if b.dtype == kind] for kind in sorted(kinds, key=str)]
        self.recent = torch.zeros(128, 2, device=accelerator.device)
        self.steps, self.in_row, self.worst, self.kept, self.loss = torch.zeros(5, device=accelerator.device)
        self.sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        optimizer.register_step_pre_hook(self._before_optimizer)

    def _before_optimizer(self, optimizer: Any, *_: Any) -> None:
        optimizer.found_inf = 1 - self.kept.float()

    def _flat(self) -> list[torch.Tensor]:
        return [torch.cat([buffer.flatten() for buffer in group]) for group in self.groups]

    def begin(self) -> None:
        """Before a step: remember the buffers."""
        self.before, self.loss = self._flat(), torch.zeros_like(self.loss)

    def add(self, output: Mapping[str, Any]) -> None:
        """Add the losses and metrics of a micro-batch."""
        losses = {name: value for name, value in output.items() if name.startswith("loss") and value is not None}
        for name, value in (losses | self.method.metrics(output)).items():
            self.sums[name] += value.detach().float()
        self.loss = self.loss + output["loss"].detach().float()

    def judge(self, norm: torch.Tensor) -> None:
        """After the backward passes: decide whether the step counts. norm: of the gradients."""
        after = self._flat()
        sound = torch.stack([torch.isfinite(flat).all() for flat in [*after, norm]]).all()
        loss = self.accelerator.reduce(torch.where(sound, self.loss, torch.nan), "mean")
        values = torch.stack([loss, norm.float()])
        spread, mean = torch.std_mean(self.recent, dim=0)
        highest = mean + torch.maximum(self.deviations * spread, mean.abs())
        highest = torch.where((self.steps < len(self.recent)) | (self.deviations == 0), ABSURD, highest)
        self.kept = (values.abs() <= highest).all()
        for group, *states in zip(self.groups, self.before, after, strict=True):
            flat = torch.where(self.kept, states[1], states[0]).split([buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view_as(buffer) for part, buffer in zip(flat, group, strict=True)])
        for copied in self.copies:
            copied.kept = self.kept
        finite = torch.isfinite(values).all()
        slot = (self.steps.long() % len(self.recent)).view(1)
        self.recent[slot] = torch.where(finite, values.minimum(highest), self.recent[slot])
        self.steps = self.steps + finite
        self.in_row = (self.in_row + 1) * ~self.kept
        self.worst = torch.maximum(self.worst, self.in_row)
        self.sums["gradient_norm"] += torch.where(self.kept, norm, 0.0)
        self.sums["skipped_steps"] += ~self.kept
        self.sums["spikes"] += finite & ~self.kept

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON."""
        return {"recent": self.recent.tolist(), "steps": float(self.steps), "in_row": float(self.in_row)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; nothing of an empty mapping."""
        if state:
            self.recent.copy_(torch.tensor(state["recent"]))
            self.steps, self.in_row = (torch.full_like(self.loss, state[name]) for name in ("steps", "in_row"))


def train(
    method: Trainable,
    data: TrainingData,
    arguments: TrainingArguments,
    accelerator: Accelerator,
    *,
    stop: StopSignal | None = None,
    **options: Any,
) -> Trainable:
    """Train a method for the configured steps. Losses of micro-batches are averaged over an optimizer step.

    Args:
        stop: the signals to obey; None: those that this process gets while it trains.
        options: further arguments of `Training`.

    Raises:
        ValueError: too many steps in a row were skipped, too many samples are unusable, or the folder holds
            checkpoints and `resume` is not set.
        SystemExit: the run was asked to stop; a checkpoint of the last step is written.
    """
    with contextlib.nullcontext(stop) if stop else StopSignal() as listening:
        training = Training(method, data, arguments, accelerator, listening, **options)
        training.run()
    return training.method


class Training:
    """A run of a method: everything that its steps need.

    Args:
        method, data, arguments, accelerator, stop: as in `train`.
        max_rejected_fraction: the largest share of unusable samples.
        evaluate: measures metrics every `evaluate_every` steps; None: nothing is measured.
        evaluation_name: of the data it measures on.
        evaluated: called on all ranks after each evaluation, with the method, the step and the metrics.
        claim: how the run begins in its folder, from `identity.claim`; None: found out here, without a lock.
    """

    def __init__(
        self,
        method: Trainable,
        data: TrainingData,
        arguments: TrainingArguments,
        accelerator: Accelerator,
        stop: StopSignal,
        *,
        max_rejected_fraction: float = 0.01,
        evaluate: Callable[[Any], dict[str, float]] | None = None,
        evaluation_name: str = "",
        evaluated: Callable[[Any, int, dict[str, float]], None] = lambda method, step, metrics: None,
        claim: Claim | None = None,
    ) -> None:
        self.data, self.accelerator, self.folder = data, accelerator, Path(arguments.output_dir)
        self.evaluate, self.evaluation_name, self.evaluated = evaluate, evaluation_name, evaluated
        self.stop = stop
        length, ranks = run_length(arguments, data), accelerator.num_processes
        batch = data.batch_size * ranks
        self.arguments = scaled_rates(arguments, batch * arguments.accumulation, length.steps_per_epoch)
        self.rates = learning_rates(self.arguments, length.steps_per_epoch, length.total_steps)
        self.schedules = method.schedules(length.steps_per_epoch, length.total_steps)
        method.to(accelerator.device)
        self.optimizer = build_optimizer(method, self.arguments)
        self.model, self.prepared = accelerator.prepare(method, self.optimizer)
        self.method: Trainable = accelerator.unwrap_model(self.model)
        self.guard = StepGuard(self.method, self.optimizer, accelerator, arguments.spike_deviations)
        used = data.steps_per_epoch * batch
        self.position = Position(length, batch, arguments.accumulation, data.rows, used, ranks=ranks)
        self.claim = claim or on_main(accelerator, lambda: unclaimed(self.folder, arguments.resume))
        self.fell_back_before = -1  # the step from which the run fell back last
        if self.claim.checkpoint is not None:
            self.load(self.claim.checkpoint, self.claim.progress)
            self.position.load(self.position.step, self.claim.progress.get("position", {}), arguments.max_steps)
        facts = {"run": self.claim.identity["id"]} if self.claim.identity else {}
        facts |= {"changed": self.claim.changes} if self.claim.changes else {}
        self.log = TrainingLog(
            self.folder / "log.jsonl", self.method, data, self.arguments, accelerator, self.position, facts
        )
        self.log.load_state(self.guard.sums, self.claim.progress.get("log", {}))
        step, path = self.position.step, self.folder / f"rejected{accelerator.process_index or ''}.jsonl"
        seen = step * arguments.accumulation * data.batch_size
        self.rejections = RejectionLog(path, max_rejected_fraction, step=step, seen=seen)

    def run(self) -> None:
        """Make all steps, or those until the run is asked to stop.

        Raises:
            SystemExit: the run was asked to stop; a checkpoint of the last step is written.
        """
        method, accelerator, guard, position = self.method, self.accelerator, self.guard, self.position
        accumulation, total = self.arguments.accumulation, position.length.total_steps
        batches = self.batches()
        self.model.train()
        self.evaluate_if_due(resumed=True)
        while position.scheduled < total and not self.stop.agreed:
            step = position.scheduled
            for group in self.prepared.param_groups:
                group["lr"] = self.rates[step] * group["rate_factor"]
            scheduled = {name: values[step] for name, values in self.schedules.items()}
            guard.begin()
            for micro in range(accumulation):
                batch = next(batches)
                self.rejections.add(batch.pop("rejected"), self.data.batch_size)
                batch = self.data.to_device(batch, accelerator.device)
                index = self.arguments.seed * 1_000_003 + position.step * accumulation + micro
                torch.manual_seed((index * 1024 + accelerator.process_index) % 2**63)
                last = micro == accumulation - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                    output = self.model(**batch, **scheduled)
                    accelerator.backward(output.loss / accumulation)
                method.enqueue(output)
                guard.add(output)
            guard.judge(
                accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_gradient_norm or math.inf)
            )
            self.prepared.step()
            self.prepared.zero_grad()
            method.update_momentum(step, total)
            position.advance()
            if self.after_step(output, {"learning_rate": self.rates[step], **scheduled}):
                batches = self.batches()
        self.log.bar.close()
        if self.stop.agreed or self.stop.asked and position.scheduled < total:
            accelerator.print(f"stopped after step {position.step}; go on with --resume")
            raise SystemExit(self.stop.status)

    def after_step(self, output: Any, scheduled: dict[str, float]) -> bool:
        """Write the log, save and evaluate where these are due. Returns: the run fell back to other samples."""
        arguments, position, done = self.arguments, self.position, self.position.scheduled
        step, ends = position.step, done == position.length.total_steps
        self.log.bar.update()
        if step % arguments.log_every == 0 or ends:
            self.guard.sums["worst"] = self.guard.worst
            values = self.log.write_means(position, self.guard.sums, output, scheduled)
            self.guard.worst = torch.zeros_like(self.guard.worst)
            all_skipped = values["skipped_steps"] == values["steps"] >= 3 and self.accelerator.scaler is None
            if all_skipped or values["worst"] >= arguments.max_skipped_steps:
                self.fall_back(round(max(values["worst"], values["steps"] if all_skipped else 0)))
                return True
        self.stop.agree()
        if step % arguments.save_every == 0 or ends or self.stop.agreed:
            self.save()
        if not self.stop.agreed:
            self.evaluate_if_due()
        return False

    def batches(self) -> Iterator[dict[str, Any]]:
        """All batches from here on."""
        skipped = {"skipped": self.position.origin} if self.position.origin else {}
        return self.data.batches(start=self.position.first_batch, **skipped)

    def evaluate_if_due(self, resumed: bool = False) -> None:
        """Evaluate after the step, if that is due; if the run is resumed here, only if it was not done before.

        An evaluation that fails costs a warning. A signal during it saves and ends the run.
        """
        every, step = self.arguments.evaluate_every, self.position.step
        if self.evaluate is None or not every or step % every or not step:
            return
        if resumed and on_main(self.accelerator, lambda: self.log.has_evaluation(step)):
            return
        average_running_statistics(self.method, self.accelerator)
        try:
            with self.stop.stopping_at_once():
                metrics = self.evaluate(self.method)
        except SystemExit:
            self.save(alone=True)
            raise
        except Exception as error:
            self.log.warn(step, f"the evaluation after step {step} failed: {type(error).__name__}: {error}")
        else:
            self.evaluated(self.method, step, metrics)
            self.log.write_evaluation(step, self.evaluation_name, metrics)
        self.model.train()

    def save(self, alone: bool = False) -> None:
        """Write a checkpoint. Called on all ranks, of which the main one writes.

        alone: without the other ranks, right after a step that they share.
        """
        if not alone:
            average_running_statistics(self.method, self.accelerator)
            self.sums = self.log.state(self.guard.sums)
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            progress = {"step": self.position.step, "scaler": scaler and scaler.state_dict()}
            progress |= {"position": self.position.state(), "guard": self.guard.state(), "log": self.sums}
            progress |= {"run": self.claim.identity}
            keep = self.arguments.keep_checkpoints, self.arguments.keep_every
            save_checkpoint(self.folder / "checkpoints", self.method, self.optimizer, progress, *keep)
        if not alone:
            self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path, progress: dict[str, Any]) -> None:
        """Take over the state in a checkpoint, but not the position in the data."""
        load_checkpoint(checkpoint, self.method, self.optimizer, progress)
        start_momentum(self.optimizer)
        self.position.step = progress["step"]
        self.guard.load_state(progress.get("guard", {}))
        if self.accelerator.scaler is not None and progress.get("scaler"):
            self.accelerator.scaler.load_state_dict(progress["scaler"])

    def fall_back(self, skipped: int) -> None:
        """Go back to the last checkpoint and on with the samples after these. skipped: steps in a row.

        Raises:
            ValueError: there is no checkpoint, or this happened before and the run came no further.
        """
        step = self.position.step
        reason = f"no step of the last {skipped} before step {step} had finite gradients and was no spike"
        checkpoint, _ = on_main(self.accelerator, lambda: newest_valid(self.folder / "checkpoints"))
        again = step <= self.fell_back_before + self.arguments.max_skipped_steps
        if checkpoint is None or again:
            why = (
                "the run fell back once without coming further" if again else "there is no checkpoint to fall back to"
            )
            raise ValueError(f"{reason}, and {why}; lower the learning rate or look at the samples, and resume")
        self.fell_back_before = step
        self.load(checkpoint, check_checkpoint(checkpoint))
        self.log.go_back(self.position.step)
        self.guard.sums.clear()
        self.log.warn(self.position.step, f"{reason}: back to {checkpoint.name}, with other samples")
