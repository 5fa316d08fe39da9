"""What MoCo v3 does to a ViT before training it (section 4 and its supplement), for transformers' and timm's ViTs."""

import math

import torch
from torch import nn

from albef_hf.vision_backbone import VisionBackbone

_POSITIONS = ("embeddings.position_embeddings", "timm_model.pos_embed")
_CLASS_TOKENS = ("embeddings.cls_token", "timm_model.cls_token")
_PATCHES = ("embeddings.patch_embeddings.projection", "timm_model.patch_embed.proj")


def _find(module: nn.Module, names: tuple[str, ...], what: str) -> torch.Tensor:
    parameters = dict(module.named_parameters())
    for name in names:
        if name in parameters:
            return parameters[name]
    raise ValueError(f"this backbone has no {what} (looked for {', '.join(names)}); MoCo v3 prepares plain ViTs only")


def patch_projection(backbone: VisionBackbone) -> list[nn.Parameter]:
    """Weight and bias of the layer that turns patches into tokens; empty where no name is known."""
    return [p for name, p in backbone.backbone.named_parameters() if name.startswith(_PATCHES)]


def sine_cosine_positions(rows: int, columns: int, width: int) -> torch.Tensor:
    """(rows * columns, width): sine and cosine of the column, then of the row, at width / 4 frequencies, 1 to 1e-4.

    Raises:
        ValueError: a width that 4 does not divide.
    """
    if width % 4:
        raise ValueError(f"two-dimensional sine-cosine positions need a width that 4 divides, not {width}")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (across, down)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


@torch.no_grad()
def initialize_vit(backbone: VisionBackbone) -> None:
    """Fixed two-dimensional sine-cosine positions, a class token near 0, Xavier-uniform layers (queries, keys and
    values each by itself) and a patch projection drawn from U(+-sqrt(6 / (channels * patch^2 + width))).

    Raises:
        ValueError: the backbone is not a plain ViT.
    """
    model = backbone.backbone
    table = _find(model, _POSITIONS, "position table")
    tokens, width = table.shape[-2] - backbone.prefix_tokens, table.shape[-1]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"MoCo v3's positions need a square grid of patches, not {tokens} patches")
    table.zero_()
    table[..., backbone.prefix_tokens :, :] = sine_cosine_positions(side, side, width)
    table.requires_grad_(False)
    _find(model, _CLASS_TOKENS, "class token").normal_(std=1e-6)
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear):
            if name.endswith("qkv"):  # timm keeps the three in one layer
                bound = math.sqrt(6 / (part.weight.shape[0] // 3 + part.weight.shape[1]))
                part.weight.uniform_(-bound, bound)
            else:
                nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                part.bias.zero_()
    for parameter in patch_projection(backbone):
        if parameter.dim() == 1:
            parameter.zero_()
        else:
            bound = math.sqrt(6 / (parameter[0].numel() + parameter.shape[0]))
            parameter.uniform_(-bound, bound)


def freeze_patch_projection(backbone: VisionBackbone) -> None:
    """The patch projection stays random (MoCo v3, section 4.2: it is what makes the training of a ViT unstable)."""
    for parameter in patch_projection(backbone):
        parameter.requires_grad_(False)
