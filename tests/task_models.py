"""Small models and batches of the downstream tasks."""

from copy import deepcopy
from functools import cache

import torch
from helpers import answers, tiny_batch, tiny_config
from transformers import PreTrainedModel

from albef_hf import (
    AlbefForImageTextRetrieval,
    AlbefForQuestionAnswering,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
)

TASKS = (
    AlbefForImageTextRetrieval,
    AlbefForQuestionAnswering,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    AlbefForTextAssignment,
)
TAUGHT = TASKS[:-1]


def task_batch(kind: type, seed: int = 0) -> dict:
    """A training batch of four texts."""
    whole = tiny_batch(seed=seed)
    batch = {key: whole[key] for key in ("pixel_values", "input_ids", "attention_mask")}
    if kind is AlbefForImageTextRetrieval:
        batch |= {"image_ids": torch.tensor([7, 8, 7, 9]), "negative_draws": whole["negative_draws"]}
    elif kind is AlbefForQuestionAnswering:
        batch |= answers(seed=seed)
    elif kind is AlbefForTextAssignment:
        batch["assignment_draws"] = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))
    elif kind is AlbefForVisualReasoning:
        batch["pixel_values"] = torch.stack([batch["pixel_values"], batch["pixel_values"].roll(1, 0)], dim=1)
        batch["labels"] = torch.tensor([0, 1, 1, 0])
    else:
        batch["labels"] = torch.tensor([0, 1, 2, 1])
    return batch


def new(kind: type, **changes) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(tiny_config(**changes))


@cache
def _double(kind: type) -> PreTrainedModel:
    return new(kind).eval().double()


def double(kind: type) -> PreTrainedModel:
    return deepcopy(_double(kind))


def result(output) -> torch.Tensor:
    """The main output of a model."""
    for name in ("logits", "answer_logits", "itm_logits"):
        if output.get(name) is not None:
            return output[name]
    raise AssertionError("no logits")
