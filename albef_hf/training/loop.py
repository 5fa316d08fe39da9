"""The training loop, on one screen: forward, backward, enqueue, optimizer, momentum.

`albef_hf/trainable.py` lists everything that it calls on the method it trains.

A run is a pure function of its arguments: before each micro-batch torch's generators are seeded from (seed,
micro-batch, rank). So a run that is resumed from a checkpoint equals one that never stopped, bit for bit. A step that
is skipped changes nothing: see `StepGuard`. Signals: see `stopping.py`.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from ..data.batches import TrainingData
from ..momentum import MomentumCopy
from ..trainable import Trainable
from .arguments import TrainingArguments
from .run_log import device_name as device_name
from .run_state import RunState
from .stopping import StopSignal

ABSURD = 1e8  # no loss and no gradient norm of these methods comes near


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
        sums: of losses and metrics of the steps that counted, since the log last cleared it.
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
        self.added: list[tuple[str, torch.Tensor]] = []
        self.sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        optimizer.register_step_pre_hook(self._before_optimizer)

    def _before_optimizer(self, optimizer: Any, *_: Any) -> None:
        optimizer.found_inf = 1 - self.kept.float()

    def _flat(self) -> list[torch.Tensor]:
        return [torch.cat([buffer.flatten() for buffer in group]) for group in self.groups]

    def begin(self) -> None:
        """Before a step: remember the buffers."""
        self.before, self.loss, self.added = self._flat(), torch.zeros_like(self.loss), []

    def add(self, output: Mapping[str, Any]) -> None:
        """Note the losses and metrics of a micro-batch."""
        losses = {name: value for name, value in output.items() if name.startswith("loss") and value is not None}
        self.added += (losses | self.method.metrics(output)).items()
        self.loss = self.loss + output["loss"].detach().float()

    def judge(self, norm: torch.Tensor) -> None:
        """After the backward passes: decide whether the step counts. norm: of the gradients."""
        after = self._flat()
        sound = torch.stack([torch.isfinite(flat).all() for flat in [*after, norm]]).all()
        loss = self.accelerator.reduce(torch.where(sound, self.loss, torch.nan), "mean")
        values = torch.stack([loss, norm.float()])
        spread, mean = torch.std_mean(self.recent, dim=0)
        highest = mean + torch.maximum(self.deviations * spread, mean.abs())
        everything = (self.steps < len(self.recent)) | (self.deviations == 0)
        highest = torch.where(everything, ABSURD, highest.clamp(max=ABSURD))
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
        for name, value in [*self.added, ("gradient_norm", norm)]:
            self.sums[name] += torch.where(self.kept, value.detach().float(), 0.0)
        self.sums["skipped_steps"] += ~self.kept
        self.sums["spikes"] += finite & ~self.kept

    def release(self) -> None:
        """After the last step: momentum copies follow again whatever that step was."""
        for copied in self.copies:
            copied.kept = None

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
        options: further arguments of `RunState`.

    Raises:
        ValueError: too many steps in a row were skipped, too many samples are unusable, or the folder holds
            checkpoints and `resume` is not set.
        SystemExit: the run was asked to stop; a checkpoint of the last step is written.
    """
    with contextlib.nullcontext(stop) if stop else StopSignal() as listening:
        run = RunState(method, data, arguments, accelerator, listening, StepGuard, **options)
        try:
            make_steps(run)
            if listening.agreed and run.saved_step != run.position.step:  # the signal came after what was due
                run.save()
        finally:
            run.guard.release()
    run.log.bar.close()
    if run.stop.agreed:
        accelerator.print(run.how_to_go_on())
        raise SystemExit(run.stop.status)
    return run.method if run.shards is None else run.shards.gather()


def make_steps(run: RunState) -> None:
    """Make all steps, or those until the run is asked to stop."""
    method, accelerator, guard, position, stop = run.method, run.accelerator, run.guard, run.position, run.stop
    accumulation, total, seed = run.arguments.accumulation, position.length.total_steps, run.arguments.seed
    batches = run.batches()
    run.model.train()
    run.evaluate_if_due(resumed=True)
    while (step := position.step + position.shift) < total and not stop.agreed:
        for group in run.prepared.param_groups:
            group["lr"] = run.rates[step] * group["rate_factor"]
        scheduled = {name: values[step] for name, values in run.schedules.items()}
        guard.begin()
        for micro in range(accumulation):
            batch = next(batches)
            run.rejections.add(batch.pop("rejected"), run.data.batch_size, position.step + 1)
            batch = run.data.to_device(batch, accelerator.device)
            index = seed * 1_000_003 + position.step * accumulation + micro
            torch.manual_seed((index * 1024 + accelerator.process_index) % 2**63)
            with contextlib.nullcontext() if micro == accumulation - 1 else accelerator.no_sync(run.model):
                output = run.model(**batch, **scheduled)
                accelerator.backward(output.loss / accumulation)
            method.enqueue(output)
            guard.add(output)
        guard.judge(run.clip(run.arguments.max_gradient_norm or math.inf))
        run.prepared.step()
        run.prepared.zero_grad()
        method.update_momentum(step, total)
        position.step += 1
        run.log.bar.update()
        if stop.group is not None:
            run.meet()
        due = stop.agreed or step + 1 == total or any(position.step % every == 0 for every in run.rhythm)
        if due and log_save_and_evaluate(run, output, {"learning_rate": run.rates[step], **scheduled}):
            batches = run.batches()


def log_save_and_evaluate(run: RunState, output: Any, scheduled: dict[str, float]) -> bool:
    """Do what is due after a step. Returns: the run fell back, to other samples."""
    arguments, position, guard, stop = run.arguments, run.position, run.guard, run.stop
    step, ends = position.step, position.step + position.shift == position.length.total_steps
    if step % arguments.log_every == 0 or ends:
        values = run.log.write_means(position, guard.sums | {"worst": guard.worst}, output, scheduled)
        guard.sums.clear()
        guard.worst = torch.zeros_like(guard.worst)
        all_skipped = values["skipped_steps"] == values["steps"] >= 3 and run.accelerator.scaler is None
        if all_skipped or values["worst"] >= arguments.max_skipped_steps:
            run.fall_back(round(values["steps"] if all_skipped else values["worst"]))
            return True
    if step % arguments.save_every == 0 or ends or stop.agreed:
        run.save()
    if not stop.agreed:
        run.evaluate_if_due()
    return False
