"""Batch normalization over all ranks, on any device, and over parts of a batch."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from albef_hf.gathering import sum_over_ranks, world_size
from albef_hf.losses import full_precision


class SyncBatchNorm(_BatchNorm):
    """torch's, which runs on accelerators only, and the same on the CPU. Every rank must hold equally many rows.

    It is no `nn.SyncBatchNorm`, since `DistributedDataParallel` refuses a model that has one on the CPU.
    """

    process_group = None  # all ranks
    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training or world_size() == 1:
            return _BatchNorm.forward(self, features)
        if features.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, features)  # type: ignore[arg-type]
        given, features = features.dtype, full_precision(features)  # as torch's: statistics are not rounded
        dims = [0, *range(2, features.dim())]
        shape = (1, -1, *(1,) * (features.dim() - 2))
        count = features.numel() // features.shape[1] * world_size()
        mean = sum_over_ranks(features.sum(dims)) / count
        centered = features - mean.view(shape)
        variance = sum_over_ranks(centered.square().sum(dims)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr,operator]
                rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
                self.running_mean.lerp_(mean, rate)
                self.running_var.lerp_(variance * (count / (count - 1)), rate)
        normal = centered * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(given)


class SplitBatchNorm(nn.BatchNorm2d):
    """Statistics of `splits` equal parts of the batch, each by itself, as if each part lay on its own device.

    This is what makes shuffled keys useful on one device (MoCo, section 3.3, and its CIFAR demonstration). The running
    statistics follow the mean over the parts.
    """

    splits = 1

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training or self.splits == 1:
            return super().forward(features)
        n, channels, height, width = features.shape
        if n % self.splits:
            raise ValueError(f"a batch of {n} does not divide into batch_norm_splits = {self.splits} equal parts")
        # Part p of channel c becomes a channel of its own: (n / splits, splits * channels, height, width).
        parts = features.view(self.splits, n // self.splits, channels, height, width).transpose(0, 1)
        parts = parts.reshape(n // self.splits, self.splits * channels, height, width)
        running = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        mean, variance = (None if each is None else each.repeat(self.splits) for each in running)
        weight, bias = self.weight.repeat(self.splits), self.bias.repeat(self.splits)
        rate = 0.1 if self.momentum is None else self.momentum
        out = nn.functional.batch_norm(parts, mean, variance, weight, bias, True, rate, self.eps)
        if mean is not None and variance is not None:
            with torch.no_grad():
                self.running_mean.copy_(mean.view(self.splits, channels).mean(0))  # type: ignore[union-attr]
                self.running_var.copy_(variance.view(self.splits, channels).mean(0))  # type: ignore[union-attr]
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr,operator]
        out = out.view(n // self.splits, self.splits, channels, height, width).transpose(0, 1)
        return out.reshape(n, channels, height, width)


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def _replace(module: nn.Module, replacement: type[_BatchNorm]) -> None:
    for name, part in module.named_children():
        if type(part) in (nn.BatchNorm1d, nn.BatchNorm2d):
            assert isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))
            new = replacement(part.num_features, part.eps, part.momentum, part.affine, part.track_running_stats)
            new.load_state_dict(part.state_dict())
            setattr(module, name, new.train(part.training))
        elif isinstance(part, _BatchNorm) and not isinstance(part, (SyncBatchNorm, SplitBatchNorm)):
            raise ValueError(f"{type(part).__name__} of this backbone cannot be normalized over ranks or parts")
        else:
            _replace(part, replacement)


def synchronize_batch_norm(module: nn.Module) -> None:
    """Every batch normalization inside takes its statistics over all ranks."""
    _replace(module, SyncBatchNorm)


def split_batch_norm(module: nn.Module, splits: int) -> None:
    """Every 2-d batch normalization inside takes its statistics over each of `splits` parts of the batch."""
    _replace(module, SplitBatchNorm)
    for part in module.modules():
        if isinstance(part, SplitBatchNorm):
            part.splits = splits


class FrozenRunningStatistics:
    """While entered, batch normalization in training mode leaves its running statistics alone: for a second pass over
    rows that were counted already."""

    def __init__(self, module: nn.Module) -> None:
        self.parts = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
        self.kept: list[tuple[float | None, torch.Tensor | None]] = []

    def __enter__(self) -> None:
        self.kept = [(part.momentum, part.num_batches_tracked) for part in self.parts]
        for part in self.parts:
            part.momentum = 0.0
            part.num_batches_tracked = part.num_batches_tracked.clone()  # type: ignore[union-attr]

    def __exit__(self, *_: object) -> None:
        for part, (momentum, count) in zip(self.parts, self.kept, strict=True):
            part.momentum, part.num_batches_tracked = momentum, count
