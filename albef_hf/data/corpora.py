"""Several data sets as one, mixed by weight. The order of the rows depends on (seed, epoch) only."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .permutation import permuted
from .streaming import CorpusStream

ORDER = 2  # of the rows: to be raised when the same seed gives another, so that no run goes on in another order
_MIXED = 1024  # samples, about, in which every data set has its share


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
    """Data sets with equal columns, numbered as one, and the order in which their rows come.

    Sample k of a data set, counted through all epochs, is a row of its pass k // size: no row comes again before all
    other rows of its data set have come. Rows are shuffled whole, or as `CorpusStream.order` says. Where there are
    several data sets, every thousand samples of an epoch or so have the share of each, in shuffled order. All of it is
    computed for the positions that are asked for: nothing is as long as the data.

    Args:
        parts: data sets as `load_corpus` returns them.
        names: the name of each in reports.
        weights: share of each in an epoch, in any unit; left out, an epoch has every row once.
        samples: of an epoch; all rows where left out.

    Attributes:
        samples: as above. counts: those of each data set.

    Raises:
        ValueError: a weight is not positive, or a data set has no rows.
    """

    def __init__(
        self,
        parts: Sequence[Any],
        names: Sequence[str],
        weights: Sequence[float] | None = None,
        samples: int | None = None,
    ) -> None:
        self.parts, self.names = list(parts), list(names)
        self.sizes = [len(part) for part in self.parts]
        for name, size in zip(self.names, self.sizes, strict=True):
            if size == 0:
                raise ValueError(f"{name} has no rows")
        self.starts = np.cumsum([0, *self.sizes])
        self.samples = len(self) if samples is None else samples
        exact = shares_of(self.sizes if weights is None else weights) * self.samples
        self.counts = np.floor(exact).astype(np.int64)
        # Samples lost by rounding down go to the largest remainders.
        left_over = self.samples - int(self.counts.sum())
        self.counts[np.argsort(self.counts - exact, kind="stable")[:left_over]] += 1
        self.blocks = max(1, self.samples // max(_MIXED, 2 * len(self.parts)))
        self._block: tuple[Any, ...] = ()

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

    def rows_at(self, seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The rows at some positions of an epoch.

        Args:
            positions: (n,), each 0 .. samples - 1; a few thousand at a time cost the least for each.

        Returns: (n,) row numbers.
        """
        part, number = self._sources(seed, epoch, np.asarray(positions, dtype=np.int64))
        number = number + epoch * self.counts[part]
        rows = np.empty_like(number)
        for each in np.unique(part):
            here = part == each
            passes, index = np.divmod(number[here], self.sizes[each])
            found = np.empty_like(index)
            for which in np.unique(passes):
                found[passes == which] = self._order(int(each), index[passes == which], (seed, 2, int(each), which))
            rows[here] = found + self.starts[each]
        return rows

    def _order(self, part: int, index: np.ndarray, key: tuple[Any, ...]) -> np.ndarray:
        data = self.parts[part]
        return data.order(index, *key) if isinstance(data, CorpusStream) else permuted(index, self.sizes[part], *key)

    def _sources(self, seed: int, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The data sets of some positions of an epoch, and how many of its samples come before: (n,), (n,)."""
        if len(self.parts) == 1:
            return np.zeros_like(positions), positions
        block = positions * self.blocks // self.samples
        block += self._before(block + 1).sum(1) <= positions
        part, number = np.empty_like(positions), np.empty_like(positions)
        for each in np.unique(block):
            if self._block[:3] != (seed, epoch, each):
                self._block = (seed, epoch, each, *self._mixed(seed, epoch, each))
            first, parts, numbers = self._block[3:]
            here = block == each
            part[here], number[here] = parts[positions[here] - first], numbers[positions[here] - first]
        return part, number

    def _before(self, block: np.ndarray) -> np.ndarray:
        """(n,) blocks of an epoch -> (n, parts) samples of each data set that come before. A block has fewer samples
        than data sets more or less than the others."""
        return self.counts * block[:, None] // self.blocks

    def _mixed(self, seed: int, epoch: int, block: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The first position of a block; the data set of each sample, and how many samples of it come before."""
        before, after = self._before(np.array([block, block + 1]))
        parts = np.repeat(np.arange(len(self.parts)), after - before)
        parts = parts[random_generator(seed, 0, epoch, int(block)).permutation(len(parts))]
        numbers = np.empty_like(parts)
        for each in np.unique(parts):
            here = parts == each
            numbers[here] = before[each] + np.arange(here.sum())
        return int(before.sum()), parts, numbers
