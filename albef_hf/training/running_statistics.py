"""Running statistics of batch normalization, which every rank has of its own samples."""

import torch
from accelerate import Accelerator
from torch import nn


@torch.no_grad()
def average_running_statistics(method: nn.Module, accelerator: Accelerator) -> None:
    """Make the running means and variances of all ranks their mean over the ranks, before they are used or saved.

    Synchronized batch normalization has equal ones already, which stay as they are but for rounding.
    """
    if accelerator.num_processes == 1:
        return
    statistics = [
        value
        for module in method.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for value in (module.running_mean, module.running_var)
        if value is not None
    ]
    if statistics:
        flat = accelerator.reduce(torch.cat([value.flatten() for value in statistics]), "mean")
        parts = flat.split([value.numel() for value in statistics])
        torch._foreach_copy_(statistics, [p.view_as(v) for p, v in zip(parts, statistics, strict=True)])
