"""Batches of the downstream tasks, with the published fine-tuning augmentation (released code, `dataset/`).

Training replaces and counts a row that cannot be used, as pre-training does; evaluation names it and stops, since a
figure over other rows than others measured compares with nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..data.arguments import DataArguments
from ..data.augmentation import Augmentation, build_augmentation
from ..data.batches import Collator, Samples, TrainingData, stable_id
from ..data.corpora import Corpora
from ..data.images import BadImage, decode_image
from ..processing_albef import AlbefProcessor
from .rows import LABELS, TASKS, answers_of, label_number, weighted_answers

RETRIEVAL_TOKENS, QUESTION_TOKENS = 30, 25
LONGEST = 512  # tokens of a text of the other tasks, which the publication never cuts


def task_augmentation(task: str, processor: AlbefProcessor, training: bool = True, **options: Any) -> Augmentation:
    """Crops of 0.5 .. 1 of the area, flip and two operations; for grounding the whole picture, where a crop could cut
    off what is meant; in evaluation the whole picture and nothing else. `options` as in `build_augmentation`."""
    place = (processor.image_size, processor.image_mean, processor.image_std)
    if not training:
        return build_augmentation("none", *place)
    scale = None if task == "grounding" else (0.5, 1.0)
    return build_augmentation("albef", *place, **({"scale": scale} | options))


class TaskSamples(Samples):
    """Rows of a task, named as in `TASKS`, as samples.

    Args:
        answer_list: answers that may be learned; others are left out, and a question without any cannot be used.
    """

    def __init__(
        self,
        task: str,
        corpus: Corpora | None,
        processor: AlbefProcessor,
        augment: Augmentation,
        arguments: DataArguments,
        seed: int,
        training: bool = True,
        answer_list: Sequence[str] | None = None,
    ) -> None:
        super().__init__(corpus, arguments, seed)
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; there are: {', '.join(TASKS)}")
        self.task, self.processor, self.augment, self.training = task, processor, augment, training
        self.answer_list = None if answer_list is None else set(answer_list)

    def _pixels(self, value: Any, generator: np.random.Generator, what: str = "image") -> torch.Tensor:
        try:
            return self.augment(decode_image(value, self.arguments.max_image_pixels), generator)
        except BadImage as problem:
            raise BadImage(f"{what}: {problem.reason}") from problem

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        value = row[name]
        if not isinstance(value, str) or not self.processor.clean_caption(value):
            raise BadImage(f"{name}: no words in {value!r}")
        return value

    def prepare(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        sample = getattr(self, f"_{self.task}")(row, generator)
        if self.task in LABELS:
            try:
                sample["label"] = label_number(self.task, row["label"])
            except ValueError as problem:
                raise BadImage(str(problem)) from problem
        return sample

    def _retrieval(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        captions = [row["captions"]] if isinstance(row["captions"], str) else row["captions"] or []
        usable = [caption for caption in captions if caption and self.processor.clean_caption(caption)]
        if not usable:
            raise BadImage("captions: no caption with words in it")
        caption = usable[int(generator.integers(len(usable)))]
        return self._pair(row, caption, generator)

    def _pair(self, row: Mapping[str, Any], text: str, generator: np.random.Generator) -> dict[str, Any]:
        """An image and a text; `draws` choose hard negatives, or what a text is assigned to."""
        pixels = self._pixels(row["image"], generator)
        draws = {"draws": generator.random(3)} if self.training else {}
        return {"pixel_values": pixels, "text": text, "image_id": row["image_id"], **draws}

    def _grounding(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        return self._pair(row, self._text(row, "expression"), generator)

    def _question_answering(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        question = self._text(row, "question")
        sample = {"pixel_values": self._pixels(row["image"], generator), "text": question}
        if not self.training:
            return sample | {"references": answers_of(row)}
        answers = weighted_answers(row)
        if not answers:
            raise BadImage("answers: none")
        if self.answer_list is not None:
            known = {answer: weight for answer, weight in answers.items() if answer in self.answer_list}
            if not known:
                raise BadImage(f"answers: none of {list(answers)} is in the answer list")
            answers = known
        return sample | {"answers": answers}

    def _visual_reasoning(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        images = row["images"] if "images" in row else [row["image_0"], row["image_1"]]
        if images is None or len(images) != 2:
            raise BadImage(f"images: two are needed, there are {0 if images is None else len(images)}")
        pixels = [self._pixels(image, generator, f"images[{place}]") for place, image in enumerate(images)]
        return {"pixel_values": torch.stack(pixels), "text": self._text(row, "sentence")}

    def _visual_entailment(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        return {"pixel_values": self._pixels(row["image"], generator), "text": self._text(row, "sentence")}


class TaskCollator(Collator):
    """Samples -> the arguments of the task's model, and `rejected`. `fixed_length` pads captions to the maximum, so
    that ranks agree."""

    def __init__(
        self, task: str, processor: AlbefProcessor, training: bool = True, fixed_length: bool = False
    ) -> None:
        self.task, self.processor, self.training = task, processor, training
        self.padding = "max_length" if fixed_length else "longest"

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """`input_ids` and `attention_mask` as the task has them."""
        if self.task != "question_answering":
            length = RETRIEVAL_TOKENS if self.task == "retrieval" else LONGEST
            return self.processor.tokenize_captions(texts, length, self.padding if length < LONGEST else "longest")
        cleaned = [self.processor.clean_question(text, train=self.training) for text in texts]
        return self.processor.tokenizer(
            cleaned,
            padding="longest",
            truncation=True,
            max_length=QUESTION_TOKENS if self.training else LONGEST,
            return_tensors="pt",
            return_token_type_ids=False,
        )

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        text = self.tokenize([sample["text"] for sample in samples])
        batch: dict[str, Any] = {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "rejected": [entry for sample in samples for entry in sample.get("rejected", ())],
        }
        if "image_id" in samples[0]:
            batch["image_ids"] = torch.tensor([stable_id(sample["image_id"]) for sample in samples])
            cleaned = [self.processor.clean_caption(sample["text"]) for sample in samples]
            batch["caption_ids"] = torch.tensor([stable_id(caption) for caption in cleaned])
        if "draws" in samples[0]:
            draws = torch.tensor(np.stack([sample["draws"] for sample in samples]), dtype=torch.float32)
            batch |= {"negative_draws": draws[:, :2], "assignment_draws": draws}
        if "label" in samples[0]:
            batch["labels"] = torch.tensor([sample["label"] for sample in samples])
        if "answers" in samples[0]:
            answers = [answer for sample in samples for answer in sample["answers"]]
            tokens = tokenize_answers(self.processor, answers)
            weights = [weight for sample in samples for weight in sample["answers"].values()]
            batch |= {f"answer_{name}": tensor for name, tensor in tokens.items()}
            batch["answer_weights"] = torch.tensor(weights)
            batch["answers_per_question"] = torch.tensor([len(sample["answers"]) for sample in samples])
        return batch


def tokenize_answers(processor: AlbefProcessor, answers: Sequence[str]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` (answers, tokens): [CLS], the answer, [SEP] where the decoder ends."""
    tokenizer = processor.tokenizer
    rows = tokenizer(list(answers), add_special_tokens=False, return_token_type_ids=False)["input_ids"]
    rows = [[tokenizer.cls_token_id, *row, tokenizer.sep_token_id] for row in rows]
    longest = max(len(row) for row in rows)
    ids = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def build_task_data(
    task: str,
    parts: Mapping[str, datasets.Dataset],
    processor: AlbefProcessor,
    arguments: DataArguments,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    weights: Sequence[float] | None = None,
    answer_list: Sequence[str] | None = None,
    fixed_length: bool = False,
) -> TrainingData:
    """Training batches of a task.

    Args:
        parts: data sets of `load_task` by name, such as VQA v2 and Visual Genome.
        arguments: `augmentation_options`, `max_image_pixels` and `workers` are used.
        weights: share of each part in an epoch; their sizes where left out.
        answer_list: see `TaskSamples`.
        fixed_length: see `TaskCollator`.
    """
    augment = task_augmentation(task, processor, **arguments.augmentation_options)
    corpus = Corpora(list(parts.values()), list(parts), weights)
    samples = TaskSamples(task, corpus, processor, augment, arguments, seed, answer_list=answer_list)
    collate = TaskCollator(task, processor, fixed_length=fixed_length)
    return TrainingData(samples, collate, batch_size, seed, rank, world_size, workers=arguments.workers)


class _EvaluationRows(Dataset):
    """Rows in their order; one that cannot be used is an error."""

    def __init__(self, samples: TaskSamples, rows: datasets.Dataset, name: str) -> None:
        self.samples, self.rows, self.name = samples, rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        try:
            return self.samples.prepare(self.rows[row], np.random.default_rng(row))
        except BadImage as problem:
            raise ValueError(f"{self.name}, row {row}: {problem.reason}") from problem


def evaluation_batches(
    task: str,
    rows: datasets.Dataset,
    processor: AlbefProcessor,
    arguments: DataArguments,
    *,
    batch_size: int = 64,
    name: str = "evaluation data",
) -> Iterator[dict[str, Any]]:
    """Every row once, in order, whole pictures. The last batch may be smaller.

    Raises:
        ValueError: a row that cannot be used; names the data set, the row and the field.
    """
    augment = task_augmentation(task, processor, training=False)
    samples = TaskSamples(task, None, processor, augment, arguments, 0, training=False)
    loader = DataLoader(
        _EvaluationRows(samples, rows, name),
        batch_size,
        collate_fn=TaskCollator(task, processor, training=False),
        num_workers=arguments.workers,
        generator=torch.Generator(),
    )
    for batch in loader:
        del batch["rejected"]
        yield batch
