"""What a run of a method consists of beside its steps: how it begins, is saved, is measured and falls back."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..data.batches import RejectionLog, TrainingData
from ..trainable import Trainable
from .arguments import TrainingArguments
from .checkpoints import load_checkpoint, newest_valid, save_checkpoint
from .identity import Claim, on_main, unclaimed
from .optimization import build_optimizer, learning_rates, scaled_rates, start_momentum
from .position import Position, run_length
from .run_log import TrainingLog
from .running_statistics import average, running_statistics
from .sharded_checkpoints import save_shards
from .sharding import Shards
from .stopping import StopSignal


class RunState:
    """Everything that the steps of a run need.

    Args:
        method, data, arguments, accelerator, stop: as in `train`.
        guard: makes the `StepGuard` of the run.
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
        guard: Callable[..., Any],
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
        batching = data.batch_size, arguments.accumulation, ranks
        self.arguments = scaled_rates(arguments, math.prod(batching), length.steps_per_epoch)
        self.rates = learning_rates(self.arguments, length.steps_per_epoch, length.total_steps)
        self.schedules = method.schedules(length.steps_per_epoch, length.total_steps)
        method.to(accelerator.device)
        self.shards = Shards(method, accelerator) if arguments.sharding and ranks > 1 else None
        self.optimizer = build_optimizer(self.shards or method, self.arguments)
        if self.shards is None:
            self.model, self.prepared = accelerator.prepare(method, self.optimizer)
            self.clip = lambda largest: accelerator.clip_grad_norm_(self.model.parameters(), largest)
        else:  # not for Accelerate to wrap once more
            self.model = accelerator.prepare_model(method, evaluation_mode=True)
            self.prepared = accelerator.prepare(self.optimizer)
            self.clip = self.shards.clip_gradients
        self.method, self.statistics = method, running_statistics(method)
        self.guard = guard(self.method, self.optimizer, accelerator, arguments.spike_deviations)
        self.position = Position(length, batching, data.rows, data.steps_per_epoch * data.batch_size * ranks)
        self.claim = claim or on_main(accelerator, lambda: unclaimed(self.folder, arguments.resume))
        self.rhythm = [
            every for every in (arguments.log_every, arguments.save_every, arguments.evaluate_every) if every
        ]
        self.fell_back_before = -1  # the step from which the run fell back last
        if self.claim.checkpoint is not None:
            self.load(self.claim.checkpoint, self.claim.progress)
            self.position.load(self.position.step, self.claim.progress.get("position", {}), arguments.max_steps)
        facts = {"run": self.claim.identity["id"]} if self.claim.identity else {}
        facts |= {"changed": self.claim.changes} if self.claim.changes else {}
        self.saved_step = self.position.step  # of the last checkpoint, or where the run began
        self.log = TrainingLog(
            self.folder / "log.jsonl", self.method, data, self.arguments, accelerator, self.position, facts
        )
        self.log.load_state(self.guard.sums, self.claim.progress.get("log", {}))
        step, path = self.position.step, self.folder / f"rejected{accelerator.process_index or ''}.jsonl"
        seen = step * arguments.accumulation * data.batch_size
        self.rejections = RejectionLog(path, max_rejected_fraction, step=step, seen=seen)

    def batches(self) -> Iterator[dict[str, Any]]:
        """All batches from here on. They are kept, so that a last save waits for no worker to end."""
        start, origin = self.position.next_batch()
        self.drawn = self.data.batches(start, origin) if origin else self.data.batches(start)
        return self.drawn

    def meet(self) -> None:
        """Called after each step of several ranks: what they have of their own samples becomes their mean, and they
        tell each other of requests to stop."""
        average(self.statistics, self.accelerator)
        self.stop.agree()

    def evaluate_if_due(self, resumed: bool = False) -> None:
        """Evaluate after the step, if that is due; if the run is resumed here, only if it was not done before.

        An evaluation that fails costs a warning. A signal during it saves and ends the run; after one that some rank
        got before, none begins.
        """
        every, step = self.arguments.evaluate_every, self.position.step
        if self.evaluate is None or not every or step % every or not step:
            return
        if resumed and on_main(self.accelerator, lambda: self.log.has_evaluation(step)):
            return
        if self.stop.group is not None:
            self.stop.agree()
            self.stop.agree()  # at once: the first one sends what the second one hears
            if self.stop.agreed:
                return
        if self.shards is not None and self.saved_step != step:
            self.save()  # while an evaluation runs, a rank could not save without the others
        self.sums = self.log.state(self.guard.sums)
        with self.whole_method() as method:
            self._evaluate(method)
        self.model.train()

    def _evaluate(self, method: Trainable) -> None:
        step = self.position.step
        assert self.evaluate is not None
        try:
            with self.stop.stopping_at_once(lambda: self.save(alone=True)):
                metrics = self.evaluate(method)
        except SystemExit:
            self.save(alone=True)
            self.accelerator.print(self.how_to_go_on())
            raise
        except Exception as error:
            text = f"the evaluation after step {step} failed: {type(error).__name__}: {error}"
            self.log.warn(step, text, again=True)
            if self.stop.group is not None:  # another rank may be gone, and the next step may end this one, too
                self.save(alone=True)
                if self.stop.asked:
                    raise SystemExit(self.stop.status) from error
        else:
            self.evaluated(method, step, metrics)
            self.log.write_evaluation(step, self.evaluation_name, metrics)

    def whole_method(self) -> AbstractContextManager[Trainable]:
        """A context that gives the method with all its weights. Entered on all ranks."""
        return nullcontext(self.method) if self.shards is None else self.shards.gathered()

    def how_to_go_on(self) -> str:
        """What to print where the run was asked to stop."""
        if not self.position.step:
            return "stopped before the first step, so there is no checkpoint: start again with --resume auto"
        return f"stopped after step {self.position.step}; go on with --resume"

    def save(self, alone: bool = False) -> None:
        """Write a checkpoint. Called on all ranks, of which the main one writes; all of a sharded run.

        alone: without the other ranks, right after a step that they share; not if its checkpoint is there.
        """
        if alone and self.saved_step == self.position.step:
            return
        if not alone:
            self.sums = self.log.state(self.guard.sums)
        folder, keep = self.folder / "checkpoints", (self.arguments.keep_checkpoints, self.arguments.keep_every)
        if self.shards is not None:
            save_shards(folder, self.shards, self.optimizer, self.progress(), *keep)
        elif self.accelerator.is_main_process:
            save_checkpoint(folder, self.method, self.optimizer, self.progress(), *keep)
        self.saved_step = self.position.step
        if not alone:
            self.accelerator.wait_for_everyone()

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors, as JSON."""
        scaler = self.accelerator.scaler
        progress = {"step": self.position.step, "scaler": scaler and scaler.state_dict()}
        progress |= {"position": self.position.state(), "guard": self.guard.state(), "log": self.sums}
        return progress | {"run": self.claim.identity}

    def load(self, checkpoint: Path, progress: dict[str, Any]) -> None:
        """Take over the state in a checkpoint, but not the position in the data."""
        load_checkpoint(checkpoint, self.shards or self.method, self.optimizer, progress)
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
        checkpoint, progress, _ = on_main(self.accelerator, lambda: newest_valid(self.folder / "checkpoints"))
        again = step <= self.fell_back_before + self.arguments.max_skipped_steps
        if checkpoint is None or again:
            why = (
                "the run fell back once without coming further" if again else "there is no checkpoint to fall back to"
            )
            raise ValueError(
                f"{reason}, and {why}; lower the learning rate or look at the samples, and go on with --resume auto"
            )
        self.fell_back_before = step
        self.position.go_back(progress["step"])
        self.load(checkpoint, progress)
        self.log.go_back(self.position.step)
        self.guard.in_row = self.guard.in_row * 0
        self.guard.sums.clear()
        self.log.warn(self.position.step, f"{reason}: back to {checkpoint.name}, with other samples")
