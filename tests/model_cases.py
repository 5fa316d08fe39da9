"""Every model class in small: how it is built, what it is fed, and what it gives. A row of `CASES` each."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import torch
from helpers import answers, tiny_batch, tiny_config
from transformers import PreTrainedModel

from albef_hf import (
    AlbefForImageTextRetrieval,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    AlbefModel,
    AlbefTextConfig,
    AlbefTextModel,
)
from albef_hf.modeling_albef_decoder import AlbefAnswerDecoder

TASKS = (
    AlbefForImageTextRetrieval,
    AlbefForQuestionAnswering,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    AlbefForTextAssignment,
)
SCORES = ("input_ids", "attention_mask", "pixel_values")
TEXT = ("input_ids", "attention_mask", "mlm_input_ids", "mlm_labels")


# -- models -----------------------------------------------------------------------------------------------------------


def new(kind: type, **changes) -> PreTrainedModel:
    """A small model with seeded weights."""
    config = tiny_config(**changes)
    if kind in (AlbefTextModel, AlbefAnswerDecoder):
        config = AlbefTextConfig(**{**config.text_config.to_diff_dict(), "encoder_hidden_size": 24})
    torch.manual_seed(0)
    return kind(config)


@cache
def _double(kind: type) -> PreTrainedModel:
    return new(kind).eval().double()


def double(kind: type) -> PreTrainedModel:
    return deepcopy(_double(kind))


def copies_equal_online(model) -> bool:
    return all(
        torch.equal(tensor, model.momentum_copy.get_submodule(name).state_dict()[key])
        for name, module in model.online_modules().items()
        for key, tensor in module.state_dict().items()
    )


# -- batches of four texts, with all that a training step takes -------------------------------------------------------


def task_batch(kind: type, seed: int = 0) -> dict:
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


def scores_batch(kind: type, seed: int = 0) -> dict:
    batch = tiny_batch(seed=seed)
    return {key: batch[key] for key in SCORES}


def text_batch(kind: type, seed: int = 0) -> dict:
    batch = tiny_batch(seed=seed)
    image = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(seed))
    return {"encoder_hidden_states": image} | {key: batch[key] for key in ("input_ids", "attention_mask")}


def decoder_batch(kind: type, seed: int = 0) -> dict:
    """Beginnings of answers, and questions as keys and values: (batch, layers, 2, heads, tokens, head width)."""
    mask = torch.ones(4, 7, dtype=torch.int64)
    mask[-1, 5:] = 0
    return {
        "input_ids": tiny_batch(seed=seed)["input_ids"][:, :6],
        "question_keys_values": torch.randn(4, 2, 2, 2, 7, 8, generator=torch.Generator().manual_seed(seed)),
        "question_mask": mask,
    }


def padded(kind: type, batch: dict) -> tuple[dict, dict]:
    """The same batch with and without positions that are padded in every row."""
    if kind is AlbefAnswerDecoder:
        question = batch["question_keys_values"]
        long = torch.cat([question, torch.full_like(question[..., :2, :], 9.0)], dim=4)
        mask = torch.nn.functional.pad(batch["question_mask"], (0, 2))
        return {**batch, "question_keys_values": long, "question_mask": mask}, batch
    long = {
        key: value.clone() for key, value in batch.items() if key != "mlm_positions"
    }  # counted over all of a batch
    long["attention_mask"][:, 6:] = 0
    short = {key: value[:, :6] if key in TEXT else value for key, value in long.items()}
    if kind is AlbefForQuestionAnswering:
        ids, mask = batch["answer_input_ids"], batch["answer_attention_mask"]
        long["answer_input_ids"] = torch.nn.functional.pad(ids, (0, 2), value=9)
        long["answer_attention_mask"] = torch.nn.functional.pad(mask, (0, 2))
    return long, short


# -- parts of a batch that do not need the others: (what to feed, which rows of the whole output that must give) ------


def each_row(batch: dict, output) -> Iterator[tuple[dict, list[int]]]:
    for row in range(4):
        yield {key: value[row : row + 1] for key, value in batch.items()}, [row]


def each_image(batch: dict, output) -> Iterator[tuple[dict, list[int]]]:
    """With all texts: the scores are those of every image with every text."""
    for row in range(4):
        scores = {key: batch[key] for key in SCORES}
        yield scores | {"pixel_values": batch["pixel_values"][row : row + 1]}, [row]


def each_question(batch: dict, output) -> Iterator[tuple[dict, list[int]]]:
    first = 0
    for row, count in enumerate(batch["answers_per_question"].tolist()):
        own = {key: batch[key][row : row + 1] for key in SCORES}
        own |= {key: value[first : first + count] for key, value in batch.items() if key.startswith("answer_")}
        yield own | {"answers_per_question": torch.tensor([count])}, list(range(first, first + count))
        first += count


def each_text_with_its_images(batch: dict, output) -> Iterator[tuple[dict, list[int]]]:
    """Twice the text, since there are as many images as texts; before both stand the images drawn in the batch."""
    for row in range(4):
        images = torch.stack([output.first_image_index[row], output.second_image_index[row]])
        yield (
            {
                "input_ids": batch["input_ids"][[row, row]],
                "attention_mask": batch["attention_mask"][[row, row]],
                "pixel_values": batch["pixel_values"][images],
                "labels": torch.tensor([0, 0]),
                "first_image_index": torch.tensor([0, 0]),
                "second_image_index": torch.tensor([1, 1]),
            },
            [row, row],
        )


# -- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model class.

    Args:
        kind: the class.
        batch: (kind, seed) -> arguments of `forward`, with losses where the class has them.
        output: the main field of its output.
        alone: parts of a batch that do not need the others, and `alone_output` the field they give rows of.
        trains: it has a loss.
        taught: by momentum copies.
        unreached: a pattern in the names of parameters that its `forward` does not use.
    """

    kind: type
    batch: Callable[[type, int], dict] = task_batch
    output: str = "logits"
    alone: Callable[[dict, object], Iterator[tuple[dict, list[int]]]] = each_row
    alone_output: str | None = None
    trains: bool = True
    taught: bool = True
    unreached: str | None = None

    def __str__(self) -> str:
        return self.kind.__name__

    def feed(self, seed: int = 0) -> dict:
        return self.batch(self.kind, seed)

    def main(self, output) -> torch.Tensor:
        return output[self.output]

    def objective(self, output) -> torch.Tensor:
        """What to differentiate: the loss, or a weighted sum of the output of a class that has none."""
        if self.trains:
            return output.loss
        main = self.main(output)
        return (main * torch.linspace(-1, 1, main.numel(), dtype=main.dtype).view_as(main)).sum()


CASES = (
    Case(AlbefTextModel, text_batch, "last_hidden_state", trains=False, taught=False),
    Case(
        AlbefAnswerDecoder,
        decoder_batch,
        trains=False,
        taught=False,
        unreached=r"crossattention\.self\.(key|value)\.",  # questions come as keys and values
    ),
    Case(
        AlbefModel,
        scores_batch,
        "logits_per_image",
        each_image,
        trains=False,
        taught=False,
        unreached=r"text_model\.encoder\.layer\.[23]\.",  # the fusion encoder
    ),
    Case(
        AlbefForPreTraining,
        lambda kind, seed: tiny_batch(seed=seed),
        "itm_logits",
        each_image,
        alone_output="logits_per_image",
    ),
    Case(AlbefForImageTextRetrieval, output="itm_logits", alone=each_image, alone_output="logits_per_image"),
    Case(AlbefForQuestionAnswering, output="answer_logits", alone=each_question),
    Case(AlbefForVisualEntailment),
    Case(AlbefForVisualReasoning),
    Case(AlbefForTextAssignment, alone=each_text_with_its_images, taught=False),
)
TRAINED = tuple(case for case in CASES if case.trains)
TAUGHT = tuple(case for case in CASES if case.taught)
