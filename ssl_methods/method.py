"""What an image-only method is: a vision backbone with heads, two views in, a loss out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from albef_hf.momentum import MomentumCopy
from albef_hf.trainable import Trainable
from albef_hf.vision_backbone import VisionBackbone

from .health import effective_rank, momentum_drift, pair_statistics, projection_spread, uniformity
from .normalization import FrozenRunningStatistics, has_batch_norm

COLLAPSED_SPREAD = 0.1  # of projections; healthy runs stay above 0.5, a collapsed one falls to 0.01
SMALLEST_BATCH_NORM = 16


@dataclass
class MethodOutput(ModelOutput):
    """One step of an image-only method.

    loss: scalar.
    projections: (batch, dim) of the online projector for view 1, what collapse shows in.
    queries, targets: (batch, dim), what the loss brings together, row by row.
    new_keys: (ranks * batch, dim) for the queue, where there is one.
    extra: further scalars worth a curve.
    """

    loss: torch.Tensor | None = None
    projections: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    new_keys: torch.Tensor | None = None
    extra: dict[str, torch.Tensor] | None = None


class ImageMethod(Trainable):
    """Base of the methods; what else a method may override stands in `Trainable`.

    Args:
        backbone: the online encoder. Features for other tasks are its pooled output, before the projector.
        momentum: weight of the old value in the momentum copies: 1 keeps them as they started (a fixed random target),
            0 makes them equal to the online weights (no target network).
        momentum_schedule: `constant`, or `cosine` from `momentum` to 1 over the run.
        chunk_size: images that go through the backbone at a time; 0: all. Their activations are not kept but made
            again for the backward pass, so that the loss sees a batch that does not fit in memory (as a gradient
            cache does). Gradients are those of the whole batch; batch normalization inside the *backbone* takes its
            statistics per chunk, that of the heads over the whole batch.

    Raises:
        ValueError: a momentum outside 0 .. 1 or an unknown schedule.
    """

    projector: nn.Module
    per_device_batch_norm = False  # whether statistics of normalization stay on a device

    def __init__(
        self,
        backbone: VisionBackbone,
        *,
        momentum: float = 0.0,
        momentum_schedule: str = "constant",
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in 0 .. 1, not {momentum}")
        if momentum_schedule not in ("constant", "cosine"):
            raise ValueError(f"momentum_schedule must be constant or cosine, not {momentum_schedule!r}")
        self.backbone = backbone
        self.momentum_copy: MomentumCopy | None = None
        self.momentum, self.momentum_schedule, self.chunk_size = momentum, momentum_schedule, chunk_size

    def encode(self, backbone: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Pooled features (batch, width), `chunk_size` images at a time. pixels: (batch, channels, height, width)."""
        if not self.chunk_size or len(pixels) <= self.chunk_size:
            return backbone(pixels).pooled
        return self._encode_chunks(backbone, pixels)

    def _encode_chunks(self, backbone: Any, pixels: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return torch.cat([backbone(chunk).pooled for chunk in pixels.split(self.chunk_size)])
        again = FrozenRunningStatistics(backbone)

        def contexts() -> tuple[Any, Any]:
            return torch.enable_grad(), again

        return torch.cat(
            [
                checkpoint(lambda part: backbone(part).pooled, chunk, use_reentrant=False, context_fn=contexts)
                for chunk in pixels.split(self.chunk_size)
            ]
        )

    def project(self, encoders: Any, views: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Projections (batch, dim), one view after the other. encoders: the method itself, or its copies."""
        return [encoders.projector(self.encode(encoders.backbone, view)) for view in views]

    def online_modules(self) -> Mapping[str, nn.Module]:
        """What the momentum copies follow: backbone and projector."""
        return {"backbone": self.backbone, "projector": self.projector}

    def momentum_at(self, step: int, total_steps: int) -> float:
        """The momentum after optimizer step `step`, counted from 0 (BYOL, section 3.2)."""
        if self.momentum_schedule == "constant":
            return self.momentum
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * step / max(1, total_steps))) / 2

    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None:
        """Move the momentum copies after optimizer step `step` of `total_steps`."""
        if self.momentum_copy is not None:
            self.momentum_copy.update(self.online_modules(), self.momentum_at(step, total_steps))

    @torch.no_grad()
    def metrics(self, output: MethodOutput) -> dict[str, torch.Tensor]:
        """See `Trainable.metrics` and `ssl_methods.health`."""
        assert output.projections is not None and output.queries is not None and output.targets is not None
        return {
            "projection_spread": projection_spread(output.projections),
            "uniformity": uniformity(output.projections),
            **pair_statistics(output.queries, output.targets),
            **(output.extra or {}),
        }

    @torch.no_grad()
    def health(self, output: MethodOutput) -> dict[str, torch.Tensor]:
        """See `Trainable.health`."""
        assert output.projections is not None
        values = {"effective_rank": effective_rank(output.projections)}
        if self.momentum_copy is not None:
            values["momentum_drift"] = momentum_drift(*self.momentum_copy.pairs(self.online_modules()))
        return values

    def levels(self, batch_size: int) -> dict[str, float]:
        """See `Trainable.levels`."""
        return {"projection_spread": COLLAPSED_SPREAD, "contrastive_accuracy": 1 / batch_size, "uniformity": 0.0}

    def alarm(self, values: Mapping[str, float]) -> str | None:
        """A warning where the logged values look like a collapse. Loss and rank of the backbone do not show it: a
        collapsed BYOL has loss 0, and its features keep a high rank."""
        if values["projection_spread"] < COLLAPSED_SPREAD:
            return (
                f"collapse: projections of different images are equal (spread {values['projection_spread']:.3f} below "
                f"{COLLAPSED_SPREAD})"
            )
        return None

    def warnings(self, *, rows: int, batch_size: int, total_steps: int, optimizer: str) -> list[str]:
        """See `Trainable.warnings`."""
        found = []
        normalized, vit = has_batch_norm(self.backbone), self.backbone.prefix_tokens > 0
        per_part = batch_size // getattr(self, "batch_norm_splits", 1)
        if normalized and self.per_device_batch_norm and per_part < SMALLEST_BATCH_NORM:
            found.append(f"batch normalization over {per_part} images: its statistics will be noise; raise batch_size")
        if self.momentum_copy is not None and 0 < self.momentum < 1 and 1 / (1 - self.momentum) > total_steps / 4:
            found.append(
                f"momentum {self.momentum} remembers {1 / (1 - self.momentum):.0f} steps, and the run has "
                f"{total_steps}: the copies will hardly leave their start; try {max(0.0, 1 - 20 / total_steps):.3g}"
            )
        if optimizer == "lars" and vit:
            found.append("LARS on a ViT tends to collapse; use adamw")
        return found


def view_pair(views: torch.Tensor) -> Sequence[torch.Tensor]:
    """(batch, 2, channels, height, width) -> two views, (batch, channels, height, width) each."""
    if views.dim() != 5 or views.shape[1] != 2:
        raise ValueError(f"views must be (batch, 2, channels, height, width), not {tuple(views.shape)}")
    return views[:, 0].contiguous(), views[:, 1].contiguous()
