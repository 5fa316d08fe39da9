"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230)."""

from collections.abc import Sequence

import torch
from torch import nn

from albef_hf.gathering import sum_over_ranks, world_size
from albef_hf.losses import full_precision
from albef_hf.vision_backbone import VisionBackbone

from .heads import perceptron
from .losses import barlow_twins_loss
from .method import ImageMethod, MethodOutput, view_pair
from .normalization import synchronize_batch_norm


class BarlowTwins(ImageMethod):
    """The cross-correlation of both views' projections, over the batch of all ranks, becomes the identity.

    Args:
        projector_dims: widths of the projector's layers (8192, 8192, 8192).
        redundancy_weight: lambda (0.0051).
        loss_scale: what the loss is multiplied with. Matters with LARS, which leaves vectors out; for a projector
            narrower than 8192 the authors suggest about 196 / dim.
        published_gradient: the published code's all-reduce is invisible to autograd, so that its gradients are the
            true ones over the number of ranks. On, this reproduces them; the published learning rate of biases,
            0.0048, belongs to such gradients on 16 ranks.
        chunk_size: see `ImageMethod`.
    """

    name = "barlow_twins"

    def __init__(
        self,
        backbone: VisionBackbone,
        *,
        projector_dims: Sequence[int] = (8192, 8192, 8192),
        redundancy_weight: float = 0.0051,
        loss_scale: float = 1.0,
        published_gradient: bool = False,
        chunk_size: int = 0,
    ) -> None:
        super().__init__(backbone, chunk_size=chunk_size)
        self.redundancy_weight, self.loss_scale = redundancy_weight, loss_scale
        self.published_gradient = published_gradient
        widths = (backbone.width, *projector_dims)
        self.projector = perceptron(widths, hidden_norm=True, last_norm=False, hidden_bias=False, last_bias=False)
        self.standardize = nn.BatchNorm1d(widths[-1], affine=False)
        synchronize_batch_norm(self)

    def forward(self, views: torch.Tensor, shuffle_draws: torch.Tensor | None = None) -> MethodOutput:
        """views: (batch, 2, channels, height, width)."""
        projections = [full_precision(projection) for projection in self.project(self, view_pair(views))]
        with torch.autocast(views.device.type, enabled=False):
            correlation = self._correlation(*projections)
            loss = self.loss_scale * barlow_twins_loss(correlation, self.redundancy_weight)
        with torch.no_grad():
            dim = len(correlation)
            diagonal = correlation.diagonal()
            others = (correlation.square().sum() - diagonal.square().sum()) / max(1, dim * (dim - 1))
            extra = {"correlation_diagonal": diagonal.mean(), "correlation_off_diagonal": others.sqrt()}
        first, second = (projection.detach() for projection in projections)
        return MethodOutput(loss=loss, projections=first, queries=first, targets=second, extra=extra)

    def _correlation(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """C (dim, dim): standardized coordinates over the batch of all ranks, with biased variances."""
        local = self.standardize(first).T @ self.standardize(second) / (len(first) * world_size())
        # All ranks have the same C and so the same gradient with respect to it: their sum needs no exchange. The
        # published code takes the own one alone. The term added is 0.
        ranks = 1 if self.published_gradient else world_size()
        return sum_over_ranks(local.detach()) + ranks * (local - local.detach())

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        """Of unrelated projections: C holds noise of variance 1 / batch."""
        dim, noise = self.standardize.num_features, 1 / (batch_size * world_size())
        return {"loss": self.loss_scale * dim * (1 + noise + self.redundancy_weight * (dim - 1) * noise)}

    def levels(self, batch_size: int) -> dict[str, float]:
        return super().levels(batch_size) | {"correlation_diagonal": 0.0}
