"""Does a converted model compute what it should? Outputs on a fixed input, shown or compared with a file."""

import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from .modeling_albef_text import AlbefPreTrainedModel


def fixed_inputs(model: AlbefPreTrainedModel, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two images (or pairs of images) of noise and two texts of random tokens, the second one padded."""
    vision, text = model.config.vision_config, model.config.text_config
    generator = torch.Generator().manual_seed(seed)
    images = (2,) if getattr(text, "images_per_text", 1) == 1 else (2, 2)
    size = getattr(vision, "image_size", None) or 224
    length = min(12, text.max_position_embeddings)
    input_ids = torch.randint(1, text.vocab_size, (2, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    input_ids[1, length - 3 :], attention_mask[1, length - 3 :] = 0, 0
    inputs = {
        "pixel_values": torch.randn(*images, vision.num_channels, size, size, generator=generator),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
    }
    if "answer_input_ids" in inspect.signature(model.forward).parameters:
        inputs["answer_input_ids"] = torch.randint(1, text.vocab_size, (2, 4), generator=generator)
        inputs["answer_attention_mask"] = torch.ones_like(inputs["answer_input_ids"])
    return inputs


@torch.no_grad()
def outputs(model: AlbefPreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model computes, dropout off: `image_tokens` (images, tokens, width) and `text_states` (texts, tokens,
    width) of the towers, and every tensor of the model's own output by its name."""
    training = model.training
    model.eval()
    dtype = next(model.parameters()).dtype
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    towers = model.albef
    pixels = inputs["pixel_values"]
    found = {
        "image_tokens": towers.vision_model(pixels.flatten(0, -4)).tokens,
        "text_states": towers.text_model.encode_text(inputs["input_ids"], inputs["attention_mask"]),
    }
    found |= {name: value for name, value in model(**inputs).items() if isinstance(value, torch.Tensor)}
    model.train(training)
    return {name: value.detach().cpu() for name, value in found.items()}


def describe(values: Mapping[str, torch.Tensor]) -> str:
    """A line an output: shape, mean, standard deviation and the first three numbers."""
    lines = []
    for name, value in values.items():
        flat = value.double().flatten()
        spread = flat.std().item() if flat.numel() > 1 else 0.0
        first = ", ".join(f"{number:.6g}" for number in flat[:3].tolist())
        lines.append(f"{name:18} {str(tuple(value.shape)):18} mean {flat.mean().item():.6g} std {spread:.6g}: {first}")
    return "\n".join(lines)


def compare(model: AlbefPreTrainedModel, path: str | Path, tolerance: float = 1e-4) -> dict[str, float]:
    """Greatest difference from the values of a file, relative to the greatest value of each output.

    Args:
        path: a `.safetensors` file with `input/NAME` (arguments of the model's `forward`) and `output/NAME` (names as
            in `outputs`).

    Raises:
        ValueError: a file without them, an output the model does not have, or a difference above the tolerance.
    """
    tensors = load_file(path)
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
