"""An adapter that gives any vision model that `AutoModel` loads the same outputs: tokens and a pooled vector."""

import inspect
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import ModelOutput

from .configuration_albef import POOLINGS

# Parameters that neither tokens nor `cls` and `mean` pooling use: distributed training would wait for their gradients.
_UNUSED = ("embeddings.mask_token",)
_UNUSED_WITHOUT_POOLER = ("pooler.", "head.", "timm_model.fc_norm.", "timm_model.attn_pool.")


@dataclass
class VisionBackboneOutput(ModelOutput):
    """tokens: (batch, tokens, width), class token first where the backbone has one; pooled: (batch, width)."""

    tokens: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


def resize_positions(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """Resize a position table (1, prefix + grid, width) to (1, tokens, width): the square grid bicubically."""
    old = int((table.shape[1] - 1) ** 0.5)
    prefix = table.shape[1] - old * old
    new = int((tokens - prefix) ** 0.5)
    grid = table[:, prefix:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class VisionBackbone(nn.Module):
    """Adapter from a transformers vision model to tokens and one pooled vector for each image.

    Args:
        config: configuration of the backbone (`ViTConfig`, `TimmWrapperConfig`, `Dinov2Config`, `ResNetConfig` ...).
        pooling: `cls` (first token), `mean` (of the patches or the feature map, without class and register tokens), or
            `pooler` (the backbone's own, which most checkpoints leave untrained).

    Attributes:
        backbone: the transformers model. `save_pretrained` on it writes an ordinary folder.
        width: width of a token.

    Raises:
        ValueError: the pooling is unknown, or it is `cls` and the backbone has no class token.
    """

    def __init__(self, config: PreTrainedConfig, pooling: str = "cls") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.pooling = pooling
        model_class = MODEL_MAPPING.get(type(config), None)
        # An unused pooling layer would have parameters without gradient.
        accepted = inspect.signature(model_class).parameters if model_class is not None else {}  # type: ignore[arg-type]
        options = {"add_pooling_layer": pooling == "pooler"} if "add_pooling_layer" in accepted else {}
        self.backbone: PreTrainedModel = AutoModel.from_config(config, **options)
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(self.backbone.forward).parameters
        self.width = self._width()
        self.prefix_tokens = self._prefix_tokens()
        if pooling == "cls" and self.prefix_tokens == 0:
            raise ValueError(f"a {config.model_type!r} backbone has no class token: set the pooling to 'mean'")
        self.freeze()

    def freeze(self) -> None:
        """Freeze parameters that are not used."""
        unused = _UNUSED if self.pooling == "pooler" else _UNUSED + _UNUSED_WITHOUT_POOLER
        for name, parameter in self.backbone.named_parameters():
            if name.startswith(unused):
                parameter.requires_grad_(False)

    def _width(self) -> int:
        if self.backbone.config.model_type == "timm_wrapper":
            return int(self.backbone.timm_model.num_features)  # type: ignore[arg-type]
        config = self.backbone.config
        if "hidden_size" in config.to_dict():
            return config.hidden_size
        return config.hidden_sizes[-1]

    def _prefix_tokens(self) -> int:
        """The number of class, distillation and register tokens before the patches."""
        if self.backbone.config.model_type == "timm_wrapper":
            return int(getattr(self.backbone.timm_model, "num_prefix_tokens", 0))
        count = 0
        for name, parameter in self.backbone.named_parameters():
            if name.endswith(("cls_token", "class_embedding", "distillation_token")):
                count += 1
            elif name.endswith("register_tokens"):
                count += parameter.shape[1]
        return count

    def forward(self, pixel_values: torch.Tensor) -> VisionBackboneOutput:
        """Encode images (batch, channels, height, width). Position tables are interpolated for other image sizes."""
        options = {}
        if self.interpolates:
            size = self.backbone.config.image_size
            same = list(pixel_values.shape[-2:]) == ([size, size] if isinstance(size, int) else list(size))
            options["interpolate_pos_encoding"] = not same
        output = self.backbone(pixel_values, **options)
        tokens = output.last_hidden_state
        if tokens.dim() == 4:  # (batch, width, rows, columns) of a convolutional network
            tokens = tokens.flatten(2).transpose(1, 2)
        if self.pooling == "cls":
            pooled = tokens[:, 0]
        elif self.pooling == "mean":
            pooled = tokens[:, self.prefix_tokens :].mean(1)
        else:
            pooled = output.pooler_output
            if pooled is None:
                raise ValueError(f"a {self.backbone.config.model_type!r} backbone has no pooler: use 'mean' or 'cls'")
            pooled = pooled.flatten(1)
        return VisionBackboneOutput(tokens=tokens, pooled=pooled)
