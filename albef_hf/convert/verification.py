"""Checks of a converted model: its outputs for a fixed input, to be shown or compared with those in a file."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..evaluation.mode import evaluation_mode
from .files import find_state, read_file


def fixed_inputs(model: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of a model: two images (or pairs) of noise, and two texts of random tokens, the second one padded."""
    vision, text = model.config.vision_config, model.config.text_config
    arguments = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(seed)
    pairs = text.images_per_text == 2 and "first_image_index" not in arguments
    size = getattr(vision, "image_size", None) or 224
    length = min(12, text.max_position_embeddings)
    input_ids = torch.randint(1, text.vocab_size, (2, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    input_ids[1, length - 3 :], attention_mask[1, length - 3 :] = 0, 0
    inputs = {
        "pixel_values": torch.randn(2, *[2] * pairs, vision.num_channels, size, size, generator=generator),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
    }
    if "answer_input_ids" in arguments:
        answers = torch.randint(1, text.vocab_size, (2, 4), generator=generator)
        inputs |= {"answer_input_ids": answers, "answer_attention_mask": torch.ones_like(answers)}
        inputs["answer_weights"] = torch.ones(2)
    if "first_image_index" in arguments:
        first = torch.tensor([0, 1])
        inputs |= {"first_image_index": first, "second_image_index": 1 - first, "labels": first}
    return inputs


@torch.no_grad()
def outputs(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a model computes without dropout, by name.

    Returns: `image_tokens` (images, tokens, width); `text_states` and, where a text has one image, `fused_states`
        (texts, tokens, width); `itm_logits` (texts, 2) and `mlm_logits` (texts, tokens, vocabulary) if the model has
        these heads; and every tensor of the model's output.
    """
    dtype = next(model.parameters()).dtype
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    text_model, mask = model.albef.text_model, inputs.get("attention_mask")
    with evaluation_mode(model):
        tokens = model.albef.vision_model(inputs["pixel_values"].flatten(0, -4)).tokens
        states = text_model.encode_text(inputs["input_ids"], mask)
        found = {"image_tokens": tokens, "text_states": states}
        if text_model.config.images_per_text == 1:
            fused = text_model.fuse(states, mask, text_model.project_image_tokens(tokens))
            found["fused_states"] = fused
            if hasattr(model, "itm_head"):
                found["itm_logits"] = model.itm_head(fused[:, 0])
            if hasattr(model, "cls"):
                found["mlm_logits"] = model.cls(fused, text_model.embeddings.word_embeddings.weight)
        found |= {name: value for name, value in model(**inputs).items() if isinstance(value, torch.Tensor)}
    return {name: value.detach().cpu() for name, value in found.items()}


def describe(values: Mapping[str, torch.Tensor]) -> str:
    """One line per output: shape, mean, standard deviation and the first three numbers."""
    lines = []
    for name, value in values.items():
        flat = value.double().flatten()
        spread = flat.std().item() if flat.numel() > 1 else 0.0
        first = ", ".join(f"{number:.6g}" for number in flat[:3].tolist())
        lines.append(f"{name:18} {str(tuple(value.shape)):18} mean {flat.mean().item():.6g} std {spread:.6g}: {first}")
    return "\n".join(lines)


def compare(model: Any, path: str | Path, tolerance: float = 1e-4) -> dict[str, float]:
    """Compare a model's outputs with those in a file.

    Args:
        path: a `.safetensors` file with tensors `input/NAME`, where NAME is an argument of the model's `forward`, and
            `output/NAME`, where NAME is one of `outputs`.
        tolerance: the greatest difference allowed, relative to the greatest value of an output.

    Returns: the greatest relative difference of each output.

    Raises:
        ValueError: the file lacks such tensors, the model lacks an output, or a difference is above the tolerance.
    """
    tensors = find_state(read_file(path), str(path))
    inputs = {name.removeprefix("input/"): t for name, t in tensors.items() if name.startswith("input/")}
    expected = {name.removeprefix("output/"): t for name, t in tensors.items() if name.startswith("output/")}
    if not inputs or not expected:
        raise ValueError(
            f"{path} needs tensors named input/NAME and output/NAME; it has {', '.join(list(tensors)[:5])}"
        )
    got = outputs(model, inputs)
    differences = {}
    for name, value in expected.items():
        if name not in got or got[name].shape != value.shape:
            shape = f"{tuple(got[name].shape)}, not {tuple(value.shape)}" if name in got else "none of that name"
            raise ValueError(f"{path}: output {name!r}: the model has {shape}; it has {', '.join(got)}")
        difference = (got[name].double() - value.double()).abs().max()
        differences[name] = (difference / value.double().abs().max().clamp(min=1e-12)).item()
    wrong = {name: value for name, value in differences.items() if not value <= tolerance}
    if wrong:
        shown = ", ".join(f"{name} by {value:.2g}" for name, value in wrong.items())
        raise ValueError(f"the model does not compute the values of {path}: off {shown} (allowed: {tolerance:.0e})")
    return differences


__all__ = ["compare", "describe", "fixed_inputs", "outputs"]
