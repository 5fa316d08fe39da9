"""The order of rows: a keyed permutation without an array of it, and mixtures by position."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from albef_hf.data.arguments import DataArguments
from albef_hf.data.batches import Samples, TrainingData
from albef_hf.data.corpora import Corpora
from albef_hf.data.permutation import permuted


class Numbers:
    """A data set of any length without an array."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> int:
        return row


def data_of(*sizes: int, weights=None, batch_size=4, samples=None, **options) -> TrainingData:
    names = [f"part {number}" for number in range(len(sizes))]
    corpus = Corpora([Numbers(size) for size in sizes], names, weights, samples)
    return TrainingData(Samples(corpus, DataArguments(), 3), list, batch_size, 3, **options)


@pytest.mark.parametrize("sizes", [range(1, 130), (255, 256, 257, 4097, 99_991)])
def test_every_row_comes_once_whatever_the_size(sizes):
    for size in sizes:
        assert np.array_equal(np.sort(permuted(np.arange(size), size, 1, 2)), np.arange(size))


def test_sizes_and_keys_may_differ_from_place_to_place():
    places, sizes, keys = np.array([0, 1, 2, 0, 1]), np.array([3, 3, 3, 2, 2]), np.array([7, 7, 7, 9, 9])
    one = permuted(places, sizes, keys, 5)
    assert list(one) == [*permuted(np.arange(3), 3, 7, 5), *permuted(np.arange(2), 2, 9, 5)]


def test_orders_of_different_keys_have_nothing_in_common():
    orders = [permuted(np.arange(1000), 1000, *key) for key in ((0, 0), (0, 1), (1, 0), (0, 0, 0))]
    for number, one in enumerate(orders):
        assert all((one == other).sum() < 10 for other in [*orders[:number], np.arange(1000)])


def deviation(*values: np.ndarray, bins: int) -> float:
    """How many standard deviations chi-square is off, of numbers that should fill bins of pairs evenly."""
    counts = np.histogramdd(np.stack(values, 1), bins)[0]
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def test_an_order_has_no_pattern():
    size = 100_000
    order = permuted(np.arange(size), size, 11)
    following = permuted(np.arange(size), size, 12)
    for lag in (1, 2, 317):  # of two digits of a row, the lower changes with every row and the upper after 317
        assert abs(deviation(order[:-lag], order[lag:], bins=20)) < 5
    for other in (np.arange(size), following):
        assert abs(deviation(order, other, bins=20)) < 5
    assert abs(deviation(np.diff(order) % size, bins=200)) < 5


def test_small_orders_are_equally_frequent():
    keys = np.arange(24_000)
    drawn = Counter(zip(*(permuted(np.full(len(keys), place), 4, keys) for place in range(4)), strict=True))
    assert len(drawn) == 24 and all(800 < count < 1200 for count in drawn.values())


def test_the_order_of_millions_of_rows_is_not_kept():
    tracemalloc.start()
    data = data_of(14_000_000, batch_size=64)
    for start in (0, 3, 100_000, 5_000_000_000):
        keys = data.keys(start)
        rows = [key.row for _ in range(20) for key in next(keys)]
        assert len(set(rows)) == len(rows) and max(rows) < 14_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_nothing_but_what_is_asked_for_is_computed(monkeypatch):
    """At most 1,024 places for a batch, at any position of 14 million rows."""
    asked = []

    def counted(places, *arguments):
        asked.append(len(places))
        return permuted(places, *arguments)

    monkeypatch.setattr("albef_hf.data.corpora.permuted", counted)
    next(data_of(14_000_000, batch_size=64).keys(150_000))
    assert asked == [1024]


def test_ranks_take_their_share_of_each_global_batch():
    whole = [key for _, batch in zip(range(6), data_of(48, batch_size=8).keys(2), strict=False) for key in batch]
    ranks = [data_of(48, rank=rank, world_size=2).keys(2) for rank in range(2)]
    assert whole == [key for _ in range(6) for rank in ranks for key in next(rank)]


@pytest.mark.parametrize("weights", [None, [5.0, 1.0, 0.001]])
def test_a_mixture_has_its_shares_in_every_thousand_samples(weights):
    corpus = data_of(9000, 700, 13, weights=weights).samples.corpus
    rows = corpus.rows_at(3, 1, np.arange(corpus.samples))
    parts = np.searchsorted(corpus.starts, rows, side="right") - 1
    assert np.array_equal(np.bincount(parts, minlength=3), corpus.counts)
    for first in range(0, 9000, 1000):
        counts = np.bincount(parts[first : first + 1000], minlength=3)
        assert (abs(counts - corpus.counts * 1000 / corpus.samples) <= 40).all()
    for part, size in enumerate(corpus.sizes):
        times = np.bincount(rows[parts == part] - corpus.starts[part], minlength=size)
        assert times.max() - times.min() <= 2  # two passes may meet in an epoch
    again = [corpus.rows_at(3, 1, np.array([position]))[0] for position in (5, 9000, 40, 1024)]
    assert again == list(rows[[5, 9000, 40, 1024]])


def test_no_row_comes_again_before_all_others_in_epochs_of_any_length():
    corpus = data_of(100, samples=30).samples.corpus
    rows = np.concatenate([corpus.rows_at(3, epoch, np.arange(30)) for epoch in range(10)])
    for first in (0, 100, 200):
        assert sorted(rows[first : first + 100]) == list(range(100))
