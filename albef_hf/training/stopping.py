"""How a run stops when it is asked to: ranks agree on the step, save, and exit with the status of the signal."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..data.batches import STOP_SIGNALS
from ..evaluation.mode import requests
from .processes import launcher


class StopSignal:
    """A context in which SIGTERM, SIGINT and SIGUSR1 only ask the run to stop.

    A second SIGINT interrupts at once. Outside the main thread Python installs no signal handlers, so there the
    signals keep their usual effect.

    Attributes:
        asked: the signal that this process got; 0: none.
        agreed: the signal that some rank got and all ranks know of, so that they stop after this step; 0: none.
    """

    def __init__(self) -> None:
        self.asked = self.agreed = 0
        self.at_once = False
        self.save: Callable[[], None] = lambda: None
        self.handlers: dict[int, Any] = {}
        self.said: Any = None  # of the ranks in the last step: their signals, and the exchange of them under way
        self.group: Any = None

    def __enter__(self) -> "StopSignal":
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")  # of its own, so that it never waits for a device
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._ask) for number in STOP_SIGNALS}
        return self

    def _ask(self, number: int, *_: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self.asked or number
        if self.group is None:
            self.agreed = self.asked
        if self.at_once:
            self.at_once = False  # another signal does not interrupt what this one began
            self.save()
            if not requests.held:
                raise SystemExit(self.status)
            requests.status = self.status

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    @property
    def status(self) -> int:
        """The exit status: 130 after SIGINT, otherwise 143."""
        return 130 if (self.agreed or self.asked) == signal.SIGINT else 143

    def agree(self) -> None:
        """Called by all ranks after each step. What a rank was asked during a step, all know after the next one.

        This waits for no device: the flags travel beside the next step. A process alone agrees with itself at once.
        """
        if self.said is not None:
            flag, exchange = self.said
            exchange.wait()
            self.agreed = int(flag[0])
        flag = np.array([self.asked])
        self.said = flag, dist.all_reduce(torch.from_numpy(flag), dist.ReduceOp.MAX, self.group, async_op=True)

    @contextmanager
    def stopping_at_once(self, save: Callable[[], None] | None = None) -> Iterator[None]:
        """A context that a signal ends with SystemExit, also one that came before.

        Args:
            save: called at the signal itself, since data workers that are in the midst of a batch may delay the end.
                On several ranks a signal to one then ends it on all, where they next work by themselves: see
                `failing_together`. None: all is saved already.
        """
        self.at_once, self.save = True, save or (lambda: None)
        requests.held = save is not None and self.group is not None
        try:
            if self.asked and self.group is None:
                raise SystemExit(self.status)
            requests.status = self.status if self.asked else 0
            yield
        finally:
            self.at_once, requests.status, requests.held = False, 0, False


def parent_note() -> str | None:
    """What to know about signals if `accelerate launch` started this process alone; otherwise None."""
    if launcher() is None:
        return None
    return (
        f"note: `accelerate launch` does not pass SIGTERM on. To stop with a checkpoint, signal this process "
        f"({os.getpid()}) or the whole process group; see docs/resuming.md"
    )
