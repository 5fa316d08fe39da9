"""Evaluation mode for a while, and work of each rank that fails on all of them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

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


class Requests:
    """How a request to stop reaches work that ranks do by themselves: see `failing_together`.

    Attributes:
        held: a request has to wait for the next such work, as while ranks tell each other whether they failed.
        status: exit status of a request that waits; 0: none.
    """

    held = False
    status = 0


requests = Requests()


@contextmanager
def failing_together() -> Iterator[None]:
    """A context for what each rank does by itself before all gather. Entered and left on all ranks.

    If one rank failed alone, the others would wait for it, or would take what it sends next for what they wait for.

    Raises:
        RuntimeError: another rank failed; names it and its error. A rank's own error is raised as it is.
        SystemExit: this rank or another one was asked to stop.
    """
    error: Exception | SystemExit | None = None
    held, requests.held = requests.held, False
    try:
        if requests.status:
            raise SystemExit(requests.status)
        yield
        requests.held = True
    except (Exception, SystemExit) as raised:
        requests.held = True
        error = raised
    try:
        if world_size() > 1:
            _tell(error)
    finally:
        requests.held = held
    if error is not None:
        raise error


def _tell(error: Exception | SystemExit | None) -> None:
    """Tell the other ranks of an error, and raise what they tell of; an own one is left to the caller."""
    stopped = isinstance(error, SystemExit)
    said: list[tuple[str, int] | None] = [None] * world_size()
    with suppress(Exception) if stopped else nullcontext():  # the others may have left already
        status = int(error.code or 0) if isinstance(error, SystemExit) else 0
        dist.all_gather_object(said, None if error is None else (f"{type(error).__name__}: {error}", status))
    told = [(number, *each) for number, each in enumerate(said) if each is not None]
    if not stopped and any(status for *_, status in told):
        raise SystemExit(max(status for *_, status in told))
    if error is None and told:
        raise RuntimeError("; ".join(f"rank {number}: {text}" for number, text, _ in told))
