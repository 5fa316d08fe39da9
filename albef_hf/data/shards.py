"""Rows by number in files that are never loaded whole: how many each file has, and the few that are kept."""

import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import torch.distributed as dist

from ..gathering import rank, world_size
from .columns import missing_column
from .fields import split_field
from .files import UNREADABLE, unreadable
from .hashing import stable_id
from .lines import write_text

PIECE = 32  # rows of a Parquet file that are taken together
_BUFFER = 2**20  # bytes of a column that are taken from a file at once, in place of a row group's
_TOGETHER = 1000  # rows of a table that count as one chunk
_READERS = 8  # files whose rows are counted at a time
_SECONDS = 30  # between two lines about how far counting is


class Kept:
    """The things that were used last, as many as `most`. A process that is forked from this one, or gets this object
    sent, begins with none: files are read by one process each."""

    def __init__(self, most: int) -> None:
        self.most, self._things, self._process = most, OrderedDict[Any, Any](), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most, "_things": OrderedDict(), "_process": None}

    def take(self, key: Any) -> Any:
        """Take a thing out; None if it is not here."""
        if self._process != os.getpid():
            self._things, self._process = OrderedDict(), os.getpid()
        return self._things.pop(key, None)

    def __iter__(self) -> Iterator[Any]:
        """The keys of the things that are here."""
        return iter(list(self._things) if self._process == os.getpid() else [])

    def put(self, key: Any, thing: Any) -> Any:
        """Keep a thing, as the last of all, and return it."""
        self.take(key)
        self._things[key] = thing
        while len(self._things) > self.most:
            self._things.popitem(last=False)
        return thing

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The thing of a key, made where it is not here."""
        found = self.take(key)
        return self.put(key, make() if found is None else found)


class Shards:
    """Rows of a data set by number, in chunks of consecutive rows that are read from the front.

    Attributes:
        chunks: (chunks,) rows of each. ends: (chunks,) the row after each.
        features: of the columns, where they are known.
        rows_read: rows taken from files by this process, those passed over included.
    """

    def __init__(self, chunks: Sequence[int], features: datasets.Features | None) -> None:
        self.chunks, self.features, self.rows_read = np.asarray(chunks, dtype=np.int64), features, 0
        self.ends = self.chunks.cumsum()

    def __len__(self) -> int:
        return int(self.chunks.sum())

    def place_of(self, row: int) -> tuple[int, int]:
        """The chunk of a row, and the row's number there."""
        chunk = int(np.searchsorted(self.ends, row, side="right"))
        return chunk, int(row - self.ends[chunk] + self.chunks[chunk])

    def keep(self, places: int, rows: int) -> None:
        """Be ready for reading at so many places at once, of which each needs so many consecutive rows."""

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        raise NotImplementedError


class TableShards(Shards):
    """A `datasets.Dataset`, whose rows are at hand wherever they are.

    Args:
        columns: our name -> a column, or a field in its values; only these are read.

    Raises:
        ValueError: a column does not exist; names the nearest that does.
    """

    def __init__(self, dataset: str, table: datasets.Dataset, columns: Mapping[str, str]) -> None:
        table = table.select_columns(_present(dataset, columns, table.column_names))
        for name, feature in table.features.items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(name, datasets.Image(decode=False))
        whole, rest = divmod(len(table), _TOGETHER)
        super().__init__([_TOGETHER] * whole + [rest] * (rest > 0), table.features)
        self.table = table

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        self.rows_read += 1
        return self.table[row]


def _present(dataset: str, columns: Mapping[str, str], present: Sequence[str]) -> list[str]:
    """The columns that hold what is wanted."""
    found: dict[str, None] = {}
    for wanted in columns.values():
        column = split_field(wanted, present)
        if column is None:
            raise missing_column(dataset, wanted, present)
        found[column[0]] = None
    return list(found)


def _open_parquet(name: str) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(fsspec.open(name).open() if "://" in name else name, buffer_size=_BUFFER)


def _pieces(file: pyarrow.parquet.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[pyarrow.Table]:
    """The rows of a row group, `PIECE` at a time. Threads of pyarrow would not survive a fork."""
    left = None
    batches = file.iter_batches(PIECE, row_groups=[group], columns=list(columns), use_threads=False)
    for batch in batches:
        table = pyarrow.Table.from_batches([batch])
        left = table if left is None else pyarrow.concat_tables([left, table])
        while len(left) >= PIECE:
            yield left.slice(0, PIECE)
            left = left.slice(PIECE)
    if left is not None and len(left):
        yield left


class ParquetShards(Shards):
    """Parquet files. A chunk is a row group, which is read piece by piece from its front.

    Args:
        files: paths, or addresses that `fsspec` opens.
        columns: our name -> a column, or a field in its values; only these are read.

    Raises:
        ValueError: a file is damaged, or a column does not exist; names it.
    """

    def __init__(self, dataset: str, files: Sequence[str], columns: Mapping[str, str]) -> None:
        counted = rows_of_files(files, "parquet", _row_groups)
        groups = [(name, g, n) for name, sizes in zip(files, counted, strict=True) for g, n in enumerate(sizes) if n]
        schema = _open_parquet(files[0]).schema_arrow
        super().__init__([n for _, _, n in groups], datasets.Features.from_arrow_schema(schema))
        self.dataset, self.places = dataset, [(name, group) for name, group, _ in groups]
        self.columns = _present(dataset, columns, schema.names)
        self.keep(1, PIECE)

    def keep(self, places: int, rows: int) -> None:
        self._behind = rows // PIECE + 2  # pieces that the consecutive rows of a place may lie in
        self._files, self._readers = Kept(2 * places), Kept(2 * places)
        self._kept = Kept(2 * places * self._behind)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        chunk, inside = self.place_of(row)
        piece, place = divmod(inside, PIECE)
        table = self._kept.get((chunk, piece), lambda: self._read(chunk, piece))
        return table.slice(place, 1).to_pylist()[0]

    def _read(self, chunk: int, piece: int) -> pyarrow.Table:
        name, group = self.places[chunk]
        try:
            nearest = max((at for of, at in self._readers if of == chunk and at <= piece), default=0)
            reader, following = self._readers.take((chunk, nearest)), nearest
            if reader is None:
                file = self._files.get(name, lambda: _open_parquet(name))
                reader, following = _pieces(file, group, self.columns), 0
            while True:
                table = next(reader)
                self.rows_read += len(table)
                if following == piece:
                    break
                if piece - following < self._behind:
                    self._kept.put((chunk, following), table)
                following += 1
        except StopIteration as error:
            raise ValueError(f"{name} has fewer rows than it had: it was changed while it is read") from error
        except (*UNREADABLE, OSError) as error:
            raise unreadable(self.dataset, [Path(name)], error) from error
        if (piece + 1) * PIECE < self.chunks[chunk]:
            self._readers.put((chunk, piece + 1), reader)
        return table


def _row_groups(name: str) -> list[int]:
    try:
        metadata = _open_parquet(name).metadata
    except (*UNREADABLE, OSError) as error:
        raise unreadable(name, [Path(name)], error) from error
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


# ---------------------------------------------------------------------------------------------------------------------
# How many rows files have
# ---------------------------------------------------------------------------------------------------------------------


def rows_of_files(files: Sequence[str], kind: str, count: Callable[[str], list[int]]) -> list[list[int]]:
    """The rows of each chunk of each file. They are counted once, by all ranks together, and then remembered in the
    cache folder of `datasets`, until the file's size or time changes.

    Args:
        kind: what is counted, where the same files may have other numbers of rows.
        count: of one file.

    Raises:
        ValueError: that of `count`, on all ranks.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "rows_of_files" / f"{stable_id((kind, *files)):016x}.json"
    remembered = _remembered(cache)
    fresh = {name: remembered[name] for name in files if name in remembered and remembered[name][0] == _stamp(name)}
    known, names = _of_rank_0((fresh, list(files)))
    rest = [name for name in dict.fromkeys(names) if name not in known]
    counted: dict[str, Any] = {}
    problem = None
    try:
        if names != list(files):
            raise ValueError(f"rank {rank()} sees other files than rank 0: {len(files)}, not {len(names)}; {files[0]}")
        counted = _counted(rest[rank() :: world_size()], count)
    except ValueError as error:
        problem = error
    for other, wrong in _of_all_ranks((counted, None if problem is None else str(problem))):
        known |= other
        if wrong is not None:
            raise problem or ValueError(wrong)
    if rank() == 0 and rest:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_text(cache, json.dumps({name: known[name] for name in files}))
        except OSError as error:
            print(f"note: {cache} cannot be written ({error.strerror}): rows will be counted again", flush=True)
    return [known[name][1] for name in files]


def _stamp(name: str) -> list[int]:
    """What changes when a file does. An address of the Hub holds its revision."""
    if "://" in name:
        return [0, 0]
    state = os.stat(name)
    return [state.st_size, state.st_mtime_ns]


def _remembered(cache: Path) -> dict[str, Any]:
    try:
        found = json.loads(cache.read_bytes())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _counted(names: Sequence[str], count: Callable[[str], list[int]]) -> dict[str, Any]:
    """Name -> stamp and rows, of files. Says now and then how far it is."""
    found: dict[str, Any] = {}
    said = time.monotonic()
    pool = ThreadPoolExecutor(_READERS)
    try:
        for name, sizes in zip(names, pool.map(count, names), strict=True):
            found[name] = [_stamp(name), sizes]
            if time.monotonic() > said + _SECONDS and rank() == 0:
                said = time.monotonic()
                print(f"counting the rows of {len(names):,} files, once: {len(found):,} done", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _of_rank_0(value: Any) -> Any:
    """The value of rank 0, on all ranks."""
    shared = [value]
    if world_size() > 1:
        dist.broadcast_object_list(shared)
    return shared[0]


def _of_all_ranks(value: Any) -> list[Any]:
    """The value of each rank, on all ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
