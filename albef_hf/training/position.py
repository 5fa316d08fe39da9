"""Where a run is: its step, and the sample of the epoch that comes next."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.batches import TrainingData
from .arguments import TrainingArguments


@dataclass
class Length:
    """Optimizer steps of a run and of an epoch."""

    steps_per_epoch: int
    total_steps: int


def run_length(arguments: TrainingArguments, data: TrainingData) -> Length:
    """The length of a run, from `max_steps` or else from `epochs`."""
    steps_per_epoch = max(1, data.steps_per_epoch // arguments.accumulation)
    return Length(steps_per_epoch, arguments.max_steps or math.ceil(arguments.epochs * steps_per_epoch))


@dataclass
class Position:
    """Counted in samples, so that a run can go on with another batch size, number of ranks or accumulation.

    Args:
        length: of the run.
        batch: samples of a micro-batch over all ranks. accumulation: micro-batches of a step.
        rows: samples of an epoch. used: of them by full global batches.

    Attributes:
        step: optimizer steps made, skipped ones included.
        epoch: its number, from 0. sample: how many of its samples are used.
        origin: the sample from which the batches of this epoch are counted; 0 unless the batch changed within it.
        shift: what to add to `step` for the step of the schedules; 0 unless the batch changed.
    """

    length: Length
    batch: int
    accumulation: int
    rows: int
    used: int
    step: int = 0
    epoch: int = 0
    sample: int = 0
    origin: int = 0
    shift: int = 0
    ranks: int = field(default=1)

    @property
    def scheduled(self) -> int:
        """The step of the schedules."""
        return self.step + self.shift

    @property
    def first_batch(self) -> int:
        """The number of the next micro-batch of a rank, as in `TrainingData.batches`."""
        per_epoch = self.used // self.batch
        return self.epoch * per_epoch + (self.sample - self.origin) // self.batch

    def advance(self) -> None:
        """Make a step."""
        size = self.batch * self.accumulation
        end = self.origin + (self.rows - self.origin) // size * size if self.origin else self.used
        self.step += 1
        self.sample += size
        if self.sample >= end:
            self.epoch, self.sample, self.origin = self.epoch + 1, self.sample - end, 0

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON."""
        return {
            "epoch": self.epoch, "sample": self.sample, "origin": self.origin, "shift": self.shift,
            "batch": [self.batch, self.accumulation, self.ranks], "steps_per_epoch": self.length.steps_per_epoch,
        }  # fmt: skip

    def load(self, step: int, state: Mapping[str, Any], max_steps: int) -> None:
        """Go on from what `state` returned, or from a step alone.

        Args:
            max_steps: the length of the run if it is given in steps: the schedules then count steps; 0: epochs.
        """
        self.step = step
        if not state:  # of a version that counted micro-batches
            self.epoch, batches = divmod(step * self.accumulation, self.used // self.batch)
            self.sample = batches * self.batch
            return
        self.epoch, self.sample, self.origin, self.shift = (
            state[name] for name in ("epoch", "sample", "origin", "shift")
        )
        if state["batch"] == [self.batch, self.accumulation, self.ranks]:
            return
        if state["batch"][0] * state["batch"][1] != self.batch * self.accumulation:
            if not max_steps:
                epochs = (step + self.shift) / state["steps_per_epoch"]
                self.shift = math.ceil(epochs * self.length.steps_per_epoch) - step
            self.origin = self.sample
        if self.rows - self.sample < self.batch * self.accumulation:
            self.epoch, self.sample, self.origin = self.epoch + 1, 0, 0
