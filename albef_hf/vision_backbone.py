"""An adapter that gives any vision model that `AutoModel` loads the same outputs: tokens and a pooled vector."""

import copy
import importlib
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import ModelOutput

from .configuration_albef import POOLINGS
from .small_resnet import SmallResNetConfig as SmallResNetConfig  # registers it

# Names of parameters that are tokens before the patches.
_PREFIX_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens", "cls_register_token")


@dataclass
class VisionBackboneOutput(ModelOutput):
    """tokens: (batch, tokens, width), class token first where the backbone has one; pooled: (batch, width)."""

    tokens: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


def resize_positions(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """Resize a position table (1, prefix + grid, width) to (1, tokens, width): the square grid bicubically.

    Raises:
        ValueError: the grids are not square.
    """
    old = math.isqrt(table.shape[1])
    prefix = table.shape[1] - old * old
    new = math.isqrt(max(tokens - prefix, 0))
    if new < 1 or new * new != tokens - prefix:
        raise ValueError(f"a table of {table.shape[1]} positions cannot be resized to {tokens}: no square grids")
    grid = table[:, prefix:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _check_arguments(config: PreTrainedConfig, model_class: Any) -> None:
    """Check that a class of models takes pictures and nothing else."""
    taken = list(inspect.signature(model_class.forward).parameters.values())[1:]
    needed = [p.name for p in taken[1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    why = ""
    if taken[0].name != "pixel_values" or any(p.name == "input_ids" for p in taken):
        why = "it does not read pictures alone"
    elif getattr(config, "num_frames", None) is not None:
        why = "it reads videos"
    elif config.model_type == "timm_backbone":
        why = "its folders cannot be loaded: use timm_wrapper"
    elif needed:
        why = f"it takes no plain pictures, but needs {', '.join(needed)} beside them"
    if why:
        raise ValueError(f"a {config.model_type!r} model cannot serve as image encoder: {why}")


def _start_as_in_timm(wrapper: Any) -> None:
    """Give a new model the weights that timm starts it with.

    The wrapper of transformers draws them anew, from other distributions: convolutions from N(0, 0.02), whatever their
    size, and norms at the end of residual branches become 1 where timm's are 0.
    """
    if any(parameter.is_meta for parameter in wrapper.parameters()):
        return  # weights of a folder follow
    options = wrapper.config.model_args or {}
    timm = importlib.import_module("timm")  # only who uses its models needs it
    start = timm.create_model(wrapper.config.architecture, pretrained=False, num_classes=0, **options)
    wrapper.timm_model.load_state_dict(start.state_dict())


class VisionBackbone(nn.Module):
    """Adapter from a transformers vision model to tokens and one pooled vector for each image.

    Args:
        config: configuration of the backbone (`ViTConfig`, `TimmWrapperConfig`, `Dinov2Config`, `ResNetConfig` ...).
        pooling: `cls` (first token), `mean` (of the patches or the feature map, without class and register tokens), or
            `pooler` (the backbone's own, which most checkpoints leave untrained).

    Attributes:
        backbone: the transformers model. `save_pretrained` on it writes an ordinary folder.
        width: width of a token.
        size: height and width of the pictures that the backbone is made for; `takes_one_size`: it takes no others.
        prefix_tokens: class, distillation and register tokens before the patches.
        unused: names of parameters that the outputs do not depend on, such as a mask token, or a norm that only the
            backbone's pooler uses. They are frozen: distributed training would wait for their gradients.

    Raises:
        ValueError: the pooling is unknown or the backbone has none such, or it does not turn pictures into tokens.
    """

    def __init__(self, config: PreTrainedConfig, pooling: str = "cls") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.pooling = pooling
        model_class = MODEL_MAPPING.get(type(config), None)
        if inspect.isclass(model_class):
            _check_arguments(config, model_class)
        # An unused pooling layer would have parameters without gradient.
        accepted = inspect.signature(model_class).parameters if model_class is not None else {}  # type: ignore[arg-type]
        options = {"add_pooling_layer": pooling == "pooler"} if "add_pooling_layer" in accepted else {}
        self.masks = config.model_type == "vit_mae"
        if self.masks:  # it would mask at random, in evaluation too
            config = copy.deepcopy(config)
            config.mask_ratio = 0.0
        try:
            self.backbone: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=False, **options)
        except TypeError as error:  # an argument that timm's model does not take
            raise ValueError(f"a {config.model_type!r} model cannot be built of these fields: {error}") from error
        if config.model_type == "timm_wrapper":
            _start_as_in_timm(self.backbone)
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(self.backbone.forward).parameters
        self.width, self.prefix_tokens, self.channels_last = 0, 0, False
        self.gives_maps = self.takes_one_size = False
        self.size = self._picture_size()
        self.unused: tuple[str, ...] = ()
        self._examine()
        self.freeze()

    def freeze(self) -> None:
        """Freeze parameters that are not used."""
        for name, parameter in self.backbone.named_parameters():
            if name in self.unused:
                parameter.requires_grad_(False)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _examine(self) -> None:
        """Find out what the backbone gives for a picture, and what that depends on, without computing any numbers."""
        backbone = self.backbone
        training = backbone.training
        backbone.eval()
        try:
            leaves, output = self._imagine(self.size)
            states = self._states(output)
            self._note_layout(states, self._larger_shape(states))
            if self.pooling == "pooler":
                self._check_pooler(output)
            parts = self._select(output)
            total = parts.tokens.sum() + parts.pooled.sum()  # type: ignore[union-attr]
            used = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        except (ValueError, TypeError, RuntimeError, AttributeError, AssertionError) as error:
            looks = any(phrase in str(error) for phrase in ("meta tensors", "register_meta"))
            why = "it looks at the numbers to decide what to compute" if looks else error
            size = f"{self.size[0]} x {self.size[1]}"
            raise ValueError(
                f"{self._name()} cannot serve as image encoder for pictures of {size} pixels: {why}"
            ) from error
        finally:
            backbone.train(training)
        frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
        self.unused = (*frozen, *(name for name, gradient in zip(leaves, used, strict=True) if gradient is None))

    def _larger_shape(self, states: torch.Tensor) -> torch.Size:
        """The shape of states for pictures of twice the size; that of `states` where the backbone takes no others."""
        try:
            return self._states(self._imagine((2 * self.size[0], 2 * self.size[1]))[1]).shape
        except (ValueError, TypeError, RuntimeError, AssertionError):
            self.takes_one_size = True
            return states.shape

    def _name(self) -> str:
        config = self.backbone.config
        timms = config.model_type == "timm_wrapper"
        return f"timm's {config.architecture}" if timms else f"a {config.model_type!r} model"

    def _imagine(self, size: tuple[int, int]) -> tuple[dict[str, torch.Tensor], Any]:
        """Trainable parameters, and the output for two pictures of a size; all of them shapes without numbers."""
        backbone = self.backbone
        named = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
        tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in named.items()}
        leaves = {n: tensors[n].requires_grad_() for n, p in backbone.named_parameters() if p.requires_grad}
        pictures = torch.empty(2, self._channels(), *size, device="meta")
        return leaves, torch.func.functional_call(backbone, tensors, (pictures,), self._options(pictures))

    def _states(self, output: Any) -> torch.Tensor:
        """The last states of an output of the backbone: (batch, tokens, width), or a feature map."""
        states = getattr(output, "last_hidden_state", None)
        if states is None and getattr(output, "feature_maps", None):
            self.gives_maps, states = True, output.feature_maps[-1]
        if states is None or states.dim() not in (3, 4):
            raise ValueError("its output has no last_hidden_state of tokens, and no feature map")
        return states

    def _channels(self) -> int:
        channels = getattr(self.backbone.config, "num_channels", None)
        if channels is None:
            channels = next((m.in_channels for m in self.backbone.modules() if isinstance(m, nn.Conv2d)), 3)
        return int(channels)

    def _picture_size(self) -> tuple[int, int]:
        """Height and width that the backbone is made for; 224 where it takes any."""
        config: Any = self.backbone.config
        size = getattr(config, "image_size", None)
        if config.model_type == "timm_wrapper":
            model: Any = self.backbone.timm_model
            size = (config.model_args or {}).get("img_size") or getattr(
                getattr(model, "patch_embed", None), "img_size", None
            )
            if size is None and model.pretrained_cfg.get("fixed_input_size"):
                size = model.pretrained_cfg["input_size"][-2:]
        if size is None:
            return 224, 224
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def _note_layout(self, states: torch.Tensor, larger: torch.Size) -> None:
        """Width, prefix tokens and the place of the channels, from states of two pictures, and their shape for larger
        ones."""
        if len(states) != 2:
            raise ValueError("it joins the pictures of a batch into one sequence")
        if states.dim() == 4:
            one_size = states.shape == larger
            timms = getattr(getattr(self.backbone, "timm_model", None), "output_fmt", "NCHW") == "NHWC"
            self.channels_last = timms if one_size else states.shape[1] != larger[1]
            self.width = states.shape[3 if self.channels_last else 1]
        else:
            self.width, self.prefix_tokens = states.shape[2], self._prefix_tokens()
            patches = states.shape[1] - self.prefix_tokens
            height, width = self.size
            if patches < 1 or (height == width and math.isqrt(patches) ** 2 != patches):
                raise ValueError(
                    f"its {states.shape[1]} tokens are not {self.prefix_tokens} prefix tokens and a square grid"
                )
        if self.pooling == "cls" and self.prefix_tokens == 0:
            raise ValueError("it has no class token: set the pooling to 'mean'")

    def _prefix_tokens(self) -> int:
        """The number of class, distillation and register tokens before the patches."""
        known = getattr(getattr(self.backbone, "timm_model", None), "num_prefix_tokens", None)
        if known is not None:  # some models of earlier versions of timm do not say
            return int(known)
        if self.backbone.config.model_type == "dinov3_convnext":
            return 1  # the mean of the map
        return sum(
            parameter.shape[-2] if parameter.dim() > 1 else 1
            for name, parameter in self.backbone.named_parameters()
            if name.endswith(_PREFIX_TOKENS) and not name.startswith("head.")
        )

    def _check_pooler(self, output: Any) -> None:
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ValueError("it has no pooler: set the pooling to 'mean' or 'cls'")
        if pooled.flatten(1).shape[1] != self.width:
            raise ValueError(f"its pooler gives {pooled.flatten(1).shape[1]} numbers, its tokens have {self.width}")

    def _patch_order(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What ViTMAE sorts patches by: (batch, patches), in the order that they have."""
        side: Any = self.backbone.config.patch_size
        patches = (pixel_values.shape[-2] // side) * (pixel_values.shape[-1] // side)
        return torch.arange(patches, dtype=torch.float32, device=pixel_values.device).expand(
            len(pixel_values), patches
        )

    def _other_size(self, pixel_values: torch.Tensor) -> str:
        (height, width), (rows, columns) = self.size, pixel_values.shape[-2:]
        return (
            f"{self._name()} as it is built takes pictures of {height} x {width} pixels only, not of {rows} x "
            f"{columns}: set image_size to these"
        )

    def _options(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        other = tuple(pixel_values.shape[-2:]) != self.size
        options: dict[str, Any] = {"interpolate_pos_encoding": other} if self.interpolates else {}
        if self.masks:
            options["noise"] = self._patch_order(pixel_values)
        return options

    def _select(self, output: Any) -> VisionBackboneOutput:
        tokens = output.feature_maps[-1] if self.gives_maps else output.last_hidden_state
        if tokens.dim() == 4:
            tokens = tokens.flatten(1, 2) if self.channels_last else tokens.flatten(2).transpose(1, 2)
        if self.pooling == "cls":
            pooled = tokens[:, 0]
        elif self.pooling == "mean":
            pooled = tokens[:, self.prefix_tokens :].mean(1)
        else:
            pooled = output.pooler_output.flatten(1)
        return VisionBackboneOutput(tokens=tokens, pooled=pooled)

    def forward(self, pixel_values: torch.Tensor) -> VisionBackboneOutput:
        """Encode images (batch, channels, height, width); of another size than `size` only if it does not take one."""
        if self.takes_one_size and tuple(pixel_values.shape[-2:]) != self.size:
            raise ValueError(self._other_size(pixel_values))
        return self._select(self.backbone(pixel_values, **self._options(pixel_values)))
