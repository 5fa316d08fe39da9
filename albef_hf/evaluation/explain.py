"""Where does a model look? Grad-CAM heat maps of words and sentences over an image (paper section 6.4, figures 3-6).

A map is the attention of one layer, times the positive part of the gradient of a score with respect to it. There are
two modes: `itm` takes the attention of the text tokens to the image patches in a fusion layer, and the matching logit;
`itc` takes the attention of the class token in the last block of the image encoder, and the contrastive logit.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..modeling_albef_attention import eager_attention_forward
from .mode import evaluation_mode

MODES = ("itm", "itc")
_RECORDED = "albef_recorded_attention"


@dataclass
class HeatMaps:
    """Heat maps of a batch.

    Args:
        per_token: (batch, tokens, rows, columns), zero at padding; None for `itc`, which maps whole sentences only.
        sentence: (batch, rows, columns); for `itm` the mean over all positions with [CLS] and padding, as published.
        scores: (batch,) the scores that were differentiated: matching logits, or cosine similarities over temperature.
    """

    per_token: torch.Tensor | None
    sentence: torch.Tensor
    scores: torch.Tensor


def _recorded_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager attention. Its weights are the leaves of the graph: nothing before them is differentiated."""
    kwargs["dropout"] = 0.0
    _, weights = eager_attention_forward(module, query, key, value, *args, **kwargs)
    weights = weights.detach().requires_grad_()
    module.recorded_weights = weights  # type: ignore[assignment]
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


ALL_ATTENTION_FUNCTIONS.register(_RECORDED, _recorded_attention)


@contextmanager
def _recording(model: nn.Module, attention: nn.Module) -> Iterator[None]:
    """Record the weights of one attention layer, without dropout or gradients of parameters, and then undo it all."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = attention.config
    attention.config = copy.copy(config)  # type: ignore[assignment,arg-type]
    attention.config._attn_implementation = _RECORDED  # type: ignore[assignment]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with evaluation_mode(model), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        attention.config = config
        attention.__dict__.pop("recorded_weights", None)
        for parameter in trainable:
            parameter.requires_grad_(True)


def _cross_attention(model: Any, layer: int | None) -> nn.Module:
    text_model = model.albef.text_model
    layers, first = text_model.encoder.layer, text_model.config.fusion_layer
    if layer is None:
        layer = first + (len(layers) - first + 1) // 3
    if not first <= layer < len(layers):
        raise ValueError(f"layer must be a fusion layer, {first} to {len(layers) - 1}, not {layer}")
    return layers[layer].crossattention.self


def _class_attention(model: Any) -> nn.Module:
    backbone = model.albef.vision_model
    found = [
        module
        for module in backbone.modules()
        if "Attention" in type(module).__name__ and hasattr(module, "config") and hasattr(module, "scaling")
    ]
    if not found or backbone.pooling != "cls":
        raise ValueError(
            f"mode 'itc' needs a vision transformer pooled by its class token, not a "
            f"{backbone.backbone.config.model_type!r} backbone pooled by {backbone.pooling!r}"
        )
    return found[-1]


def _grid(patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the patches of an image of this shape."""
    rows = max(1, round((patches * height / width) ** 0.5))
    if rows * (patches // rows) != patches:
        raise ValueError(f"{patches} image tokens do not form a grid over {height} x {width} pixels")
    return rows, patches // rows


def heat_maps(
    model: Any,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    mode: str = "itm",
    layer: int | None = None,
) -> HeatMaps:
    """Grad-CAM maps of pairs of an image and a text. Afterwards the model is as it was.

    Args:
        model: has `albef` and `itm_head`.
        pixel_values: (batch, channels, height, width).
        input_ids, attention_mask: (batch, tokens).
        mode: `itm` or `itc`.
        layer: the fusion layer of `itm`, counted from 0 over text and fusion layers. Left out, it is the layer a third
            into the fusion encoder: of six the third, as published (layer 8 of the base configuration); of two the
            last.

    Raises:
        ValueError: the mode is unknown, the layer is not a fusion layer, the backbone lacks what `itc` needs, or there
            are not as many images as texts.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if len(pixel_values) != len(input_ids):
        raise ValueError(f"heat maps need pairs, but there are {len(pixel_values)} images and {len(input_ids)} texts")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    albef = model.albef
    attention = _cross_attention(model, layer) if mode == "itm" else _class_attention(model)
    prefix = albef.vision_model.prefix_tokens
    with _recording(model, attention):
        # Copies, because tensors made under inference_mode cannot take part in a graph.
        ids, mask = input_ids.clone(), attention_mask.clone()
        image = albef.vision_model(pixel_values.clone())
        text = albef.text_model.encode_text(ids, mask)
        if mode == "itm":
            fused = albef.text_model.fuse(text, mask, albef.text_model.project_image_tokens(image.tokens))
            scores = model.itm_head(fused[:, 0])[:, 1]
        else:
            scores = (albef.project_image(image) * albef.project_text(text)).sum(1) / albef.clamped_temperature()
        weights = attention.recorded_weights
        (gradient,) = torch.autograd.grad(scores.sum(), weights)  # type: ignore[arg-type]
        cam = (weights * gradient.clamp(min=0)).detach().mean(1)[..., prefix:]  # (batch, queries, patches)
    rows, columns = _grid(cam.shape[-1], *pixel_values.shape[-2:])
    if mode == "itc":
        return HeatMaps(None, cam[:, 0].unflatten(-1, (rows, columns)), scores.detach())
    per_token = (cam * attention_mask[:, :, None]).unflatten(-1, (rows, columns))
    return HeatMaps(per_token, per_token.mean(1), scores.detach())


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def to_image_size(heat_map: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(..., rows, columns) -> (..., height, width) by bicubic interpolation."""
    leading = heat_map.shape[:-2]
    flat = heat_map.reshape(1, -1, *heat_map.shape[-2:])
    return nn.functional.interpolate(flat, (height, width), mode="bicubic").view(*leading, height, width)


def overlay(image: Image.Image, heat_map: torch.Tensor, opacity: float = 0.6) -> Image.Image:
    """Draw a heat map (rows, columns) over its picture: blue is cold, red is hot. Each map has its own scale."""
    import matplotlib

    heat = to_image_size(heat_map.detach().float().cpu(), image.height, image.width).numpy()
    heat = (heat - heat.min()) / max(float(heat.max() - heat.min()), 1e-12)
    colors = matplotlib.colormaps["jet"](heat)[..., :3] * 255
    picture = np.asarray(image.convert("RGB"), dtype=np.float64)
    return Image.fromarray((picture * (1 - opacity) + colors * opacity).round().astype(np.uint8))


@dataclass
class Explanation:
    """Where the model looks in one image, for one text.

    Args:
        words: the tokens of the text, as in the tokenizer; none for `itc`.
        maps: (tokens, rows, columns), the map of each token; none for `itc`.
        sentence: (rows, columns), the map of the whole text.
        score: matching or contrastive logit.
    """

    image: Image.Image
    words: list[str]
    maps: np.ndarray
    sentence: np.ndarray
    score: float

    def picture(self, token: int | None = None) -> Image.Image:
        """The map of a token, or of the whole text, drawn over the image."""
        return overlay(self.image, torch.from_numpy(self.sentence if token is None else self.maps[token]))


def explain(
    model: Any,
    processor: Any,
    images: Image.Image | Sequence[Image.Image],
    texts: str | Sequence[str],
    mode: str = "itm",
    layer: int | None = None,
) -> list[Explanation]:
    """Explain pairs: the first image with the first text, and so on.

    Args:
        model, mode, layer: as in `heat_maps`.
        processor: the model's `AlbefProcessor`.

    Example:

        >>> explanation, = explain(model, processor, picture, "a red car")
        >>> explanation.picture().save("where.png")
    """
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    inputs = processor(images=pictures, text=[texts] if isinstance(texts, str) else list(texts), return_tensors="pt")
    weight = next(model.parameters())
    ids, mask = inputs["input_ids"].to(weight.device), inputs["attention_mask"].to(weight.device)
    found = heat_maps(model, inputs["pixel_values"].to(weight.device, weight.dtype), ids, mask, mode, layer)
    explanations = []
    for row, picture in enumerate(pictures):
        length = int(mask[row].sum())
        words, maps = [], found.sentence.new_zeros(0, *found.sentence.shape[1:])
        if found.per_token is not None:
            words = processor.tokenizer.convert_ids_to_tokens(ids[row, :length].tolist())
            maps = found.per_token[row, :length]
        explanations.append(
            Explanation(
                image=picture,
                words=words,
                maps=maps.cpu().numpy(),
                sentence=found.sentence[row].cpu().numpy(),
                score=float(found.scores[row]),
            )
        )
    return explanations
