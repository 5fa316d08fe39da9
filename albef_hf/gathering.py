"""Rows of all ranks, in rank order. Without a process group each function returns its input."""

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """(n, ...) on every rank -> (ranks * n, ...), without gradient. Every rank must hold the same n."""
    if world_size() == 1:
        return rows
    gathered = rows.new_empty((world_size() * rows.shape[0], *rows.shape[1:]))
    dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered


class _GatherRows(torch.autograd.Function):
    """The gradient of a gathered row is the sum over ranks of what each rank's loss says about it."""

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
    """As `gather_rows`, and gradients flow back to the rank each row came from.

    The loss of each rank is a mean over its own rows and data-parallel training averages gradients over ranks, so the
    result equals one process whose loss is the mean over all rows.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows)


@torch.no_grad()
def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over ranks, without gradient and without a host read."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


class _SumOverRanks(torch.autograd.Function):
    """Every rank's loss depends on every rank's input, so the gradient is summed as the value is."""

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

    A plain `all_reduce` is invisible to autograd: with gradients averaged by data-parallel training, what goes through
    it would arrive divided by the number of ranks.
    """
    return value if world_size() == 1 else _SumOverRanks.apply(value)
