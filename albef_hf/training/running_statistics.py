"""Running statistics of batch normalization, which every rank has of its own samples."""

import torch
from accelerate import Accelerator
from torch import nn


def running_statistics(method: nn.Module) -> list[torch.Tensor]:
    """The running means and variances of a method that every rank has of its own samples.

    Those of synchronized batch normalization, which has a `process_group`, are equal on all ranks already.
    """
    return [
        value
        for module in method.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and not hasattr(module, "process_group")
        for value in (module.running_mean, module.running_var)
        if value is not None
    ]


@torch.no_grad()
def average(statistics: list[torch.Tensor], accelerator: Accelerator) -> None:
    """Make running statistics of all ranks their mean over the ranks.

    Called on all ranks after each step, and not only before they are used or saved: a run that stops in between would
    round once more than one that does not.
    """
    if statistics:
        flat = accelerator.reduce(torch.cat([value.flatten() for value in statistics]), "mean")
        parts = flat.split([value.numel() for value in statistics])
        torch._foreach_copy_(statistics, [p.view_as(v) for p, v in zip(parts, statistics, strict=True)])
