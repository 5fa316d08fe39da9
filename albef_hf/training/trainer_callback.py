"""ALBEF and the image-only methods under `transformers.Trainer`: what `training/loop.py` does beside its steps.

`Trainer` knows forward, backward and optimizer. This callback moves what lives from step to step besides weights: keys
enter the queues after each backward pass, and momentum copies follow after each optimizer step. Both are part of
`Trainer`'s checkpoints.
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from ..trainable import Trainable

FILE = "state.safetensors"


class MomentumCallback(TrainerCallback):
    """For `Trainer(callbacks=[MomentumCallback()])`: moves momentum copies and queues, and saves both.

    Scheduled arguments of `forward`, such as the ramp of alpha, are given to the model in each step too. It takes
    models and methods that are a `Trainable`, on any number of processes; without it, queues stay random and momentum
    copies stay as they began.

    Args:
        checkpoint: the folder to resume from; the one of `Trainer`'s last step in `output_dir` where left out.

    Raises:
        ValueError: the model is no `Trainable`, or the checkpoint lacks its momentum copies or queues.
    """

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        self.checkpoint = checkpoint
        self.method: Any = None
        self.output: Any = None
        self.hooks: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin to follow the model, and take over what a checkpoint that is resumed from holds."""
        self.method = method = _unwrapped(model)
        if not isinstance(method, Trainable):
            raise ValueError(f"MomentumCallback follows models of this package, not a {type(method).__name__}")
        if state.global_step:
            self._load(Path(self.checkpoint or Path(args.output_dir, f"checkpoint-{state.global_step}")))
        try:
            steps = math.ceil(len(kwargs["train_dataloader"]) / args.gradient_accumulation_steps)
        except TypeError:  # a stream
            steps = state.max_steps
        schedules = method.schedules(steps, state.max_steps)

        def schedule(module: nn.Module, arguments: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if not module.training:
                return arguments, given
            step = min(state.global_step, state.max_steps - 1)
            return arguments, {name: values[step] for name, values in schedules.items()} | given

        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            if module.training and torch.is_grad_enabled():
                self.output = output

        self.hooks = [
            method.register_forward_pre_hook(schedule, with_kwargs=True),
            method.register_forward_hook(keep),
        ]

    def _enqueue(self) -> None:
        if self.output is not None:
            self.method.enqueue(self.output)
        self.output = None

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the backward pass of a micro-batch that is not the last of its step."""
        self._enqueue()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last backward pass of a step."""
        self._enqueue()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer."""
        self.method.update_momentum(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the whole state into the checkpoint that `Trainer` has just written.

        Its own file lacks momentum copies and queues, and transformers renames weights of some backbones in it, which
        `Trainer` does not undo when it resumes.
        """
        if state.is_world_process_zero:
            tensors = {name: tensor.contiguous().clone() for name, tensor in self.method.state_dict().items()}
            save_file(tensors, Path(args.output_dir, f"checkpoint-{state.global_step}", FILE))

    def _load(self, folder: Path) -> None:
        if not (folder / FILE).is_file():
            raise ValueError(
                f"{folder / FILE} is missing: weights, momentum copies and queues cannot be resumed. If "
                "the run resumes from another folder, name it in MomentumCallback(checkpoint=...)"
            )
        saved, own = load_file(folder / FILE), self.method.state_dict()
        wrong = [name for name in own if name not in saved or saved[name].shape != own[name].shape]
        if wrong or len(saved) != len(own):
            raise ValueError(f"{folder / FILE} is of another model or configuration: {(wrong or [*saved])[0]} differs")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go of the model."""
        for hook in self.hooks:
            hook.remove()


def _unwrapped(model: Any) -> Any:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


__all__ = ["MomentumCallback"]
