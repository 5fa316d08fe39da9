"""BYOL (Grill et al. 2020, arXiv 2006.07733)."""

import torch

from albef_hf.momentum import MomentumCopy
from albef_hf.vision_backbone import VisionBackbone

from .heads import perceptron
from .losses import byol_loss
from .method import ImageMethod, MethodOutput, view_pair
from .normalization import synchronize_batch_norm


class Byol(ImageMethod):
    """Each view's prediction approaches the other view's projection by the momentum copy; there are no negatives.

    `momentum: 1.0` is the paper's motivating experiment, a fixed random target (section 3). `momentum: 0.0` with
    `momentum_schedule: constant` has no target network and collapses, or nearly (table 5).

    Args:
        hidden_dim, dim: widths of projector and predictor (4096, 256).
        use_predictor, head_norm: the predictor, and the heads' batch normalization. Without them BYOL collapses; off,
            they make the control that a collapse alarm must catch.
        loss_scale: what the loss is multiplied with. With 0.25 it is the mean of both directions of 1 - cos.
        momentum, momentum_schedule, chunk_size: see `ImageMethod`.
    """

    name = "byol"

    def __init__(
        self,
        backbone: VisionBackbone,
        *,
        hidden_dim: int = 4096,
        dim: int = 256,
        use_predictor: bool = True,
        head_norm: bool = True,
        loss_scale: float = 1.0,
        momentum: float = 0.996,
        momentum_schedule: str = "cosine",
        chunk_size: int = 0,
    ) -> None:
        super().__init__(backbone, momentum=momentum, momentum_schedule=momentum_schedule, chunk_size=chunk_size)
        self.loss_scale = loss_scale
        shape = {"hidden_norm": head_norm, "last_norm": False, "hidden_bias": True, "last_bias": False}
        self.projector = perceptron((backbone.width, hidden_dim, dim), **shape)
        self.predictor = perceptron((dim, hidden_dim, dim), **shape) if use_predictor else torch.nn.Identity()
        synchronize_batch_norm(self)
        self.momentum_copy = MomentumCopy(self.online_modules())

    def forward(self, views: torch.Tensor, shuffle_draws: torch.Tensor | None = None) -> MethodOutput:
        """views: (batch, 2, channels, height, width)."""
        assert self.momentum_copy is not None
        pair = view_pair(views)
        projections = self.project(self, pair)
        predictions = [self.predictor(projection) for projection in projections]
        with torch.no_grad():
            targets = self.project(self.momentum_copy, pair)
        loss = byol_loss(predictions[0], targets[1]) + byol_loss(predictions[1], targets[0])  # a sum, not a mean
        return MethodOutput(
            loss=self.loss_scale * loss,
            projections=projections[0].detach(),
            queries=predictions[0].detach(),
            targets=targets[1],
        )

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        return {"loss": 4.0 * self.loss_scale}  # directions that have nothing to do with each other
