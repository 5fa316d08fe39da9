"""Gathering and reducing across ranks. Without a process group there is one rank, and tensors stay as they are."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

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


class _GatherRows(torch.autograd.Function):
    """The gradient of a row is the sum of its gradients from the losses of all ranks."""

    @staticmethod
    def forward(context, rows: torch.Tensor) -> torch.Tensor:
        context.count = rows.shape[0]
        return gather_rows(rows)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank() * context.count : (rank() + 1) * context.count]


def gather_rows_with_gradient(rows: torch.Tensor) -> torch.Tensor:
    """Like `gather_rows`, with gradients that flow back to the rank each row came from.

    Each rank's loss is a mean over its own rows, and data-parallel training averages gradients over ranks. So the
    gradients equal those of one process whose loss is the mean over all rows.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows)


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
