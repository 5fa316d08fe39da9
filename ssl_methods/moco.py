"""MoCo v1 and v2 (He et al. 2020, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297)."""

import math

import torch
from torch import nn

from albef_hf.gathering import RowExchange, gather_rows, rank, world_size
from albef_hf.losses import unit_vectors
from albef_hf.momentum import FeatureQueue, MomentumCopy
from albef_hf.vision_backbone import VisionBackbone

from .heads import perceptron
from .losses import queue_contrastive_loss
from .method import ImageMethod, MethodOutput, view_pair
from .normalization import has_batch_norm, split_batch_norm


class MoCoV1(ImageMethod):
    """A query of view 1 finds the key of view 2, made by the momentum copy, among the keys of earlier batches.

    Args:
        dim: width of queries and keys.
        queue_size: keys kept (K).
        temperature: T.
        shuffle_keys: keys go through the copy in another order, over all ranks, so that batch normalization does not
            tell which query and key were neighbors (ShuffleBN, section 3.3). Without batch normalization nothing is
            shuffled.
        batch_norm_splits: parts of a device's batch that are normalized by themselves. On one device shuffling does
            nothing without them.
        momentum, momentum_schedule, chunk_size: see `ImageMethod`.
    """

    name = "moco_v1"
    keys_seen: torch.Tensor
    per_device_batch_norm = True

    def __init__(
        self,
        backbone: VisionBackbone,
        *,
        dim: int = 128,
        queue_size: int = 65536,
        temperature: float = 0.07,
        momentum: float = 0.999,
        momentum_schedule: str = "constant",
        shuffle_keys: bool = True,
        batch_norm_splits: int = 1,
        chunk_size: int = 0,
    ) -> None:
        super().__init__(backbone, momentum=momentum, momentum_schedule=momentum_schedule, chunk_size=chunk_size)
        self.temperature, self.batch_norm_splits = temperature, batch_norm_splits
        self.shuffle_keys = shuffle_keys and has_batch_norm(backbone)
        if batch_norm_splits > 1:
            split_batch_norm(self.backbone, batch_norm_splits)
        self.projector = self.build_projector(backbone.width, dim)
        self.momentum_copy = MomentumCopy(self.online_modules())
        self.queue = FeatureQueue(queue_size, dim)
        self.register_buffer("keys_seen", torch.zeros(1, dtype=torch.int64))

    def build_projector(self, width: int, dim: int) -> nn.Module:
        return nn.Linear(width, dim)

    def forward(self, views: torch.Tensor, shuffle_draws: torch.Tensor) -> MethodOutput:
        """views: (batch, 2, channels, height, width); shuffle_draws: (batch,) uniform numbers, one per image."""
        first, second = view_pair(views)
        queries = unit_vectors(self.projector(self.encode(self.backbone, first)))
        with torch.no_grad():
            all_keys = self._keys(second, shuffle_draws)
        keys = all_keys[rank() * len(queries) :][: len(queries)]
        loss = queue_contrastive_loss(queries, keys, self.queue.features.to(queries.dtype), self.temperature)
        return MethodOutput(
            loss=loss, projections=queries.detach(), queries=queries.detach(), targets=keys, new_keys=all_keys
        )

    def _keys(self, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Keys of the images of all ranks, each made by whichever rank the order of the draws sends it to."""
        assert self.momentum_copy is not None
        n = len(pixels)
        if self.shuffle_keys:
            order = gather_rows(draws).argsort()
            here = order[rank() * n :][:n]
            pixels = pixels[here] if world_size() == 1 else RowExchange(here, n).fetch(pixels)
        keys = unit_vectors(self.momentum_copy.projector(self.encode(self.momentum_copy.backbone, pixels)))
        keys = gather_rows(keys)
        return keys[order.argsort()] if self.shuffle_keys else keys

    @torch.no_grad()
    def enqueue(self, output: MethodOutput) -> None:
        """The keys of all ranks enter the queue: after the loss, so that no key is among its own negatives."""
        assert output.new_keys is not None
        self.queue.enqueue(output.new_keys)
        self.keys_seen += len(output.new_keys)

    def health(self, output: MethodOutput) -> dict[str, torch.Tensor]:
        fill = self.keys_seen[0] / max(1, self.queue.size)
        return super().health(output) | {"queue_fill": fill.clamp(max=1.0)}

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        return {"loss": math.log(self.queue.size + 1)}

    def warnings(self, *, rows: int, batch_size: int, total_steps: int, optimizer: str) -> list[str]:
        found = super().warnings(rows=rows, batch_size=batch_size, total_steps=total_steps, optimizer=optimizer)
        if self.queue.size >= rows:
            found.append(
                f"a queue of {self.queue.size} keys and {rows} images: every image is among its own negatives; "
                f"a tenth to a quarter of the images is enough ({rows // 8})"
            )
        if self.shuffle_keys and self.batch_norm_splits == 1 and torch.distributed.is_initialized() is False:
            found.append("one process: shuffled keys do nothing without batch_norm_splits, and queries may cheat")
        return found


class MoCoV2(MoCoV1):
    """MoCo with a perceptron for a projector and T = 0.2; its augmentation and cosine schedule are in the recipe.

    Args: as `MoCoV1`.
    """

    name = "moco_v2"

    def __init__(
        self,
        backbone: VisionBackbone,
        *,
        dim: int = 128,
        queue_size: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
        momentum_schedule: str = "constant",
        shuffle_keys: bool = True,
        batch_norm_splits: int = 1,
        chunk_size: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            dim=dim,
            queue_size=queue_size,
            temperature=temperature,
            momentum=momentum,
            momentum_schedule=momentum_schedule,
            shuffle_keys=shuffle_keys,
            batch_norm_splits=batch_norm_splits,
            chunk_size=chunk_size,
        )

    def build_projector(self, width: int, dim: int) -> nn.Module:
        return perceptron((width, width, dim), hidden_norm=False, last_norm=False, hidden_bias=True, last_bias=True)
