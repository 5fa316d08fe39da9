"""Small models and batches that the tests share."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from albef_hf import AlbefConfig, AlbefForPreTraining, load_original_checkpoint
from albef_hf.convert.albef import infer_config

FIXTURES = Path(__file__).parent / "fixtures"


def tiny_config(**changes) -> AlbefConfig:
    fields = {
        "vision_config": {
            "model_type": "vit",
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 48,
            "image_size": 32,
            "patch_size": 16,
            "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "vocab_size": 60,
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 16,
            "fusion_layer": 2,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "projection_dim": 8,
        "queue_size": 6,
    }
    text = {**fields["text_config"], **changes.pop("text_config", {})}
    return AlbefConfig(**{**fields, "text_config": text, **changes})


def shallow_model(**text) -> AlbefForPreTraining:
    """A model with one layer of each type, for tracing and compiling, which take long for every layer."""
    vision = tiny_config().vision_config.to_dict() | {"num_hidden_layers": 1}
    return tiny_model(vision_config=vision, text_config={"num_hidden_layers": 2, "fusion_layer": 1, **text})


def tiny_model(seed: int = 0, **changes) -> AlbefForPreTraining:
    torch.manual_seed(seed)
    return AlbefForPreTraining(tiny_config(**changes))


def tiny_batch(size: int = 4, length: int = 9, seed: int = 0, image_size: int = 32, vocabulary: int = 60) -> dict:
    """A batch with every key that the collator makes. The last row is padded."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, vocabulary, (size, length), generator=generator)
    input_ids[:, 0] = 2
    attention_mask = torch.ones(size, length, dtype=torch.int64)
    attention_mask[-1, length - 3 :] = 0
    input_ids = input_ids.masked_fill(attention_mask == 0, 0)
    labels = torch.full_like(input_ids, -100)
    masked = input_ids.clone()
    for row in range(size):
        position = 1 + row % (length - 4)
        labels[row, position] = input_ids[row, position]
        masked[row, position] = 4
    return {
        "pixel_values": torch.randn(size, 3, image_size, image_size, generator=generator),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "mlm_input_ids": masked,
        "mlm_labels": labels,
        "mlm_positions": (labels.flatten() != -100).nonzero().squeeze(1),
        "image_ids": torch.arange(size) + 100 * seed,
        "caption_ids": torch.arange(size) + 100 * seed,
        "negative_draws": torch.rand(size, 2, generator=generator),
    }


def answers(questions: int = 4, length: int = 5, seed: int = 0, vocabulary: int = 60) -> dict:
    """Weighted answers to questions: two to the first, one to each of the others; some are padded."""
    generator = torch.Generator().manual_seed(seed + 77)
    count = questions + 1
    ids = torch.randint(5, vocabulary, (count, length), generator=generator)
    ids[:, 0] = 2
    mask = torch.ones(count, length, dtype=torch.int64)
    mask[1::2, length - 2 :] = 0
    return {
        "answer_input_ids": ids.masked_fill(mask == 0, 0),
        "answer_attention_mask": mask,
        "answer_weights": torch.rand(count, generator=generator),
        "answers_per_question": torch.tensor([2] + [1] * (questions - 1)),
    }


# Two ranks need two GPUs, or none.
ON_CPU = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def run_two_ranks(worker: Path, folder: Path) -> list[dict[str, torch.Tensor]]:
    """Run a worker script (folder, rank, ranks) in two processes; return what they save as rank0 and rank1."""
    environment = {**os.environ, "PYTHONPATH": str(worker.parent.parent), **ON_CPU}
    workers = [
        subprocess.Popen(
            [sys.executable, str(worker), str(folder), str(rank), "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in workers:
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 0, printed
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]


def built_once(tmp_path_factory, name: str, build: Callable[[Path], str]) -> tuple[Path, str]:
    """A folder of this name, and what `build(folder)` returned when the first of all test processes called it."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent  # of all workers of this session
    folder, told = shared / name, shared / f"{name}.txt"
    with FileLock(shared / f"{name}.lock"):
        if not told.exists():
            told.write_text(build(folder), encoding="utf-8")
    return folder, told.read_text(encoding="utf-8")


def to_double(batch: dict) -> dict:
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def load_reference(name: str) -> tuple[dict, dict, dict, dict]:
    """Read a recorded file: the state under published names, inputs, expected outputs, and sizes."""
    path = FIXTURES / f"{name}.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as handle:
        sizes = handle.metadata()

    def part(prefix: str) -> dict:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    return part("state/"), part("input/"), part("output/"), sizes


def published_shapes(task: str, file: str = "published_keys.json") -> dict[str, list[int]]:
    """Names and shapes of a published layout. The fixture abbreviates numbered layers as {first-last}."""
    shapes = {}
    for name, shape in json.loads((FIXTURES / file).read_text())[task].items():
        layers = re.search(r"\{(\d+)-(\d+)\}", name)
        for number in range(int(layers[1]), int(layers[2]) + 1) if layers else (0,):
            shapes[name.replace(layers[0], str(number)) if layers else name] = shape
    return shapes


def published_state(task: str) -> dict[str, torch.Tensor]:
    """A published layout at full size on the meta device, which takes no memory."""
    whole = ("position_ids", "queue_ptr", "idx_queue")
    return {
        name: torch.empty(shape, dtype=torch.int64 if name.endswith(whole) else torch.float32, device="meta")
        for name, shape in published_shapes(task).items()
    }


def assert_exact(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """float64 values must agree to 1e-9 absolute, float32 values to 1e-6 of the tensor's norm."""
    assert actual.shape == expected.shape, name
    if expected.dtype == torch.float64:
        assert (actual - expected).abs().max() <= 1e-9, name
    else:
        expected = expected.double()
        # A key's bias shifts all scores of a query alike, so its true gradient is 0 and both are rounding noise.
        assert (actual.double() - expected).norm() <= max(1e-6 * expected.norm(), 1e-12), name


def reference_model(state: dict, sizes: dict, attention: str = "sdpa") -> PreTrainedModel:
    """Load a recorded state into our model, in float64 and training mode (with dropout 0)."""
    config = infer_config(state, vision_heads=int(sizes["vision_heads"]), text_heads=int(sizes["text_heads"]))
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model = load_original_checkpoint(state, config).double()
    model.set_attn_implementation(attention)
    return model.train()
