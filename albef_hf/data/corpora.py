"""Several data sets as one, mixed by weight. The order of the rows depends on (seed, epoch) only."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np


def random_generator(*key: int) -> np.random.Generator:
    """The random generator of a key. Every random choice about data comes from such a generator."""
    return np.random.default_rng(list(key))


def shares_of(weights: Sequence[float]) -> np.ndarray:
    """Weights in any unit -> shares that sum to 1.

    Raises:
        ValueError: a weight is not a positive number.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise ValueError(f"weights must be positive, not {shares.tolist()}")
    return shares / shares.sum()


class Corpora:
    """Map-style data sets with equal columns, numbered as one.

    Args:
        parts: data sets as `load_corpus` returns them.
        names: the name of each in reports.
        weights: share of each in an epoch, in any unit; left out, an epoch has every row once.

    Raises:
        ValueError: a weight is not positive, or a data set has no rows.
    """

    def __init__(
        self, parts: Sequence[datasets.Dataset], names: Sequence[str], weights: Sequence[float] | None = None
    ) -> None:
        self.parts, self.names = list(parts), list(names)
        self.sizes = [len(part) for part in self.parts]
        for name, size in zip(self.names, self.sizes, strict=True):
            if size == 0:
                raise ValueError(f"{name} has no rows")
        self.starts = np.cumsum([0, *self.sizes])
        exact = shares_of(self.sizes if weights is None else weights) * len(self)
        self.counts = np.floor(exact).astype(np.int64)
        # Samples lost by rounding down go to the largest remainders: an epoch has as many samples as there are rows.
        left_over = len(self) - int(self.counts.sum())
        self.counts[np.argsort(self.counts - exact, kind="stable")[:left_over]] += 1

    def __len__(self) -> int:
        return int(self.starts[-1])

    def part_of(self, row: int) -> int:
        """The number of the data set that a row belongs to."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        part = self.part_of(row)
        return self.parts[part][int(row - self.starts[part])]

    def name_of(self, row: int) -> tuple[str, int]:
        """The name of a row's data set, and the row's number in it."""
        part = self.part_of(row)
        return self.names[part], int(row - self.starts[part])

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The rows of an epoch, shuffled: (samples,).

        Each data set is shuffled pass by pass, across epochs: no row comes again before all other rows of its data set
        have come.
        """
        chosen = []
        for part, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            if count == 0:
                continue
            first = epoch * int(count)
            passes = range(first // size, (first + int(count) - 1) // size + 1)
            rows = np.concatenate([random_generator(seed, 2, part, p).permutation(size) for p in passes])
            skipped = first - passes.start * size
            chosen.append(rows[skipped : skipped + int(count)] + self.starts[part])
        rows = np.concatenate(chosen)
        return rows[random_generator(seed, 0, epoch).permutation(len(rows))]
