"""Training batches from the configured data sets."""

from collections.abc import Callable
from typing import Any

from ..gathering import rank
from ..processing_albef import AlbefProcessor
from .arguments import DataArguments
from .augmentation import build_augmentation
from .batches import Collator, PretrainingCollator, PretrainingSamples, Samples, TrainingData
from .corpora import Corpora, shares_of
from .sources import CORPUS_KEYS, check_keys, load_corpus


def build_training_data(
    arguments: DataArguments,
    processor: AlbefProcessor,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    fixed_length: bool = False,
    accumulation: int = 1,
) -> TrainingData:
    """Training batches for the pre-training of ALBEF, as configured.

    fixed_length: pad every text to the maximum length, so that all ranks have equal shapes.
    accumulation: micro-batches of an optimizer step.
    """
    augment = build_augmentation(
        arguments.augmentation,
        processor.image_size,
        processor.image_mean,
        processor.image_std,
        **arguments.augmentation_options,
    )
    return assemble(
        arguments,
        lambda corpus: PretrainingSamples(corpus, processor, augment, arguments, seed),
        PretrainingCollator(processor, arguments, fixed_length),
        (batch_size, seed, rank, world_size),
        accumulation=accumulation,
    )


def assemble(
    arguments: DataArguments,
    samples: Callable[[Corpora], Samples],
    collate: Collator,
    batching: tuple[int, int, int, int],
    captions: bool = True,
    accumulation: int = 1,
) -> TrainingData:
    """Training batches from the configured data sets: the one of `dataset`, or those of `mixture`.

    Args:
        samples: makes the samples of a corpus.
        batching: batch size per rank, seed, rank, number of ranks.
        captions: whether rows need captions.
        accumulation: micro-batches of an optimizer step.

    Raises:
        ValueError: a wrong entry of `mixture`; and as `load_corpus`.
    """
    alone = {key: getattr(arguments, key) for key in CORPUS_KEYS if key != "options"}
    entries = arguments.mixture or [{**alone, "options": arguments.dataset_options}]
    for entry in entries:
        check_keys(entry, (*CORPUS_KEYS, "weight"), "mixture", needed=("dataset",))
    loading: dict[str, Any] = {"workers": arguments.workers, "accumulation": accumulation}
    weighted = ["weight" in entry for entry in entries]
    if any(weighted) and not all(weighted):
        raise ValueError("mixture: give every data set a weight, or none")
    weights = [float(entry["weight"]) for entry in entries] if all(weighted) else None
    names = [entry["dataset"] for entry in entries]
    without = {} if captions else {"caption_column": None}
    loaded = [
        load_corpus(**({k: v for k, v in entry.items() if k != "weight"} | without), streaming=arguments.streaming)
        for entry in entries
    ]
    corpus = Corpora(loaded, names, weights, arguments.streaming_rows or None if arguments.streaming else None)
    if arguments.streaming:
        for stream, share in zip(loaded, shares_of(weights or corpus.sizes), strict=True):
            stream.shuffle_within(max(1, round(arguments.streaming_window * share)))
        if corpus.samples > len(corpus) and rank() == 0:
            print(f"note: streaming_rows makes an epoch of {corpus.samples:,} samples from {len(corpus):,} rows")
    return TrainingData(samples(corpus), collate, *batching, **loading)
