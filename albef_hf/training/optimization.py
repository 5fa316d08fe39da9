"""Optimizers, and learning rates as a pure function of the step."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..gathering import norms_over_ranks
from .arguments import OPTIMIZERS, SCHEDULES, TrainingArguments
from .sharding import Shards


def scaled_rates(arguments: TrainingArguments, samples_per_step: int, steps_per_epoch: int) -> TrainingArguments:
    """The arguments with learning rates scaled to the batch size (linear scaling) and the warm-up in steps.

    samples_per_step: of all ranks and micro-batches.
    """
    changes: dict[str, Any] = {}
    if arguments.learning_rate_per:
        factor = samples_per_step / arguments.learning_rate_per
        names = ("learning_rate", "minimum_learning_rate", "warmup_learning_rate", "bias_learning_rate")
        changes |= {name: getattr(arguments, name) * factor for name in names}
    if arguments.warmup_epochs:
        changes["warmup_steps"] = round(arguments.warmup_epochs * steps_per_epoch)
    return dataclasses.replace(arguments, **changes)


def learning_rate(arguments: TrainingArguments, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    Published for ALBEF: linear warm-up in plateaus of 100 steps within the first epoch, then a cosine from the highest
    to the lowest rate over the epochs, constant within each. `cosine_per_step` falls smoothly after the warm-up.
    `steps` falls to a tenth after each milestone (MoCo v1).

    Raises:
        ValueError: the schedule is unknown.
    """
    low, high = arguments.minimum_learning_rate, arguments.learning_rate
    if step < arguments.warmup_steps:
        plateau = step // arguments.warmup_every * arguments.warmup_every
        start = arguments.warmup_learning_rate
        return start + (high - start) * min(1.0, plateau / arguments.warmup_steps)
    if arguments.schedule == "cosine_per_epoch":
        progress = (step // steps_per_epoch) / max(1, math.ceil(total_steps / steps_per_epoch))
    elif arguments.schedule == "cosine_per_step":
        progress = (step - arguments.warmup_steps) / max(1, total_steps - arguments.warmup_steps)
    elif arguments.schedule == "steps":
        return high * 0.1 ** sum(step // steps_per_epoch >= milestone for milestone in arguments.milestones)
    else:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {arguments.schedule!r}")
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * progress))


def learning_rates(arguments: TrainingArguments, steps_per_epoch: int, total_steps: int) -> list[float]:
    """`learning_rate` of each optimizer step of a run."""
    return [learning_rate(arguments, step, steps_per_epoch, total_steps) for step in range(total_steps)]


class Lars(torch.optim.Optimizer):
    """LARS: layer-wise adaptive learning rates, as in the published code of MoCo v3 and Barlow Twins.

    For a matrix p with gradient g:  d = g + decay * p,  times  trust * |p| / |d|  (1 where a norm is 0);
    for a vector d = g. Then  m = momentum * m + d  and  p = p - rate * m.

    Args:
        params: parameters or groups; a group may have `adapt` (bool): treat its parameters as matrices.
        lr: learning rate, `rate` above.
        weight_decay: `decay` above.
        momentum, trust: as above.
        norms: of tensors, by which |p| and |d| are computed.

    Attributes:
        found_inf: 0-d tensor that the training loop sets: 1 makes `step` change nothing. It stays on the device.
    """

    found_inf: torch.Tensor | None = None

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
        norms: Callable[..., Sequence[torch.Tensor]] = torch._foreach_norm,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust, "adapt": True}
        self.norms = norms
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            for parameter in parameters:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum"] for parameter in parameters]
            if self.found_inf is not None:
                skipped = self.found_inf > 0
                gradients = [torch.where(skipped, 0.0, gradient) for gradient in gradients]
            if group["adapt"]:
                gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
                norms = self.norms(parameters), self.norms(gradients)
                for index, (weight, update) in enumerate(zip(*norms, strict=True)):
                    ratio = torch.where((weight > 0) & (update > 0), group["trust"] * weight / update, 1.0)
                    gradients[index] = gradients[index] * ratio
            if self.found_inf is not None:
                moved = [group["momentum"] * b + g for b, g in zip(buffers, gradients, strict=True)]
                for parameter, buffer, new in zip(parameters, buffers, moved, strict=True):
                    buffer.copy_(torch.where(skipped, buffer, new))
                    parameter.sub_(torch.where(skipped, 0.0, group["lr"] * buffer))
            else:
                torch._foreach_mul_(buffers, group["momentum"])
                torch._foreach_add_(buffers, gradients)
                torch._foreach_add_(parameters, buffers, alpha=-group["lr"])
        return loss


def start_momentum(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Give every parameter of SGD that has no momentum yet one of zeros, and return the optimizer.

    torch would make it in the first step, and would leave its memory as it is if that step is skipped.
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_optimizer(model: nn.Module | Shards, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Build the optimizer, with vectors (biases and norms) in a second group.

    Vectors have no weight decay unless `decay_vectors` is set, and `bias_learning_rate` gives them a learning rate of
    their own: the group's `rate_factor` multiplies the learning rate. As published for ALBEF, the 0-d temperature,
    position tables, the class token and embeddings are decayed.

    Raises:
        ValueError: the optimizer is unknown.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    factor = arguments.bias_learning_rate / arguments.learning_rate if arguments.bias_learning_rate else 1.0
    decay = arguments.weight_decay if arguments.decay_vectors else 0.0
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.dim() != 1], "weight_decay": arguments.weight_decay, "rate_factor": 1.0},
        {"params": [p for p in trainable if p.dim() == 1], "weight_decay": decay, "rate_factor": factor},
    ]
    if arguments.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)
    if arguments.optimizer == "sgd":
        return start_momentum(torch.optim.SGD(groups, lr=arguments.learning_rate, momentum=0.9, fused=True))
    if arguments.optimizer == "lars":
        groups[1]["adapt"] = arguments.decay_vectors
        norms = norms_over_ranks if isinstance(model, Shards) else torch._foreach_norm
        return Lars(groups, lr=arguments.learning_rate, norms=norms)
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {arguments.optimizer!r}")
