"""ALBEF as three ONNX graphs: image encoder, text encoder and matching. An image is encoded once for all its texts."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..evaluation.mode import evaluation_mode

PACKAGES = ("onnx", "onnxscript")


class _Part(nn.Module):
    """A part of a model that becomes a graph of its own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class _Image(_Part):
    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model.get_image_features(pixel_values)
        return output.last_hidden_state, output.pooler_output


class _Text(_Part):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model.get_text_features(input_ids, attention_mask)
        return output.last_hidden_state, output.pooler_output


class _Matching(_Part):
    def forward(
        self, text_states: torch.Tensor, attention_mask: torch.Tensor, image_tokens: torch.Tensor
    ) -> torch.Tensor:
        return self.model.matching_logits(text_states, attention_mask, self.model.project_image_tokens(image_tokens))


def export_onnx(model: Any, folder: str | Path) -> list[Path]:
    """Write image.onnx and text.onnx, and matching.onnx for a model with a matching head.

    The batch size and the length of texts are free. Pictures have the size in the configuration, or 256 pixels where
    it has none. The graphs:

    - image: pixel_values -> image_tokens (batch, tokens, width), image_embeds (batch, projection_dim);
    - text: input_ids, attention_mask -> text_states (batch, tokens, hidden_size), text_embeds (batch, projection_dim);
    - matching: text_states, attention_mask, image_tokens -> logits (batch, 2), class 1 is "match".

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"exporting needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vision = model.config.vision_config
    size = getattr(vision, "image_size", None) or 256
    height, width = (size, size) if isinstance(size, int) else size
    device = next(model.parameters()).device
    pixels = torch.zeros(2, getattr(vision, "num_channels", 3), height, width, device=device, dtype=model.dtype)
    input_ids = torch.full((2, 8), 5, device=device)
    attention_mask = torch.ones_like(input_ids)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    text = {"input_ids": {0: batch, 1: tokens}, "attention_mask": {0: batch, 1: tokens}}
    parts: dict[str, tuple[nn.Module, tuple, dict, list[str]]] = {
        "image": (_Image(model), (pixels,), {"pixel_values": {0: batch}}, ["image_tokens", "image_embeds"]),
        "text": (_Text(model), (input_ids, attention_mask), text, ["text_states", "text_embeds"]),
    }
    written = []
    with evaluation_mode(model), torch.no_grad():
        if hasattr(model, "matching_logits"):
            states, _ = parts["text"][0](input_ids, attention_mask)
            image_tokens, _ = parts["image"][0](pixels)
            shapes = {
                "text_states": text["input_ids"],
                "attention_mask": text["attention_mask"],
                "image_tokens": {0: batch},
            }
            parts["matching"] = (_Matching(model), (states, attention_mask, image_tokens), shapes, ["logits"])
        for name, (part, inputs, shapes, outputs) in parts.items():
            program = torch.onnx.export(
                part.eval(),
                inputs,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(shapes),
                output_names=outputs,
                verbose=False,
            )
            assert program is not None
            program.save(str(folder / f"{name}.onnx"))
            written.append(folder / f"{name}.onnx")
    return written


__all__ = ["export_onnx"]
