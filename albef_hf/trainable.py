"""What the training loop may ask of anything it trains."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


class Trainable(nn.Module):
    """Base of ALBEF's models and of the image-only methods: the whole contract with `training/loop.py`.

    A subclass writes `forward(**batch)`. It returns a `ModelOutput` whose first field is `loss`, a scalar; every field
    whose name begins with `loss` is logged. `forward` changes nothing: no parameter, no buffer, no counter. Everything
    else below has a default, and these are all the calls the loop makes:

    - before the first step: `schedules`, `warnings`, `chance_losses`, `levels`;
    - in each micro-batch: `forward`, then after the backward pass `enqueue` and `metrics`;
    - in each optimizer step: `update_momentum`, after the optimizer;
    - with each row of the log: `health`, `momentum_at`, `alarm`.

    Attributes:
        name: of the method, in the log, the card and `method` of a configuration.
    """

    name = ""

    def schedules(self, steps_per_epoch: int, total_steps: int) -> dict[str, Sequence[float]]:
        """Arguments of `forward` that change during a run: one value for each optimizer step, by name. Logged too."""
        return {}

    def enqueue(self, output: Any) -> None:
        """Put what `forward` made into queues. Called after the backward pass, so that `forward` stays pure."""

    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None:
        """Move the momentum copies after optimizer step `step` (from 0) of `total_steps`."""

    def momentum_at(self, step: int, total_steps: int) -> float | None:
        """The momentum of `update_momentum(step, total_steps)`, for the log; None leaves it out."""
        return None

    def metrics(self, output: Any) -> dict[str, torch.Tensor]:
        """Scalars of an output worth a curve, on the device and without gradient. Averaged between rows of the log."""
        return {}

    def health(self, output: Any) -> dict[str, torch.Tensor]:
        """Further scalars that cost too much for every step: of the last output before each row of the log."""
        return {}

    def alarm(self, values: Mapping[str, float]) -> str | None:
        """A warning where the values of a log row look wrong (such as a collapse), else None."""
        return None

    def warnings(self, *, rows: int, batch_size: int, total_steps: int, optimizer: str) -> list[str]:
        """What looks wrong before the first step.

        Args:
            rows: samples of an epoch. batch_size: samples per device and micro-batch. total_steps: optimizer steps.
            optimizer: its name, as in the arguments.
        """
        return []

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        """The value of each loss for a model that knows nothing, by name. batch_size: samples per device."""
        return {}

    def levels(self, batch_size: int) -> dict[str, float]:
        """Chance or collapse level of each other curve that has one, by name. batch_size: samples per device."""
        return {}


__all__ = ["Trainable"]
