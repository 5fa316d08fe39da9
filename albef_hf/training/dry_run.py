"""The first batch and the memory of a run, before it starts."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.figure import Figure

from ..processing_albef import AlbefProcessor
from ..trainable import Trainable
from .arguments import TrainingArguments
from .simulation import simulate

SHOWN = 16


def describe_memory(
    method: Trainable, batch: dict[str, Any], arguments: TrainingArguments, accelerator: Accelerator
) -> str:
    """The memory of a step on one device, as text: counted in steps of this method without data, with this batch's
    shapes, at the precision and on the number of ranks of the run (see `simulation.simulate`)."""
    count = simulate(method, batch, arguments, ranks=accelerator.num_processes, device=accelerator.device.type)
    listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in count.memory.items())
    samples = len(next(iter(batch.values())))
    return f"about {count.peak / 2**30:.2f} GiB at {samples} samples, in the {count.phase} ({listed})"


def draw_first_batch(batch: dict[str, Any], processor: AlbefProcessor, path: Path) -> Path:
    """Draw the first rows as the model gets them: augmented pictures, texts, and targets (masked text, answers or
    label). Returns: `path`, where the picture was written."""
    count = min(SHOWN, len(batch["pixel_values"]))
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.2 * columns, 3.3 * rows), layout="constrained")
    mean = torch.tensor(processor.image_mean)[:, None, None]
    deviation = torch.tensor(processor.image_std)[:, None, None]
    targets = _targets(batch, processor)
    for index in range(count):
        axes = figure.add_subplot(rows, columns, index + 1)
        pixels = batch["pixel_values"][index]
        if pixels.dim() == 4:  # two images of one text, side by side
            pixels = torch.cat(list(pixels), dim=2)
        axes.imshow((pixels * deviation + mean).clamp(0, 1).permute(1, 2, 0).numpy())
        axes.set_axis_off()
        text = _decoded(batch["input_ids"][index], batch["attention_mask"][index], processor)
        axes.set_title("\n".join(map(_shortened, [text, *targets[index : index + 1]])), fontsize=8, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path


def _decoded(ids: torch.Tensor, mask: torch.Tensor, processor: AlbefProcessor) -> str:
    return processor.tokenizer.decode(ids[mask.bool()].tolist()[1:])


def _targets(batch: dict[str, Any], processor: AlbefProcessor) -> list[str]:
    """What the model should predict for each row, as text; empty for other targets."""
    if "mlm_input_ids" in batch:
        return [_decoded(*row, processor) for row in zip(batch["mlm_input_ids"], batch["attention_mask"], strict=True)]
    if "labels" in batch:
        return [f"label {label}" for label in batch["labels"].tolist()]
    if "answers_per_question" in batch:
        pairs = zip(batch["answer_input_ids"], batch["answer_attention_mask"], strict=True)
        answers = iter([_decoded(ids, mask, processor) for ids, mask in pairs])
        return [" / ".join(next(answers) for _ in range(n)) for n in batch["answers_per_question"].tolist()]
    return []


def _shortened(text: str, length: int = 48) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
