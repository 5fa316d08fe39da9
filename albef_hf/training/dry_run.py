"""What a run would see and need, before it starts."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from ..processing_albef import AlbefProcessor

SHOWN = 16


def activation_bytes(method: nn.Module, batch: dict[str, Any]) -> int:
    """Bytes that a forward pass keeps for its backward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in (*method.parameters(), *method.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = method.train()(**batch)
        total = sum(kept.values())
    del output
    return total


def describe_memory(method: nn.Module, batch: dict[str, Any]) -> str:
    """An estimate for one device: weights, copies and queues, gradients and AdamW's moments in float32, and what the
    forward pass of the first batch keeps. One pass is run for that, on the CPU and in float32; bf16 halves most of it.
    """
    weights = sum(t.untyped_storage().nbytes() for t in (*method.parameters(), *method.buffers()))
    training = sum(3 * 4 * p.numel() for p in method.parameters() if p.requires_grad)
    activations = activation_bytes(method, batch)
    parts = {"weights and queues": weights, "gradients and optimizer": training, "activations": activations}
    listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    count = len(next(iter(batch.values())))
    return f"about {sum(parts.values()) / 2**30:.2f} GiB at {count} samples ({listed})"


def draw_first_batch(batch: dict[str, Any], processor: AlbefProcessor, path: Path) -> Path:
    """The first rows as the model gets them: augmented pictures, captions, and captions as masked."""
    count = min(SHOWN, len(batch["pixel_values"]))
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.2 * columns, 3.3 * rows), layout="constrained")
    mean = torch.tensor(processor.image_mean)[:, None, None]
    deviation = torch.tensor(processor.image_std)[:, None, None]
    for index in range(count):
        axes = figure.add_subplot(rows, columns, index + 1)
        pixels = (batch["pixel_values"][index] * deviation + mean).clamp(0, 1)
        axes.imshow(pixels.permute(1, 2, 0).numpy())
        axes.set_axis_off()
        seen = batch["attention_mask"][index].bool()
        texts = [batch[name][index][seen].tolist() for name in ("input_ids", "mlm_input_ids")]
        caption, masked = (processor.tokenizer.decode(ids[1:]) for ids in texts)
        axes.set_title(f"{_shortened(caption)}\n{_shortened(masked)}", fontsize=8, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path


def _shortened(text: str, length: int = 48) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
