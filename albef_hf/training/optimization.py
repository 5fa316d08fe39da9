"""AdamW groups and the published learning rate, a pure function of the step."""

import math

import torch
from torch import nn

from .arguments import TrainingArguments


def learning_rate(arguments: TrainingArguments, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    Published: linear warm-up in plateaus of 100 steps within the first epoch, then a cosine from the highest to the
    lowest rate over the epochs, constant within each. `cosine_per_step` falls smoothly after the warm-up.
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
    else:
        raise ValueError(f"schedule must be cosine_per_epoch or cosine_per_step, not {arguments.schedule!r}")
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * progress))


def build_optimizer(model: nn.Module, arguments: TrainingArguments) -> torch.optim.AdamW:
    """AdamW without decay of vectors (biases and norms). As published, the 0-d temperature, position tables, the class
    token and embeddings are decayed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() != 1], "weight_decay": arguments.weight_decay},
        {"params": [p for p in trainable if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)
