"""MoCo v3 (Chen, Xie and He 2021, arXiv 2104.02057)."""

import math

import torch

from albef_hf.gathering import gather_rows, rank, world_size
from albef_hf.losses import unit_vectors
from albef_hf.momentum import MomentumCopy
from albef_hf.vision_backbone import VisionBackbone

from .heads import perceptron
from .losses import batch_contrastive_loss
from .method import ImageMethod, MethodOutput, view_pair
from .normalization import synchronize_batch_norm
from .vit import freeze_patch_projection as freeze_patches
from .vit import initialize_vit, patch_projection


class MoCoV3(ImageMethod):
    """Each view's prediction finds the other view's key, made by the momentum copy, among the keys of the whole batch.

    Args:
        hidden_dim, dim: widths of projector and predictor (4096, 256).
        projector_layers: 3 for a ViT, 2 otherwise, where left out.
        predictor_norm: batch normalization behind the predictor; for a ViT only, where left out.
        temperature: T; 0.2 for a ViT, 1.0 otherwise, where left out.
        initialize: prepare a ViT as the paper does: fixed sine-cosine positions, Xavier-uniform layers. Leave it off
            to start from a checkpoint.
        freeze_patch_projection: a ViT's patch projection stays as it is.
        momentum, momentum_schedule, chunk_size: see `ImageMethod`.
    """

    name = "moco_v3"

    def __init__(
        self,
        backbone: VisionBackbone,
        *,
        hidden_dim: int = 4096,
        dim: int = 256,
        projector_layers: int | None = None,
        predictor_norm: bool | None = None,
        temperature: float | None = None,
        initialize: bool = True,
        freeze_patch_projection: bool = True,
        momentum: float = 0.99,
        momentum_schedule: str = "cosine",
        chunk_size: int = 0,
    ) -> None:
        super().__init__(backbone, momentum=momentum, momentum_schedule=momentum_schedule, chunk_size=chunk_size)
        vit = backbone.prefix_tokens > 0
        self.temperature = temperature if temperature is not None else (0.2 if vit else 1.0)
        hidden = [hidden_dim] * ((projector_layers or (3 if vit else 2)) - 1)
        plain = {"hidden_norm": True, "hidden_bias": False, "last_bias": False}
        self.projector = perceptron((backbone.width, *hidden, dim), last_norm=True, **plain)
        norm = vit if predictor_norm is None else predictor_norm
        self.predictor = perceptron((dim, hidden_dim, dim), last_norm=norm, **plain)
        if vit and initialize:
            initialize_vit(backbone)
        if vit and freeze_patch_projection:
            freeze_patches(backbone)
        synchronize_batch_norm(self)
        self.momentum_copy = MomentumCopy(self.online_modules())

    def forward(self, views: torch.Tensor, shuffle_draws: torch.Tensor | None = None) -> MethodOutput:
        """views: (batch, 2, channels, height, width)."""
        assert self.momentum_copy is not None
        pair = view_pair(views)
        projections = self.project(self, pair)
        queries = [unit_vectors(self.predictor(projection)) for projection in projections]
        with torch.no_grad():
            keys = [unit_vectors(key) for key in self.project(self.momentum_copy, pair)]
            everyone = [gather_rows(key) for key in keys]
        first = rank() * len(views)
        loss = sum(
            batch_contrastive_loss(query, key, self.temperature, first)
            for query, key in zip(queries, reversed(everyone), strict=True)
        )
        return MethodOutput(
            loss=loss,  # type: ignore[arg-type]
            projections=projections[0].detach(),
            queries=queries[0].detach(),
            targets=keys[1],
        )

    def momentum_at(self, step: int, total_steps: int) -> float:
        """As coded, the copies move before the optimizer does, with the momentum of the step that begins."""
        return super().momentum_at(step + 1, total_steps)

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        return {"loss": 4 * self.temperature * math.log(batch_size * world_size())}

    def warnings(self, *, rows: int, batch_size: int, total_steps: int, optimizer: str) -> list[str]:
        found = super().warnings(rows=rows, batch_size=batch_size, total_steps=total_steps, optimizer=optimizer)
        if self.backbone.prefix_tokens and any(p.requires_grad for p in patch_projection(self.backbone)):
            found.append("the patch projection trains: MoCo v3 on a ViT is unstable without freeze_patch_projection")
        return found
