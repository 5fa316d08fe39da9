"""Files of rows: which endings are read by what, patterns of names, and what is missing or damaged."""

import csv
import glob
import gzip
import itertools
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from datasets.exceptions import DatasetGenerationError

from .hints import nearest_hint

# What `images.decode_image` reads.
PICTURE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    ".npy",
)
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
# File endings, and the loader of `datasets` that reads them, or ours.
READERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".json.gz": "json",
    ".jsonl.gz": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".csv.gz": "csv",
    ".tsv.gz": "csv",
    **dict.fromkeys(ARCHIVES, "archive"),
}
UNREADABLE = (
    DatasetGenerationError,
    pyarrow.ArrowException,
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    UnicodeDecodeError,
    csv.Error,
)
_MOST_ALTERNATIVES = 1_000_000
_CSV_ROWS = 65_536  # turned into a table together


class BadRow(ValueError):
    """A row that cannot be used. The message names its file and its place there."""


def ending_of(name: str) -> str:
    """The ending of a file name that says what is in it, in lower case: ".tar.gz", ".jpg"."""
    lower = Path(name).name.lower()
    for ending in sorted(READERS, key=len, reverse=True):
        if lower.endswith(ending) and lower != ending:
            return ending
    return Path(lower).suffix


def is_pattern(dataset: str) -> bool:
    """Whether a name stands for several files: with `*`, `?`, `[...]` or `{...}`, unless a file is called so."""
    return bool(re.search(r"[*?\[{]", dataset)) and not Path(dataset).expanduser().exists()


def expand_braces(pattern: str) -> list[str]:
    """`a{000..012}` -> thirteen names, `{a,b}c` -> two. Numbers keep their leading zeros.

    Raises:
        ValueError: it would be more than a million names.
    """
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    if match[3] is not None:
        middles = match[3].split(",")
    else:
        first, last = int(match[1]), int(match[2])
        width = len(match[1]) if match[1].startswith("0") else 0
        step = 1 if last >= first else -1
        if abs(last - first) >= _MOST_ALTERNATIVES:
            raise ValueError(f"{pattern}: {abs(last - first) + 1:,} names are too many")
        middles = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for middle in middles for name in expand_braces(f"{before}{middle}{after}")]


def find_files(dataset: str) -> list[Path]:
    """The files that a name or a pattern means: braces in their order, the matches of each in the order of names.

    Raises:
        ValueError: a file is missing, or a pattern has no match; names it.
    """
    if not is_pattern(dataset):
        path = Path(dataset).expanduser()
        if not path.is_file():
            raise missing("file", dataset, path)
        return [path]
    found: dict[Path, None] = {}
    for name in expand_braces(str(Path(dataset).expanduser())):
        matches = sorted(glob.glob(name, recursive=True)) if re.search(r"[*?\[]", name) else [name]
        paths = [Path(match) for match in matches if Path(match).is_file()]
        if not paths:
            raise missing("file", name, Path(name))
        found |= dict.fromkeys(paths)
    return list(found)


def reader_of(files: list[Path]) -> str:
    """What reads these files.

    Raises:
        ValueError: their ending is not supported, or they have several; names what is supported.
    """
    endings = sorted({ending_of(path.name) for path in files})
    for path in files:
        if ending_of(path.name) not in READERS:
            supported = ", ".join(READERS)
            raise ValueError(f"{path}: files ending in {ending_of(path.name)!r} are not supported; {supported} are")
    readers = {READERS[ending] for ending in endings}
    if len(readers) > 1:
        raise ValueError(
            f"{files[0].parent}: files of several kinds ({', '.join(endings)}); name one, such as *.parquet"
        )
    return readers.pop()


def root_of(files: list[Path]) -> Path:
    """The folder that relative picture paths in these files start from."""
    parents = {path.parent for path in files}
    return parents.pop() if len(parents) == 1 else Path(*_common(sorted(str(parent) for parent in parents)))


def _common(names: list[str]) -> tuple[str, ...]:
    parts = [Path(name).parts for name in names]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return tuple(column[0] for column in same)


# ---------------------------------------------------------------------------------------------------------------------
# Tables of texts
# ---------------------------------------------------------------------------------------------------------------------


def _open_text(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def read_csv(files: list[Path], column_names: list[str] | None = None, delimiter: str | None = None) -> Any:
    """Tables of comma- or tab-separated values as one data set. All values are texts; empty ones are null.

    Args:
        column_names: names of the columns, where the files have no line of names.
        delimiter: what separates values; found in the first line where left out.

    Raises:
        ValueError: a file is empty, a line has more or fewer values than the first, or its quotes do not close; names
            file and line.
    """
    tables = [table for path in files for table in _csv_tables(path, column_names, delimiter)]
    for table, path in zip(tables, files, strict=False):
        if set(table.column_names) != set(tables[0].column_names):
            raise ValueError(f"{path}: its columns are not those of {files[0]}")
    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.concat_tables(tables, promote_options="default")))


def _csv_tables(path: Path, column_names: list[str] | None, delimiter: str | None) -> Iterator[Any]:
    with _open_text(path) as handle:
        first = handle.readline()
        handle.seek(0)
        if not first.strip():
            raise ValueError(f"{path} is empty")
        separator = delimiter or ("\t" if "\t" in first else ";" if ";" in first and "," not in first else ",")
        lines = csv.reader(handle, delimiter=separator, strict=True)
        names = list(column_names or [])
        rows: list[list[str]] = []
        made = False
        try:
            for line in lines:
                if not line:
                    continue
                if not names:
                    names = line
                    if len(set(names)) != len(names):
                        raise ValueError(f"{path}, line 1: two columns have one name: {', '.join(names)}")
                    continue
                if len(line) != len(names):
                    raise ValueError(
                        f"{path}, line {lines.line_num}: {len(line)} values, but there are {len(names)} columns "
                        f"({', '.join(names)}); is a quote or a separator missing?"
                    )
                rows.append(line)
                if len(rows) == _CSV_ROWS:
                    yield _text_table(names, rows)
                    rows, made = [], True
        except csv.Error as error:
            raise BadRow(f"{path}, line {lines.line_num}: {error}") from error
        if rows or not made:
            yield _text_table(names, rows)


def _text_table(names: list[str], rows: list[list[str]]) -> Any:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return pyarrow.table(
        {
            name: pyarrow.array([value or None for value in column], pyarrow.string())
            for name, column in zip(names, columns, strict=True)
        }
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is missing or damaged
# ---------------------------------------------------------------------------------------------------------------------


def missing(what: str, dataset: str, path: Path) -> ValueError:
    """The error of a file or folder that does not exist, with the nearest that does."""
    parent = path.parent
    if not parent.is_dir():
        return ValueError(f"no such {what}: {dataset}; the folder {parent} does not exist")
    return ValueError(
        f"no such {what}: {dataset}; {nearest_hint(path.name, [each.name for each in parent.glob('*')])}"
    )


def _is_damaged(path: Path) -> bool:
    """Whether a Parquet or JSON file is cut, damaged or empty. Of other forms only their reader can tell, which reads
    one file at a time."""
    ending = ending_of(path.name)
    try:
        if path.stat().st_size == 0:
            return True
        if ending == ".parquet":
            pyarrow.parquet.read_metadata(path)
        elif READERS.get(ending) == "json":
            with _open_text(path) as handle:
                for part in handle if ".jsonl" in ending else [handle.read()]:
                    json.loads(part)
    except (*UNREADABLE, json.JSONDecodeError, OSError):
        return True
    return False


def unreadable(dataset: str, files: list[Path], error: BaseException) -> ValueError:
    """The error of a data set that cannot be read, with its first cause and the damaged files by name."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, BadRow):
        cause = cause.__cause__
    if isinstance(cause, BadRow):
        return cause
    damaged = [str(path) for path in files if path.is_file() and _is_damaged(path)]
    named = ", ".join(damaged[:5]) or dataset
    return ValueError(f"{named} cannot be read: {type(cause).__name__}: {cause}")
