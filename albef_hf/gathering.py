"""Gathering and reducing across ranks. Without a process group there is one rank, and tensors stay as they are."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor

# Newer versions of torch rename it, and warn of the former name.
_all_gather = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """(n, ...) on every rank -> (ranks * n, ...) in rank order, without gradient. n must be equal on all ranks."""
    if world_size() == 1:
        return rows
    gathered = rows.new_empty((world_size() * rows.shape[0], *rows.shape[1:]))
    getattr(dist, _all_gather)(gathered, rows.contiguous())
    return gathered


class RowExchange:
    """Fetch rows that other ranks hold, by an exchange in which each rank sends only what others asked for.

    What a rank sends and holds does not grow with the number of ranks. The host waits for the device once, to learn
    how many rows go where.

    Args:
        index: (n,) rows that this rank needs, in the rows of all ranks in rank order; each rank has its own.
        count: rows that each rank holds, equal on all ranks.
    """

    def __init__(self, index: torch.Tensor, count: int) -> None:
        self.count, ranks = count, world_size()
        owners = index // count
        self.order = owners.argsort(stable=True)
        wanted = (owners[:, None] == torch.arange(ranks, device=index.device)).sum(0)
        asked = torch.empty_like(wanted)
        dist.all_to_all_single(asked, wanted)
        if isinstance(index, FakeTensor):  # a plan has no data: as many rows of each rank
            self.wanted = self.asked = [(len(index) + other) // ranks for other in range(ranks)]
        else:
            self.wanted, self.asked = torch.stack([wanted, asked]).tolist()
        self.rows = self._send((index % count)[self.order], self.wanted, self.asked)

    @staticmethod
    def _send(rows: torch.Tensor, there: list[int], here: list[int]) -> torch.Tensor:
        received = rows.new_empty((sum(here), *rows.shape[1:]))
        dist.all_to_all_single(received, rows.contiguous(), here, there)
        return received

    def fetch(self, rows: torch.Tensor) -> torch.Tensor:
        """(count, ...) on every rank -> (n, ...), the rows of `index`.

        Gradients flow back to the rank each row came from, and are summed there. Each rank's loss is a mean over its
        own rows, and data-parallel training averages gradients over ranks. So the gradients equal those of one
        process whose loss is the mean over all rows.
        """
        return _FetchRows.apply(rows, self)

    def _fetch(self, rows: torch.Tensor) -> torch.Tensor:
        received = self._send(rows[self.rows], self.asked, self.wanted)
        return torch.empty_like(received).index_copy(0, self.order, received)

    def _give_back(self, gradient: torch.Tensor) -> torch.Tensor:
        received = self._send(gradient[self.order], self.wanted, self.asked)
        return gradient.new_zeros((self.count, *gradient.shape[1:])).index_add(0, self.rows, received)


class _FetchRows(torch.autograd.Function):
    @staticmethod
    def forward(context, rows: torch.Tensor, exchange: RowExchange) -> torch.Tensor:
        context.exchange = exchange
        return exchange._fetch(rows)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return context.exchange._give_back(gradient), None


@torch.no_grad()
def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over ranks, without gradient. Its value is not read from the device."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


class _SumOverRanks(torch.autograd.Function):
    """Every rank's loss depends on the input of every rank, so gradients are summed like values."""

    @staticmethod
    def forward(context, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over ranks; gradients flow through it.

    Autograd does not see a plain `all_reduce`: after data-parallel training has averaged gradients over ranks, those
    that flow through it would be too small by a factor of the number of ranks.
    """
    return value if world_size() == 1 else _SumOverRanks.apply(value)


@torch.no_grad()
def norms_over_ranks(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The norms (0-d) of tensors of which each rank has a part. Of a 0-d tensor every rank has the whole."""
    norms = torch.stack(torch._foreach_norm(list(parts)))
    squares = norms.double().square()
    dist.all_reduce(squares)
    split = torch.tensor([part.dim() > 0 for part in parts], device=norms.device)
    return list(torch.where(split, squares.sqrt().to(norms.dtype), norms).unbind())
