"""Folders of pictures: every picture is a row, whatever its name is, or an error or a printed line says why not."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from .files import PICTURE_ENDINGS, READERS, ending_of, read_csv
from .hints import nearest_hint

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
EVERYTHING = "all"
HIDDEN = "hidden"
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass
class Listing:
    """The files below a folder, in the order of their paths; hidden ones are only counted."""

    pictures: list[Path] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def list_folder(folder: Path) -> Listing:
    """Sort the files below a folder by what they are. Symbolic links are followed, each folder once."""
    found, seen = Listing(), set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(names):
            path, ending = Path(parent, name), ending_of(name)
            if _is_hidden(name):
                found.left_out[HIDDEN] += 1
            elif name in METADATA:
                found.metadata.append(path)
            elif ending in PICTURE_ENDINGS:
                found.pictures.append(path)
            elif ending in READERS:
                found.tables.append(path)
            else:
                found.left_out[ending or "without an ending"] += 1
    arrays = [path for path in found.pictures if path.suffix.lower() == ".npy"]
    if len(arrays) < len(found.pictures):  # arrays beside pictures are something else, such as features
        found.pictures = [path for path in found.pictures if path.suffix.lower() != ".npy"]
        found.left_out[".npy"] += len(arrays)
        found.left_out = +found.left_out
    return found


def counted_by_ending(left_out: Mapping[str, int]) -> list[str]:
    """Files that are left out in words: "3 files (.svg)", by their ending."""
    return [f"{count:,} files ({ending})" for ending, count in sorted(left_out.items())]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def split_kind(name: str) -> str | None:
    """The split that a folder's name means: "train", "validation" or "test"; None where it means none."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


# ---------------------------------------------------------------------------------------------------------------------
# Which files belong to the split
# ---------------------------------------------------------------------------------------------------------------------


def choose_split(folder: Path, paths: Sequence[Path], split: str) -> tuple[list[Path], Path, list[Path]]:
    """The files of a split.

    A folder has splits if the user names one of its folders, or if all its folders are named as splits, such as
    `train/` and `val/`. Both count also where they are inside its only folder. Names of files, and words inside names,
    mean nothing. A folder without splits is all "train". `EVERYTHING` takes every file of any folder.

    Returns: the files of the split, the folder that they are in, and the files that are left out.

    Raises:
        ValueError: the folder has no such split, or it is not clear whether its folders are splits.
    """
    top, groups = folder, _groups(folder, paths)
    while len(groups) == 1 and not {"", split} & set(groups) and split_kind(*groups) is None:
        top = top / next(iter(groups))
        groups = _groups(top, paths)
    if split == EVERYTHING:
        return list(paths), folder, []
    kinds = {name: split_kind(name) for name in groups}
    numbered = {name for name in groups if name and split_kind(name.rstrip("0123456789_-."))}
    named = split in groups and split not in SPLITS
    if not named and None in kinds.values() and (any(kinds.values()) or len(numbered) > 1):
        splits = ", ".join(f"{name}/" for name in groups if kinds[name] or name in numbered)
        rest = [f"{name}/" if name else "pictures beside them" for name in groups if name not in numbered]
        rest_said = f", but not {', '.join(rest[:5])}" if rest else ""
        raise ValueError(
            f"{top}: {splits} look like splits{rest_said}. Name one of its folders as the split, or take all "
            f"{len(paths):,} files by split: {EVERYTHING}"
        )
    if named or any(kinds.values()):
        wanted = [split] if split in groups else [name for name in groups if kinds[name] == split_kind(split)]
        if not wanted:
            raise ValueError(f"{folder} has no split {split!r}; {nearest_hint(split, groups)}")
        chosen = [path for name in wanted for path in groups[name]]
        left_out = [path for name, group in groups.items() if name not in wanted for path in group]
        return chosen, top / wanted[0] if len(wanted) == 1 else top, left_out
    if split != "train":
        raise _without_splits(folder, split)
    return list(paths), folder, []


def _without_splits(folder: Path, split: str) -> ValueError:
    return ValueError(f"{folder} has no split {split!r}: it has none at all; split: {EVERYTHING} takes every file")


def _groups(top: Path, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the folder in `top` that they are in; under "" those that lie in `top` itself."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        inside = path.relative_to(top).parts
        groups.setdefault(inside[0] if len(inside) > 1 else "", []).append(path)
    return groups


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


def load_folder(folder: Path, listing: Listing, split: str) -> tuple[datasets.Dataset, str]:
    """The pictures of a split, with their metadata, or with `label` by the folder that each is in.

    Returns: a data set with absolute paths in `image` (and under the names that metadata gives other files), and a
        line that says how many rows there are and what was left out.

    Raises:
        ValueError: as `choose_split`; a row of metadata is damaged, or names no file or one that does not exist.
    """
    chosen, top, others = choose_split(folder, listing.pictures, split)
    unlisted: list[Path] = []
    if listing.metadata:
        table, used = _metadata_rows(listing.metadata, {str(path) for path in others})
        unlisted = [path for path in chosen if str(path) not in used]
        if not len(table):
            raise ValueError(f"{folder}: metadata lists no picture of the split {split!r}")
    else:
        table = _labeled(chosen, top)
    notes = []
    if others:
        notes.append(f"{len(others):,} pictures of other splits")
    if unlisted:
        notes.append(f"{len(unlisted):,} pictures that no metadata lists, such as {unlisted[0]}")
    if listing.tables:
        notes.append(f"{len(listing.tables):,} files of rows, such as {listing.tables[0].name}")
    notes += counted_by_ending(listing.left_out)
    left = f"; left out: {', '.join(notes)}" if notes else ""
    return table, f"{folder}: {len(table):,} rows of split {split!r}{left}"


def _labeled(pictures: Sequence[Path], top: Path) -> datasets.Dataset:
    columns: dict[str, Any] = {"image": [str(path) for path in pictures]}
    features: dict[str, Any] = {"image": datasets.Value("string")}
    parents = [path.relative_to(top).parent for path in pictures]
    depths = {len(parent.parts) for parent in parents}
    if len(depths) == 1 and depths != {0}:
        unique = sorted(set(parents))
        short = len({parent.name for parent in unique}) == len(unique)
        names = sorted(parent.name if short else parent.as_posix() for parent in unique)
        numbers = {name: number for number, name in enumerate(names)}
        columns["label"] = [numbers[parent.name if short else parent.as_posix()] for parent in parents]
        features["label"] = datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _metadata_rows(files: Sequence[Path], others: set[str]) -> tuple[datasets.Dataset, set[str]]:
    """The rows of metadata, and the pictures that they name. others: pictures of other splits, whose rows are left."""
    folders = [path.parent for path in files]
    for parent in folders:
        if folders.count(parent) > 1:
            raise ValueError(f"{parent} has several files of metadata: keep one of {', '.join(METADATA)}")
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    used: set[str] = set()
    for path in files:
        for place, row in _read_metadata(path):
            made, named = _with_paths(path, place, row)
            if not others.intersection(named):
                used.update(named)
                rows.append(made)
                places.append(f"{path}, {place}")
    return _table(rows, places), used


def _read_metadata(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file of metadata, each with its place for errors."""
    if path.suffix == ".jsonl":
        with path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number}: no file_name")
                yield f"line {number}", row
        return
    table = read_csv([path]) if path.suffix == ".csv" else pyarrow.parquet.read_table(path).to_pylist()
    for number, row in enumerate(table):
        yield f"row {number}", dict(row)


def _with_paths(path: Path, place: str, row: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A row with absolute paths, and these paths: `file_name` becomes `image`, `file_names` `images`, `left_file_name`
    `left`."""
    made: dict[str, Any] = {}
    paths: list[str] = []
    for name, value in row.items():
        stem = name.removesuffix("s")
        if stem != "file_name" and not stem.endswith("_file_name") or value is None:
            made[name] = value
            continue
        values = value if isinstance(value, list) else [value]
        for each in values:
            if not isinstance(each, str) or not (path.parent / each).is_file():
                raise ValueError(f"{path}, {place}: no such file {each!r}")
        absolute = [str(Path(os.path.normpath(path.parent / each))) for each in values]
        paths += absolute
        ours = stem.removesuffix("file_name").rstrip("_") or ("images" if name.endswith("s") else "image")
        made[ours] = absolute if isinstance(value, list) else absolute[0]
    if not paths:
        raise ValueError(f"{path}, {place}: no file_name; {nearest_hint('file_name', row)}")
    return made, paths


def _table(rows: Sequence[dict[str, Any]], places: Sequence[str]) -> datasets.Dataset:
    """A table of rows; a column of texts and lists of texts becomes one of lists.

    Raises:
        ValueError: values of a column have several types; names the first row that differs.
    """
    columns = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {str, list}:
            values = [[value] if isinstance(value, str) else value for value in values]
        try:
            columns[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, TypeError, OverflowError) as error:
            first = next(type(value) for value in values if value is not None)
            other = next(n for n, value in enumerate(values) if value is not None and type(value) is not first)
            raise ValueError(
                f"{places[other]}: {name} is of type {type(values[other]).__name__}, before it {first.__name__}"
            ) from error
    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.table(columns)))


# ---------------------------------------------------------------------------------------------------------------------
# Folders of tables
# ---------------------------------------------------------------------------------------------------------------------


def choose_tables(folder: Path, tables: Sequence[Path], split: str) -> list[Path]:
    """The files of rows of a split. A file belongs to a split if its name begins with the split's, as in
    `train-00000-of-00008.parquet`, or if it is in a folder of that name. Where no file names a split, all are "train".

    Raises:
        ValueError: there is no such split, or only some of the files name a split; names them.
    """
    if split == EVERYTHING:
        return list(tables)
    kinds = {path: _table_split(path.relative_to(folder)) for path in tables}
    if not any(kinds.values()):
        if split != "train":
            raise _without_splits(folder, split)
        return list(tables)
    unnamed = [path for path, kind in kinds.items() if kind is None]
    if unnamed:
        raise ValueError(
            f"{folder}: {unnamed[0].name} names no split, but others of its {len(tables):,} files do; name files by a "
            f"pattern, or take all by split: {EVERYTHING}"
        )
    chosen = [path for path, kind in kinds.items() if kind == (split_kind(split) or split)]
    if not chosen:
        raise ValueError(
            f"{folder} has no split {split!r}; {nearest_hint(split, sorted({str(k) for k in kinds.values()}))}"
        )
    return chosen


def _table_split(path: Path) -> str | None:
    begins = re.match(r"[a-z]+", path.name.lower())
    own = split_kind(begins[0]) if begins and not path.name[begins.end() :][:1].isalpha() else None
    return own or next((kind for part in path.parts[:-1] if (kind := split_kind(part))), None)
