"""Where a run is: its step, and the sample of the epoch that comes next."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
        batching: samples of a rank's micro-batch, micro-batches of a step, ranks.
        rows: samples of an epoch. used: of them in batches, where an epoch is not begun within.

    Attributes:
        step: optimizer steps made, skipped ones included.
        shift: what to add to `step` for the step of the schedules; 0 unless the global batch changed.
        base: a step, and the epoch and sample that followed it; `origin`: the sample from which the batches of that
            epoch are counted, 0 unless the global batch changed within it.
    """

    length: Length
    batching: tuple[int, int, int]
    rows: int
    used: int
    step: int = 0
    shift: int = 0
    base: tuple[int, int, int] = (0, 0, 0)
    origin: int = 0

    def _now(self) -> tuple[int, int, int]:
        """Epoch, samples of it that are used, and the sample its batches are counted from."""
        step, epoch, sample = self.base
        sample += (self.step - step) * math.prod(self.batching)
        size = math.prod(self.batching)
        end = self.origin + (self.rows - self.origin) // size * size if self.origin else self.used
        if sample < end:
            return epoch, sample, self.origin
        more, sample = divmod(sample - end, self.used)
        return epoch + 1 + more, sample, 0

    def go_back(self, step: int) -> None:
        """Go back to an earlier step, but not in the data."""
        epoch, sample, self.origin = self._now()
        self.step, self.base = step, (step, epoch, sample)

    def next_batch(self) -> tuple[int, int]:
        """The number of the next micro-batch of a rank and the origin, as `TrainingData.batches` takes them."""
        epoch, sample, origin = self._now()
        batch = self.batching[0] * self.batching[2]
        return epoch * (self.used // batch) + (sample - origin) // batch, origin

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON."""
        epoch, sample, origin = self._now()
        return {
            "epoch": epoch,
            "sample": sample,
            "origin": origin,
            "shift": self.shift,
            "batching": list(self.batching),
            "steps_per_epoch": self.length.steps_per_epoch,
        }

    def load(self, step: int, state: Mapping[str, Any], max_steps: int) -> None:
        """Go on from what `state` returned, or from a step alone.

        Args:
            max_steps: the length of the run if it is given in steps: the schedules then count steps; 0: epochs.
        """
        self.step = step
        if not state:  # a checkpoint of a version that counted batches
            return
        epoch, sample = state["epoch"], state["sample"]
        self.shift, self.origin = state["shift"], state["origin"]
        size = math.prod(self.batching)
        if math.prod(state["batching"]) != size:
            if not max_steps:
                epochs = (step + self.shift) / state["steps_per_epoch"]
                self.shift = math.ceil(epochs * self.length.steps_per_epoch) - step
            self.origin = sample
            if self.rows - sample < size:
                epoch, sample, self.origin = epoch + 1, 0, 0
        self.base = (step, epoch, sample)
