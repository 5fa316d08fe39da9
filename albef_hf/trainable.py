"""The interface between the training loop and whatever it trains."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


class Trainable(nn.Module):
    """Base of ALBEF's models and of the image-only methods, with everything that `training/loop.py` calls.

    A subclass defines `forward(**batch)`. It returns a `ModelOutput` whose first field is `loss`, a scalar; all fields
    whose names begin with `loss` are logged. `forward` changes no parameter, queue or counter. The other methods have
    defaults. The loop calls them

    - before the first step: `schedules`, `warnings`, `chance_losses`, `levels`;
    - in each micro-batch: `forward`, then after the backward pass `enqueue` and `metrics`;
    - in each optimizer step: `update_momentum`, after the optimizer;
    - with each row of the log: `health`, `momentum_at`, `alarm`.

    Attributes:
        name: of the method, as in the log, in the card and under `method` in a configuration.
    """

    name = ""

    def schedules(self, steps_per_epoch: int, total_steps: int) -> dict[str, Sequence[float]]:
        """Arguments of `forward` that change during a run: name -> value at each optimizer step. They are logged."""
        return {}

    def enqueue(self, output: Any) -> None:
        """Put keys from the output of `forward` into queues. Called after the backward pass."""

    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None:
        """Move the momentum copies after optimizer step `step` (from 0) of `total_steps`."""

    def momentum_at(self, step: int, total_steps: int) -> float | None:
        """The momentum of `update_momentum(step, total_steps)`, for the log; None leaves it out."""
        return None

    def metrics(self, output: Any) -> dict[str, torch.Tensor]:
        """Scalars to log, on the device and without gradient; averaged over the micro-batches of a log row."""
        return {}

    def health(self, output: Any) -> dict[str, torch.Tensor]:
        """Scalars too costly to compute in every step: from the last output before each row of the log."""
        return {}

    def alarm(self, values: Mapping[str, float]) -> str | None:
        """A warning if the values of a log row look wrong (such as a collapse), otherwise None."""
        return None

    def warnings(self, *, rows: int, batch_size: int, total_steps: int, optimizer: str) -> list[str]:
        """Warnings about the settings of a run, before its first step.

        Args:
            rows: samples of an epoch.
            batch_size: samples per device and micro-batch.
            total_steps: optimizer steps.
            optimizer: its name, as in `TrainingArguments`.
        """
        return []

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        """The value of each loss at chance, by its name. batch_size: samples per device and micro-batch."""
        return {}

    def levels(self, batch_size: int) -> dict[str, float]:
        """Chance or collapse level of other curves, by their names. batch_size: samples per device and micro-batch."""
        return {}


__all__ = ["Trainable"]
