"""Batches from data sets that are read from front to back and never loaded whole."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from .batches import SampleKey, TrainingData
from .corpora import random_generator, shares_of
from .sources import CorpusStream


class StreamedTrainingData(TrainingData):
    """`TrainingData` from streams. Here too, batch i of a rank depends on (seed, i, rank, number of ranks) only.

    The order of shards changes every epoch, and rows are shuffled within windows. A stream that ends starts again; a
    note says so once, since it means that rows come twice in an epoch, and others perhaps not at all. A resumed run
    skips the rows of the epoch that were already used, without decoding them.

    Args:
        streams: data sets as `load_corpus(..., streaming=True)` returns them.
        weights: the share of each stream, in any unit.
        window: how many rows are shuffled together on a rank.
        *arguments, **options: those of `TrainingData`. `rows` is required, since a stream has no length.
    """

    def __init__(
        self, streams: Sequence[CorpusStream], weights: Sequence[float], window: int, *arguments: Any, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.streams = list(streams)
        self.shares = shares_of(weights)
        self.batches_per_window = max(1, window // self.batch_size)
        self.said: set[int] = set()  # the streams of which a note was printed

    def _endless(self, part: int, epoch: int) -> Iterator[dict[str, Any]]:
        """The rows of one stream, over and over."""
        for again in itertools.count():
            seed = int(random_generator(self.seed, 3, epoch, part, again).integers(2**31))
            count = 0
            for row in self.streams[part].rows(seed, self.rank, self.world_size):
                count += 1
                yield row
            if count == 0:
                raise ValueError(f"{self.streams[part].dataset} has no rows for rank {self.rank}")
            if part not in self.said:
                self.said.add(part)
                print(self._note(part, count))

    def _note(self, part: int, count: int) -> str:
        """What it means that a stream starts again within an epoch. count: its rows on this rank."""
        name, weighted = self.streams[part].dataset, len(self.streams) > 1
        here = (
            f"all {count:,} rows of {name}" if self.world_size == 1 else f"the {count:,} rows of {name} on this rank"
        )
        what = "its weight is larger than its share of the rows" if weighted else f"an epoch has {self.rows:,} samples"
        uneven = (
            ""
            if self.world_size == 1
            else (
                ". Where other ranks have more, some of their rows are not seen in this epoch: use shards with equal "
                "numbers of rows, a multiple of the number of ranks"
            )
        )
        return f"note: {here} were read and come again in this epoch ({what}){uneven}"

    def _rows(self, epoch: int) -> Iterator[dict[str, Any]]:
        """The rows of an epoch on this rank, mixed by weight."""
        parts = [self._endless(part, epoch) for part in range(len(self.streams))]
        chooser = random_generator(self.seed, 4, epoch, self.rank)
        while True:
            yield next(parts[int(chooser.choice(len(parts), p=self.shares)) if len(parts) > 1 else 0])

    def keys(self, start: int, skipped: int = 0) -> Iterator[list[SampleKey]]:
        """The keys of batch `start` and of all later batches. They hold the rows, with undecoded pictures.

        Raises:
            ValueError: samples are to be left out at the beginning.
        """
        if skipped:
            raise ValueError("a stream cannot go on within an epoch with another batch size or number of ranks")
        epoch, step = divmod(start, self.steps_per_epoch)
        while True:
            rows = self._rows(epoch)
            first = step - step % self.batches_per_window
            deque(itertools.islice(rows, first * self.batch_size), maxlen=0)
            while first < self.steps_per_epoch:
                batches = min(self.batches_per_window, self.steps_per_epoch - first)
                window = list(itertools.islice(rows, batches * self.batch_size))
                order = random_generator(self.seed, 5, epoch, first, self.rank).permutation(len(window))
                for batch in range(max(0, step - first), batches):
                    position = ((first + batch) * self.world_size + self.rank) * self.batch_size
                    chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                    yield [
                        SampleKey(int(first * self.batch_size + row), epoch, position + i, window[row])
                        for i, row in enumerate(chosen)
                    ]
                first += batches
            epoch, step = epoch + 1, 0
