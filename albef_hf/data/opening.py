"""Opening of data sets of every kind: built in, folders, files, and the Hub."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ..gathering import rank
from .archives import ArchiveShards, load_archives
from .builtin.emoji import load_emoji_corpus
from .builtin.emoji_tasks import (
    load_emoji_entailment,
    load_emoji_grounding,
    load_emoji_questions,
    load_emoji_reasoning,
    load_emoji_retrieval,
)
from .builtin.small_images import load_digits, load_fashion_mnist
from .files import (
    PICTURE_ENDINGS,
    READERS,
    UNREADABLE,
    ending_of,
    find_files,
    is_pattern,
    missing,
    read_csv,
    reader_of,
    root_of,
    unreadable,
)
from .folders import EVERYTHING, choose_tables, counted_by_ending, list_folder, load_folder
from .hints import nearest_hint
from .shards import ParquetShards, Shards, TableShards

BUILT_IN = {
    "emoji": load_emoji_corpus,
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
    "emoji_retrieval": load_emoji_retrieval,
    "emoji_questions": load_emoji_questions,
    "emoji_reasoning": load_emoji_reasoning,
    "emoji_entailment": load_emoji_entailment,
    "emoji_grounding": load_emoji_grounding,
}
# Endings that no data set of the Hub has in its name.
_OTHER_FILES = (".txt", ".h5", ".hdf5", ".npz", ".lmdb", ".mdb", ".pt", ".pkl", ".rar", ".7z", ".gz", ".xml", ".yaml")


def check_keys(entry: Mapping[str, Any], known: Sequence[str], where: str, needed: Iterable[str] = ()) -> None:
    """Check the keys of an entry that a user wrote. where: what the entry is, for the error.

    Raises:
        ValueError: a key is unknown (names the nearest known one), or a needed one is missing.
    """
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; {nearest_hint(str(key), known)}")
    for key in needed:
        if key not in entry:
            raise ValueError(f"{where}: {dict(entry)} has no {key!r}")


@dataclass
class Opened:
    """A data set as it was found.

    Args:
        rows: a `datasets.Dataset`, or `Shards` where it is streamed.
        root: the folder that relative picture paths start from.
        renamed: whether its columns have our names.
    """

    rows: Any
    root: Path
    renamed: bool = False


def open_dataset(
    dataset: str,
    columns: Mapping[str, str],
    split: str,
    revision: str | None,
    options: dict[str, Any],
    streaming: bool = False,
    optional: Iterable[str] = (),
) -> Opened:
    """Open one split of a data set.

    Args:
        columns: our name -> its name there, all that will be used.
        optional: those of our names that may be missing.

    Raises:
        ValueError: it does not exist, or a file of it is cut or damaged.
    """
    path = Path(dataset).expanduser().absolute()
    files: list[Path] = []

    def found(rows: Any, root: Path) -> Opened:
        return Opened(TableShards(dataset, rows, columns) if streaming else rows, root)

    try:
        if dataset in BUILT_IN:
            loader: Any = BUILT_IN[dataset]
            check_keys(options, list(inspect.signature(loader).parameters), f"dataset_options of {dataset}")
            loaded: Any = loader(**options)
        elif (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(path))
        elif path.is_dir() and not _is_configured(path):
            listing = list_folder(path)
            if listing.pictures:
                check_keys(options, [], f"options of the folder {dataset}")
                loaded, said = load_folder(path, listing, split)
                _say(said)
                return found(loaded, path)
            if not listing.tables:
                raise ValueError(_nothing_in(path, listing.left_out))
            files = choose_tables(path, listing.tables, split)
            return _open_files(dataset, files, path, columns, options, streaming, optional)
        elif is_pattern(dataset) or path.is_file() or (_is_path(dataset) and not path.is_dir()):
            if not is_pattern(dataset) and not path.suffix and not path.is_file():
                raise missing("folder", dataset, path)
            files = find_files(dataset)
            return _open_files(dataset, files, root_of(files), columns, options, streaming, optional)
        elif streaming:
            return Opened(_stream_hub(dataset, revision, split, columns, options), path.parent)
        else:
            loaded = _open_hub(dataset, revision, options)
    except UNREADABLE as error:
        raise unreadable(dataset, files, error) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split == EVERYTHING:
            return found(datasets.concatenate_datasets(list(loaded.values())), path.parent)
        if split not in loaded:
            raise ValueError(f"{dataset} has no split {split!r}; {nearest_hint(split, loaded)}")
        loaded = loaded[split]
    return found(loaded, path.parent)


def _say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)


def _is_configured(folder: Path) -> bool:
    """Whether a folder is a repository of the Hub that says itself which files belong to which split."""
    page = folder / "README.md"
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    return text.startswith("---") and "\nconfigs:" in text.split("\n---", 1)[0]


def _nothing_in(folder: Path, left_out: Mapping[str, int]) -> str:
    there = ", ".join(counted_by_ending(left_out)) or "no files"
    return (
        f"{folder} holds neither pictures nor files of rows; there are {there}. Pictures end in "
        f"{', '.join(PICTURE_ENDINGS)}, files of rows in {', '.join(READERS)}"
    )


def _is_path(dataset: str) -> bool:
    """Whether a name that does not exist was meant as a path, and not as an id of the Hub, which is `owner/name`."""
    parts = Path(dataset).parts
    return (
        dataset.startswith(("/", ".", "~"))
        or "\\" in dataset
        or dataset.count("/") != 1
        or dataset.endswith("/")
        or ending_of(dataset) in (*READERS, *PICTURE_ENDINGS, *_OTHER_FILES)
        or Path(parts[0]).is_dir()
    )


def _open_files(
    dataset: str,
    files: list[Path],
    root: Path,
    columns: Mapping[str, str],
    options: dict[str, Any],
    streaming: bool,
    optional: Iterable[str],
) -> Opened:
    reader = reader_of(files)
    for path in files:
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty")
    try:
        if reader == "archive":
            check_keys(options, [], f"options of {files[0]}")
            rows = ArchiveShards(files, columns) if streaming else load_archives(files, columns, optional)
            return Opened(rows, root, renamed=True)
        if streaming and reader == "parquet":
            check_keys(options, [], f"options of {files[0]} when streaming")
            return Opened(ParquetShards(dataset, [str(path) for path in files], columns), root)
        if reader == "csv":
            check_keys(options, ["column_names", "delimiter"], f"options of {files[0]}")
            loaded = read_csv(files, **options)
        elif streaming and reader == "arrow":
            check_keys(options, [], f"options of {files[0]} when streaming")
            loaded = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in files])
        else:
            names = {"train": [str(path) for path in files]}  # files have no splits; `datasets` calls all of them so
            loaded = datasets.load_dataset(reader, data_files=names, split="train", **options)
    except UNREADABLE as error:
        raise unreadable(str(files[0]), files, error) from error
    except (StopIteration, ValueError) as error:  # what `datasets` raises where there are no rows
        if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
            raise ValueError(f"{files[0]} has no rows") from error
        raise
    return Opened(TableShards(dataset, loaded, columns) if streaming else loaded, root)


def _stream_hub(
    dataset: str, revision: str | None, split: str, columns: Mapping[str, str], options: dict[str, Any]
) -> Shards:
    """A data set of the Hub that is read there.

    Raises:
        ValueError: it is not made of Parquet files, the only ones that say how many rows they have and where.
    """
    builder = _open_hub(dataset, revision, options, datasets.load_dataset_builder)
    files = builder.config.data_files or {}
    if not type(builder).__module__.endswith("packaged_modules.parquet.parquet"):
        raise ValueError(
            f"{dataset} cannot be streamed from the Hub: it is not made of Parquet files, and no others say how many "
            "rows they have. Leave streaming out, or download its files and name their folder"
        )
    if split not in files:
        raise ValueError(f"{dataset} has no split {split!r}; {nearest_hint(split, files)}")
    return ParquetShards(dataset, [str(file) for file in files[split]], columns)


def _open_hub(
    dataset: str, revision: str | None, options: dict[str, Any], opened_by: Any = datasets.load_dataset
) -> Any:
    _say(f"{dataset}: no such folder or file here; looking for a data set of that name on the Hub")
    try:
        return opened_by(dataset, revision=revision, **options)
    except (ConnectionError, FileNotFoundError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{dataset} is no folder or file here, and could not be loaded from the Hub: {reason}"
        ) from error
