"""Evaluation mode for a while, and work of each rank that fails on all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn

from ..gathering import world_size


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and afterwards each back into its own (a frozen part may differ)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def failing_together() -> Iterator[None]:
    """A context for what each rank does by itself before all gather. Entered and left on all ranks.

    If one rank failed alone, the others would wait for it, or would take what it sends next for what they wait for.

    Raises:
        RuntimeError: another rank failed; names it and its error. A rank's own error is raised as it is.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if world_size() > 1:
        said: list[str | None] = [None] * world_size()
        dist.all_gather_object(said, None if error is None else f"{type(error).__name__}: {error}")
        failed = [f"rank {number}: {text}" for number, text in enumerate(said) if text is not None]
        if error is None and failed:
            raise RuntimeError("; ".join(failed))
    if error is not None:
        raise error
