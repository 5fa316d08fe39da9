"""Data sets that are read where the next rows are, and never loaded whole."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .columns import captions_from_classes, missing_column
from .fields import check_texts, field_of, split_field
from .permutation import permuted
from .shards import Shards

WINDOW = 4096
_BLOCK = 64  # rows of a lane that are shuffled together, at least, where the data have enough chunks
_TURN = 4  # consecutive samples from one lane


class WindowedOrder:
    """An order of rows that reads files nearly from front to back.

    The chunks of the data are put one after the other in an order that is new in each pass, and this sequence is cut
    into equal *lanes*. Positions go round the lanes, a few samples from each; the rows of a lane are shuffled in
    blocks of consecutive ones. So a window of samples comes from one block of each lane. Since a lane always has the
    same places of a round, ranks and workers whose batches fit into it read their own lanes alone.

    Args:
        chunks: (chunks,) their rows.
        window: rows that are shuffled together: blocks x lanes.
    """

    def __init__(self, chunks: np.ndarray, window: int) -> None:
        self.chunks, self.size = chunks, int(chunks.sum())
        self.starts = chunks.cumsum() - chunks
        self.lanes = max(1, min(window // _BLOCK, len(chunks)))
        self.block = max(1, window // self.lanes)
        self._sequence: tuple[Any, ...] = ()

    def rows(self, index: np.ndarray, *key: int) -> np.ndarray:
        """The rows at some places of a pass, each of which has every row once.

        Args:
            index: (n,), each 0 .. size - 1.
            key: of the pass.

        Returns: (n,).
        """
        short, longer = divmod(self.size, self.lanes)  # the first lanes have a row more than the others
        turns = short // _TURN
        turn, phase = np.divmod(index, _TURN * self.lanes)
        lane, place = phase // _TURN, turn * _TURN + phase % _TURN
        last = index - turns * _TURN * self.lanes  # what is left of each lane comes row by row
        lane = np.where(last < 0, lane, last % self.lanes)
        place = np.where(last < 0, place, turns * _TURN + last // self.lanes)
        first = place - place % self.block
        sizes = np.minimum(self.block, short + (lane < longer) - first)
        place = first + permuted(place - first, sizes, *key, lane, first)
        return self._rows_of(lane * short + np.minimum(lane, longer) + place, key)

    def _rows_of(self, places: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
        """Places in the sequence of all chunks -> rows."""
        if self._sequence[:1] != (key,):
            chosen = permuted(np.arange(len(self.chunks)), len(self.chunks), *key)
            self._sequence = (key, chosen, self.chunks[chosen].cumsum())
        _, chosen, ends = self._sequence
        at = np.searchsorted(ends, places, side="right")
        return self.starts[chosen[at]] + places - ends[at] + self.chunks[chosen[at]]


@dataclass
class CorpusStream:
    """Rows of `image` (undecoded), `captions` and `group`, which are read when they are asked for.

    Args:
        shards: where they are.
        dataset: its name, for errors and groups.
        columns: our name of a column -> its name in the data set.
        image_root: folder that relative picture paths start from.
        caption_template: see `load_corpus`.
        window: rows that are shuffled together.

    Raises:
        ValueError: a column is missing in the first row, or its caption is no text.
    """

    shards: Shards
    dataset: str
    columns: dict[str, str]
    image_root: Path
    caption_template: str | None = None
    window: int = field(default=WINDOW, compare=False)

    def __post_init__(self) -> None:
        self.shuffle_within(self.window)
        first = self[0] if len(self) else {}
        if "captions" in first:
            check_texts(self.dataset, self.columns["captions"], None, [first["captions"]])

    def shuffle_within(self, window: int) -> None:
        """Set how many rows are shuffled together."""
        self.window, self._order = window, WindowedOrder(self.shards.chunks, window)
        self.shards.keep(self._order.lanes, self._order.block)

    @property
    def column_names(self) -> list[str]:
        return sorted({*self.columns, "group"})

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))

    def order(self, index: np.ndarray, *key: int) -> np.ndarray:
        """The rows at some places of a pass: see `WindowedOrder.rows`."""
        return self._order.rows(index, *key)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.shards[number]
        made: dict[str, Any] = {}
        for ours, name in self.columns.items():
            found = split_field(name, row)
            if found is None:
                raise missing_column(self.dataset, name, row)
            made[ours] = field_of(row[found[0]], found[1])
        if self.caption_template is not None and "captions" in made:
            feature = (self.shards.features or {}).get(self.columns["captions"])
            made["captions"] = captions_from_classes([made["captions"]], feature, self.caption_template)[0]
        image = made["image"]
        if isinstance(image, Mapping) and image.get("bytes") is None and isinstance(image.get("path"), str):
            image = image["path"]
        if isinstance(image, str):
            made["image"] = image = str(self.image_root / image)
        own = image if isinstance(image, str) else number
        return {**made, "group": group_of(self.dataset, made.get("group"), own)}


def group_of(dataset: str, value: Any, own: Any) -> str:
    """The group of a row. Equal ids of two data sets are two groups.

    Args:
        value: the row's id; null and not-a-number are none.
        own: what tells the row from others where it has no id: its picture's path, or its number.
    """
    return f"{dataset}:{own}" if value is None or value != value else f"{dataset}:={value}"
