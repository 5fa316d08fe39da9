"""Tasks whose samples are pairs of a text and its picture, which the model learns to tell from other pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..data.batches import stable_id
from ..data.fields import usable_captions
from ..data.sources import group_of
from .rows import KARPATHY_LISTS, holds_paths, load_karpathy
from .task import Task


class PairTask(Task):
    """Samples are pairs of a text and its picture. `image_id` is equal for rows with the same picture, so that none of
    a picture's texts becomes a negative for it."""

    @classmethod
    def complete_rows(cls, rows: datasets.Dataset, dataset: str) -> datasets.Dataset:
        """Add missing values of `image_id`: the path of the picture, or the number of the row if it has no path. Equal
        ids of two data sets become different ones."""
        own = [str(path) for path in rows["image"]] if holds_paths(rows.features["image"]) else range(len(rows))
        given = rows["image_id"] if "image_id" in rows.column_names else [None] * len(rows)
        ids = [group_of(dataset, value, each) for value, each in zip(given, own, strict=True)]
        rows = rows.remove_columns([name for name in ("image_id",) if name in rows.column_names])
        return rows.add_column("image_id", ids)

    def pair(
        self, row: Mapping[str, Any], text: str, generator: np.random.Generator, training: bool
    ) -> dict[str, Any]:
        """The sample of a text and the row's picture. In training it has `draws`: three uniform numbers in [0, 1), by
        which the model draws hard negatives or other pictures."""
        pixels = self.pixels(row["image"], generator, training)
        draws = {"draws": generator.random(3)} if training else {}
        return {"pixel_values": pixels, "text": text, "image_id": row["image_id"], **draws}

    def collate(self, samples: Sequence[Mapping[str, Any]], training: bool) -> dict[str, torch.Tensor]:
        """Adds `image_ids` and `caption_ids` (samples,), equal for equal pictures and for equal texts. In training it
        also adds `negative_draws` (samples, 2) and `assignment_draws` (samples, 3)."""
        batch = super().collate(samples, training)
        batch["image_ids"] = torch.tensor([stable_id(sample["image_id"]) for sample in samples])
        cleaned = [self.processor.clean_caption(sample["text"]) for sample in samples]
        batch["caption_ids"] = torch.tensor([stable_id(caption) for caption in cleaned])
        if training:
            draws = torch.tensor(np.stack([sample["draws"] for sample in samples]), dtype=torch.float32)
            batch |= {"negative_draws": draws[:, :2], "assignment_draws": draws}
        return batch


class CaptionTask(PairTask):
    """Pictures with captions.

    Columns: `captions`, one or a list, of which each sample draws one; `image_id`, see `PairTask`.
    """

    needed = {"image": "image", "captions": "caption"}
    optional = {"image_id": "image_id"}
    max_tokens = 30  # in evaluation; the released code cuts no caption in training

    @classmethod
    def load(cls, dataset: str, **options: Any) -> datasets.Dataset:
        """Like `Task.load`, but also from Karpathy's lists of COCO and Flickr30K, recognized by their file names."""
        if Path(dataset).name in KARPATHY_LISTS:
            return load_karpathy(dataset, options.get("split", "train"), options.get("image_root"))
        return super().load(dataset, **options)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """See `Task.check_row`."""
        usable_captions(row["captions"], self.processor)

    def prepare(self, row: Mapping[str, Any], generator: np.random.Generator, training: bool) -> dict[str, Any]:
        """The row's picture with one of its captions, drawn at random."""
        usable = usable_captions(row["captions"], self.processor)
        return self.pair(row, usable[int(generator.integers(len(usable)))], generator, training)

    def tokenize(self, texts: Sequence[str], training: bool) -> Mapping[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (texts, tokens). Training cuts no caption, as published, except where ranks
        must agree on a length, which is `max_tokens`."""
        if training and self.settings.fixed_length:
            return self.processor.tokenize_captions(texts, self.max_tokens, "max_length")
        return self.processor.tokenize_captions(texts, Task.max_tokens if training else self.max_tokens)
