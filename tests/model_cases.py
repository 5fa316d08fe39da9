"""Every model class in small: how to build it, what to feed it, and what it returns. Each has a row in `CASES`."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import torch
from helpers import answers, tiny_batch, tiny_config
from transformers import PreTrainedModel

from albef_hf import (
    AlbefForImageTextClassification,
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
    AlbefForImageTextClassification,
    AlbefForVisualReasoning,
    AlbefForTextAssignment,
)
SCORES = ("input_ids", "attention_mask", "pixel_values")
TEXT = ("input_ids", "attention_mask", "mlm_input_ids", "mlm_labels")


# -- models -----------------------------------------------------------------------------------------------------------


def new(model_class: type, **changes) -> PreTrainedModel:
    """A small model with seeded weights."""
    config = tiny_config(**changes)
    if model_class in (AlbefTextModel, AlbefAnswerDecoder):
        config = AlbefTextConfig(**{**config.text_config.to_diff_dict(), "encoder_hidden_size": 24})
    torch.manual_seed(0)
    return model_class(config)


@cache
def _double(model_class: type) -> PreTrainedModel:
    return new(model_class).eval().double()


def double(model_class: type) -> PreTrainedModel:
    return deepcopy(_double(model_class))


def copies_equal_online(model) -> bool:
    return all(
        torch.equal(tensor, model.momentum_copy.get_submodule(name).state_dict()[key])
        for name, module in model.online_modules().items()
        for key, tensor in module.state_dict().items()
    )


# -- batches of four texts, with all that a training step takes -------------------------------------------------------


def task_batch(model_class: type, seed: int = 0) -> dict:
    whole = tiny_batch(seed=seed)
    batch = {key: whole[key] for key in ("pixel_values", "input_ids", "attention_mask")}
    if model_class is AlbefForImageTextRetrieval:
        batch |= {"image_ids": torch.tensor([7, 8, 7, 9]), "negative_draws": whole["negative_draws"]}
    elif model_class is AlbefForQuestionAnswering:
        batch |= answers(seed=seed)
    elif model_class is AlbefForTextAssignment:
        batch["assignment_draws"] = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))
    elif model_class is AlbefForVisualReasoning:
        batch["pixel_values"] = torch.stack([batch["pixel_values"], batch["pixel_values"].roll(1, 0)], dim=1)
        batch["labels"] = torch.tensor([0, 1, 1, 0])
    elif model_class is AlbefForImageTextClassification:
        batch["labels"] = torch.tensor([0, 1, 1, 1])
    else:
        batch["labels"] = torch.tensor([0, 1, 2, 1])
    return batch


def scores_batch(model_class: type, seed: int = 0) -> dict:
    batch = tiny_batch(seed=seed)
    return {key: batch[key] for key in SCORES}


def text_batch(model_class: type, seed: int = 0) -> dict:
    batch = tiny_batch(seed=seed)
    image = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(seed))
    return {"encoder_hidden_states": image} | {key: batch[key] for key in ("input_ids", "attention_mask")}


def decoder_batch(model_class: type, seed: int = 0) -> dict:
    """Prefixes of answers, and questions as keys and values (batch, layers, 2, heads, tokens, head width)."""
    mask = torch.ones(4, 7, dtype=torch.int64)
    mask[-1, 5:] = 0
    return {
        "input_ids": tiny_batch(seed=seed)["input_ids"][:, :6],
        "question_keys_values": torch.randn(4, 2, 2, 2, 7, 8, generator=torch.Generator().manual_seed(seed)),
        "question_mask": mask,
    }


def padded(model_class: type, batch: dict) -> tuple[dict, dict]:
    """A batch with two more positions that are padded in every row, and the batch without them."""
    if model_class is AlbefAnswerDecoder:
        question = batch["question_keys_values"]
        long = torch.cat([question, torch.full_like(question[..., :2, :], 9.0)], dim=4)
        mask = torch.nn.functional.pad(batch["question_mask"], (0, 2))
        return {**batch, "question_keys_values": long, "question_mask": mask}, batch
    long = {
        key: value.clone() for key, value in batch.items() if key != "mlm_positions"
    }  # counted over all of a batch
    long["attention_mask"][:, 6:] = 0
    short = {key: value[:, :6] if key in TEXT else value for key, value in long.items()}
    if model_class is AlbefForQuestionAnswering:
        ids, mask = batch["answer_input_ids"], batch["answer_attention_mask"]
        long["answer_input_ids"] = torch.nn.functional.pad(ids, (0, 2), value=9)
        long["answer_attention_mask"] = torch.nn.functional.pad(mask, (0, 2))
    return long, short


# -- parts of a batch that do not depend on others: (what to feed, the rows of the whole output it must equal) --------


def each_row(batch: dict, output) -> Iterator[tuple[dict, list[int]]]:
    for row in range(4):
        yield {key: value[row : row + 1] for key, value in batch.items()}, [row]


def each_image(batch: dict, output) -> Iterator[tuple[dict, list[int]]]:
    """One image with all texts, since the output has scores of every image with every text."""
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
    """A text twice, since there must be as many texts as images, with the two images that were drawn for it."""
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
        model_class: the class.
        batch: (model_class, seed) -> arguments of `forward`, for losses where the class has them.
        output: the main field of its output.
        alone: (batch, output) -> parts of the batch that do not depend on its other parts, and the rows that they give
            of the field `alone_output` (`output` where left out).
        trains: it has a loss.
        taught: it has momentum copies.
        unreached: a pattern in the names of parameters that its `forward` does not use.
    """

    model_class: type
    batch: Callable[[type, int], dict] = task_batch
    output: str = "logits"
    alone: Callable[[dict, object], Iterator[tuple[dict, list[int]]]] = each_row
    alone_output: str | None = None
    trains: bool = True
    taught: bool = True
    unreached: str | None = None

    def __str__(self) -> str:
        return self.model_class.__name__

    def feed(self, seed: int = 0) -> dict:
        return self.batch(self.model_class, seed)

    def main(self, output) -> torch.Tensor:
        return output[self.output]

    def objective(self, output) -> torch.Tensor:
        """A scalar to differentiate: the loss, or a weighted sum of the output if the class has no loss."""
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
        lambda model_class, seed: tiny_batch(seed=seed),
        "itm_logits",
        each_image,
        alone_output="logits_per_image",
    ),
    Case(AlbefForImageTextRetrieval, output="itm_logits", alone=each_image, alone_output="logits_per_image"),
    Case(AlbefForQuestionAnswering, output="answer_logits", alone=each_question),
    Case(AlbefForVisualEntailment),
    Case(AlbefForImageTextClassification),
    Case(AlbefForVisualReasoning),
    Case(AlbefForTextAssignment, alone=each_text_with_its_images, taught=False),
)
TRAINED = tuple(case for case in CASES if case.trains)
TAUGHT = tuple(case for case in CASES if case.taught)
