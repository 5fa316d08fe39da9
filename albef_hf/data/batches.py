"""From rows to batches.

The order of the samples and every random choice about a sample depend on (seed, epoch, position) and on nothing else.
So a run resumes from the number of its next batch, and the numbers of ranks and workers change nothing.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..losses import IGNORED
from ..processing_albef import AlbefProcessor
from .arguments import DataArguments
from .augmentation import Augmentation
from .corpora import Corpora, random_generator
from .fields import usable_captions
from .hashing import stable_id
from .images import BadImage, decode_image
from .lines import append_lines, read_lines, write_lines

ATTEMPTS = 20


def mask_tokens(
    ids: np.ndarray, generator: np.random.Generator, probability: float, mask_id: int, vocabulary: int, kept: set[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one text for masked language modeling (paper section 3.2).

    Each token is chosen with `probability`. Of the chosen tokens 80 % become [MASK], 10 % become a random token, and
    10 % stay as they are.

    Args:
        ids: (tokens,).
        mask_id: id of [MASK].
        vocabulary: random tokens have ids below this.
        kept: ids that are never chosen: [CLS], [PAD], [SEP].

    Returns: (tokens,) masked ids; (tokens,) labels, which are the original id of each chosen token and -100 elsewhere.
    """
    chosen = (generator.random(len(ids)) < probability) & ~np.isin(ids, list(kept))
    fate = generator.random(len(ids))
    random_ids = generator.integers(vocabulary, size=len(ids))
    masked = np.where(chosen & (fate < 0.8), mask_id, ids)
    masked = np.where(chosen & (fate >= 0.8) & (fate < 0.9), random_ids, masked)
    return masked, np.where(chosen, ids, IGNORED)


@dataclass(frozen=True)
class SampleKey:
    """Which row is drawn at which position of which epoch."""

    row: int
    epoch: int
    position: int


class Samples(Dataset):
    """Sample keys -> samples. Subclasses define `prepare`.

    A row that cannot be used is replaced by another one, which the sample's own generator draws from the whole corpus.
    """

    def __init__(self, corpus: Corpora, arguments: DataArguments, seed: int) -> None:
        self.corpus, self.arguments, self.seed = corpus, arguments, seed

    def prepare(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """Turn a row into a sample. Every random choice comes from the generator.

        Raises:
            BadImage: the row cannot be used; says why.
        """
        raise NotImplementedError

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        generator = random_generator(self.seed, 1, key.epoch, key.position)
        rejected: list[dict[str, Any]] = []
        candidate = key.row
        for _ in range(ATTEMPTS):
            try:
                return {**self.prepare(self.corpus[candidate], generator), "rejected": rejected}
            except BadImage as problem:
                source, number = self.corpus.name_of(candidate)
                rejected.append({"row": number, "source": source, "reason": problem.reason})
            candidate = int(generator.integers(len(self.corpus)))
        raise ValueError(f"{ATTEMPTS} rows one after the other cannot be used; the last: {rejected[-1]}")

    def __len__(self) -> int:
        return len(self.corpus)


class PretrainingSamples(Samples):
    """Pictures with captions for the pre-training of ALBEF."""

    def __init__(
        self,
        corpus: Corpora,
        processor: AlbefProcessor,
        augment: Augmentation,
        arguments: DataArguments,
        seed: int,
    ) -> None:
        super().__init__(corpus, arguments, seed)
        self.processor, self.augment = processor, augment

    def prepare(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        captions = usable_captions(row["captions"], self.processor)
        caption = captions[int(generator.integers(len(captions)))]
        pixels = self.augment(decode_image(row["image"], self.arguments.max_image_pixels), generator)
        return {
            "pixel_values": pixels,
            "caption": caption,
            "group": row["group"],
            "draws": generator.random(2),
            "generator": generator,
        }


class Collator:
    """Samples -> a batch: the arguments of a method's `forward`, and `rejected`, which the loop removes first."""

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        raise NotImplementedError

    def to_device(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """The batch on a device, as the arguments of `forward`."""
        return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


class PretrainingCollator(Collator):
    """Samples -> the arguments of `AlbefForPreTraining.forward`, and `rejected`.

    fixed_length: pad every text to the maximum length, so that all ranks have equal shapes.
    """

    def __init__(self, processor: AlbefProcessor, arguments: DataArguments, fixed_length: bool) -> None:
        self.processor, self.arguments = processor, arguments
        self.padding = "max_length" if fixed_length else "longest"
        tokenizer = processor.tokenizer
        self.kept = {tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id}

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        captions = [sample["caption"] for sample in samples]
        text = self.processor.tokenize_captions(captions, self.arguments.max_caption_tokens, self.padding)
        tokenizer = self.processor.tokenizer
        masked, labels = zip(
            *(
                mask_tokens(
                    ids,
                    sample["generator"],
                    self.arguments.mlm_probability,
                    tokenizer.mask_token_id,
                    len(tokenizer),
                    self.kept,
                )
                for ids, sample in zip(text["input_ids"].numpy(), samples, strict=True)
            ),
            strict=True,
        )
        mlm_labels = torch.from_numpy(np.stack(labels))
        return {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "mlm_input_ids": torch.from_numpy(np.stack(masked)),
            "mlm_labels": mlm_labels,
            "mlm_positions": (mlm_labels.flatten() != IGNORED).nonzero().squeeze(1),
            "image_ids": torch.tensor([stable_id(sample["group"]) for sample in samples]),
            "caption_ids": torch.tensor([stable_id(self.processor.clean_caption(c)) for c in captions]),
            "negative_draws": torch.tensor(np.stack([s["draws"] for s in samples]), dtype=torch.float32),
            "rejected": [entry for sample in samples for entry in sample["rejected"]],
        }


# Signals that ask a run to stop.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes started in this context never get `STOP_SIGNALS`; this process gets them when the context ends."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def started(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader, whose workers start here and never get `STOP_SIGNALS`: these are for the process that
    trains or measures alone."""
    with signals_blocked():
        return iter(loader)


class TrainingData:
    """An endless sequence of batches. Batch i of a rank depends on (seed, i, rank, number of ranks) only.

    An optimizer step takes `batch_size` samples for each rank and micro-batch: the *global batch*. It never crosses
    the end of an epoch, so 16 samples are the same samples on one rank, on two, and as two micro-batches of 8.

    Args:
        batch_size: samples of a rank's micro-batch.
        accumulation: micro-batches of an optimizer step.

    Attributes:
        rows: samples in an epoch, over all ranks.
        steps_per_epoch: batches that a rank draws in an epoch. Rows that do not fill a global batch are dropped.

    Raises:
        ValueError: an epoch does not fill one global batch.
    """

    def __init__(
        self,
        samples: Samples,
        collate: Collator,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        accumulation: int = 1,
    ) -> None:
        self.samples, self.collate, self.batch_size, self.accumulation = samples, collate, batch_size, accumulation
        self.seed, self.rank, self.world_size, self.workers = seed, rank, world_size, workers
        self.rows = samples.corpus.samples
        self.steps_per_epoch = self.rows // (batch_size * world_size * accumulation) * accumulation
        if self.steps_per_epoch == 0:
            accumulated = f", {accumulation} of them accumulated," if accumulation > 1 else ""
            raise ValueError(
                f"a batch of {batch_size} on {world_size} ranks{accumulated} is larger than the corpus of "
                f"{self.rows} rows"
            )

    def keys(self, start: int, skipped: int = 0) -> Iterator[list[SampleKey]]:
        """The keys of batch `start` and of all later batches. skipped: see `batches`."""
        epoch, step = divmod(start, self.steps_per_epoch)
        size = self.batch_size * self.world_size
        together = max(1, 1024 // self.batch_size)  # batches whose rows are computed at once
        while True:
            last = skipped + (self.rows - skipped) // (size * self.accumulation) * (size * self.accumulation)
            firsts = np.arange(skipped + step * size, last, size) + self.rank * self.batch_size
            for ahead in range(0, len(firsts), together):
                mine = firsts[ahead : ahead + together, None] + np.arange(self.batch_size)
                rows = self.samples.corpus.rows_at(self.seed, epoch, mine.ravel()).reshape(mine.shape)
                for batch in zip(rows.tolist(), mine.tolist(), strict=True):
                    yield [SampleKey(row, epoch, position) for row, position in zip(*batch, strict=True)]
            epoch, step, skipped = epoch + 1, 0, 0

    def to_device(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """A batch without `rejected`, on a device, as the arguments of `forward`."""
        return self.collate.to_device(batch, device)

    def batches(self, start: int = 0, skipped: int = 0) -> Iterator[dict[str, Any]]:
        """Batch `start` and all later batches.

        Args:
            skipped: samples, over all ranks, to leave out at the beginning of the epoch of batch `start`, from where
                its batches are then counted: for a run that goes on within an epoch with another batch size.
        """
        loader = DataLoader(
            self.samples,
            batch_sampler=self.keys(start, skipped),
            collate_fn=self.collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )
        return started(loader)


class RejectionLog:
    """Counts samples that cannot be used, lists them in a file of JSON lines, and ends the run if they are too many.

    Args:
        max_fraction: the largest share of unusable samples that a run may have.
        after: the share is checked from this many samples on.
        step: the step that the run goes on from. Samples listed after it are listed again when they come again.
        seen: samples of this rank up to that step.
    """

    def __init__(self, path: Path, max_fraction: float, after: int = 1000, step: int = 0, seen: int = 0) -> None:
        self.path, self.max_fraction, self.after = path, max_fraction, after
        kept = [entry for entry in read_lines(path) if entry.get("step", 0) <= step] if step else []
        if path.exists():
            write_lines(path, kept)
        self.rejected, self.seen = len(kept), seen

    def add(self, rejected: list[dict[str, Any]], seen: int, step: int = 0) -> None:
        """Note the rejected among the next `seen` samples, which belong to optimizer step `step`, from 1.

        Raises:
            ValueError: more than `max_fraction` of the samples so far could not be used.
        """
        self.seen += seen
        self.rejected += len(rejected)
        if rejected:
            append_lines(self.path, [{**entry, "step": step} for entry in rejected])
        if self.seen >= self.after and self.rejected > self.max_fraction * self.seen:
            raise ValueError(
                f"{self.rejected} of {self.seen} samples cannot be used, more than max_rejected_fraction = "
                f"{self.max_fraction}; they are listed in {self.path}, the last: {rejected[-1] if rejected else ''}"
            )
