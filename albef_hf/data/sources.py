"""Loading of data sets from every kind of source, with their columns under our names and their pictures undecoded."""

import inspect
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetGenerationError

from .builtin.emoji import load_emoji_corpus
from .builtin.emoji_tasks import (
    load_emoji_entailment,
    load_emoji_grounding,
    load_emoji_questions,
    load_emoji_reasoning,
    load_emoji_retrieval,
)
from .builtin.small_images import load_digits, load_fashion_mnist
from .hints import nearest_hint

# File endings, and the loader of `datasets` that reads them.
_FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".tar": "webdataset"}

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

_UNREADABLE = (DatasetGenerationError, pyarrow.ArrowException, tarfile.TarError, EOFError, UnicodeDecodeError)


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


# ---------------------------------------------------------------------------------------------------------------------
# One kind of source after the other
# ---------------------------------------------------------------------------------------------------------------------


def _load(dataset: str, split: str, revision: str | None, options: dict[str, Any], streaming: bool = False) -> Any:
    """One split of a data set, as `datasets` has it.

    Raises:
        ValueError: it does not exist, or a file of it is cut or damaged.
    """
    try:
        return _open(dataset, split, revision, options, streaming)
    except _UNREADABLE as error:
        raise _unreadable(dataset, error) from error


def _open(dataset: str, split: str, revision: str | None, options: dict[str, Any], streaming: bool) -> Any:
    """`_load`, with the errors of the readers. A data set is built in, a folder, a file, or on the Hub."""
    path = Path(dataset).expanduser()
    if dataset in BUILT_IN:
        loaded = BUILT_IN[dataset](**options)
    elif _is_saved(path):
        loaded = datasets.load_from_disk(str(path))
    elif path.is_dir():
        _check_metadata(path)
        loaded = datasets.load_dataset("imagefolder", data_dir=str(path), streaming=streaming, **options)
    elif path.suffix in _FILES:
        if not path.is_file() and "*" not in path.name:
            raise _missing("file", dataset, path)
        split = "train"  # files have no splits, and `datasets` calls all of them so
        files = {split: str(path)}
        loaded = datasets.load_dataset(_FILES[path.suffix], data_files=files, streaming=streaming, **options)
    elif path.is_absolute() or dataset.startswith("."):
        raise _missing("folder", dataset, path)
    else:
        loaded = datasets.load_dataset(dataset, revision=revision, streaming=streaming, **options)
    if isinstance(loaded, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        if split not in loaded:
            raise ValueError(f"{dataset} has no split {split!r}; {nearest_hint(split, loaded)}")
        loaded = loaded[split]
    return loaded.to_iterable_dataset() if streaming and isinstance(loaded, datasets.Dataset) else loaded


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _check_metadata(folder: Path) -> None:
    """Check every `metadata.jsonl` of a folder of pictures. `datasets` would leave out a wrong row in silence.

    Raises:
        ValueError: a row is not JSON, or names no file or a file that does not exist.
    """
    for path in sorted(folder.rglob("metadata.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            if isinstance(row, dict) and isinstance(row.get("file_name"), str):
                if not (path.parent / row["file_name"]).is_file():
                    raise ValueError(f"{path}, line {number}: no such file {row['file_name']!r}")
            elif row is not None and not (isinstance(row, dict) and "file_names" in row):
                raise ValueError(f"{path}, line {number}: no file_name")


# ---------------------------------------------------------------------------------------------------------------------
# What is missing or damaged
# ---------------------------------------------------------------------------------------------------------------------


def _missing(what: str, dataset: str, path: Path) -> ValueError:
    beside = [each.name for each in path.parent.glob("*")] if path.parent.is_dir() else []
    return ValueError(f"no such {what}: {dataset}; {nearest_hint(path.name, beside)}")


def _check_columns(dataset: str, wanted: Iterable[str], present: list[str]) -> None:
    for column in wanted:
        if column not in present:
            raise ValueError(f"{dataset} has no column {column!r}; {nearest_hint(column, present)}")


def _is_damaged(path: Path) -> bool:
    """Whether a Parquet, tar or JSON file is cut or damaged. Of other forms only their reader can tell."""
    try:
        if path.suffix == ".parquet":
            pyarrow.parquet.read_metadata(path)
        elif path.suffix == ".tar":
            with tarfile.open(path) as archive:
                archive.getmembers()
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text(encoding="utf-8")
            for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
                json.loads(part)
    except (*_UNREADABLE, json.JSONDecodeError, OSError):
        return True
    return False


def _unreadable(dataset: str, error: BaseException) -> ValueError:
    """The error of a data set that cannot be read, with its first cause and the damaged files by name."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    pattern = Path(dataset).expanduser()
    damaged = [str(path) for path in sorted(pattern.parent.glob(pattern.name)) if path.is_file() and _is_damaged(path)]
    named = ", ".join(damaged[:5]) or dataset
    return ValueError(f"{named} cannot be read: {type(cause).__name__}: {cause}")


# ---------------------------------------------------------------------------------------------------------------------
# Rows under our names
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class CorpusStream:
    """A data set that is read from front to back: rows of `image` (undecoded), `captions` and `group`.

    Args:
        dataset: its name, for errors and groups.
        columns: column of the data set -> our name for it.
        image_root: folder that relative picture paths start from.
    """

    stream: datasets.IterableDataset
    dataset: str
    columns: dict[str, str]
    image_root: Path

    def rows(self, seed: int, rank: int = 0, world_size: int = 1) -> Iterator[dict[str, Any]]:
        """The rows of a rank. seed: sets the order of the shards.

        Raises:
            ValueError: a column is missing, or a file cannot be read to its end.
        """
        stream = self.stream.decode(False).shuffle(seed=seed, buffer_size=1)
        if world_size > 1:
            stream = split_dataset_by_node(stream, rank, world_size)
        try:
            for number, row in enumerate(stream):
                _check_columns(self.dataset, self.columns, list(row))
                made = {new: row[old] for old, new in self.columns.items()}
                if isinstance(made["image"], str):
                    made["image"] = str(self.image_root / made["image"])
                yield {"group": f"{self.dataset}:{rank}:{number}", **made}
        except _UNREADABLE as error:
            raise _unreadable(self.dataset, error) from error


def _undecoded(table: datasets.Dataset) -> datasets.Dataset:
    """The table with its pictures, and its lists of pictures, left as bytes or paths, and with texts of one type."""
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
        elif feature == datasets.Value("large_string"):  # as some readers have it
            table = table.cast_column(name, datasets.Value("string"))
    return table


def load_corpus(
    dataset: str,
    *,
    split: str = "train",
    revision: str | None = None,
    image_column: str = "image",
    caption_column: str | None = "captions",
    id_column: str | None = None,
    label_column: str | None = None,
    image_root: str | None = None,
    options: dict[str, Any] | None = None,
    streaming: bool = False,
) -> Any:
    """Load pictures with captions.

    Args:
        dataset: one of `BUILT_IN`, a Hub id, a folder of pictures with `metadata.jsonl`, a folder that `datasets`
            saved, or a Parquet, JSON or tar file (or a pattern of files). The publication's JSON lists have
            `image_column="image"` and `caption_column="caption"`.
        caption_column: None where captions are not wanted.
        id_column: rows with the same value show the same thing; each row is its own group where left out.
        label_column: classes, for evaluation only.
        image_root: folder that relative picture paths start from; the folder of `dataset` where left out.
        options: further arguments of the loader.

    Returns: a data set with the columns `image` (undecoded), `captions` (a string or a list of strings), `group`, and
        `label` where asked for; with `streaming` a `CorpusStream` of such rows.

    Raises:
        ValueError: a path, split or column does not exist (names it and the nearest one that does), or a file is cut
            or damaged.
    """
    corpus = _load(dataset, split, revision, options or {}, streaming)
    root = Path(image_root) if image_root is not None else Path(dataset).expanduser().parent
    wanted = {image_column: "image"}  # column of the data set -> our name for it
    if caption_column is not None:
        wanted[caption_column] = "captions"
    if label_column is not None:
        wanted[label_column] = "label"
    if dataset == "emoji":  # its drawings of one emoji are a group
        id_column = id_column or "group"
    if id_column is not None:
        wanted[id_column] = "group"
    if streaming:
        return CorpusStream(corpus, dataset, wanted, root)
    _check_columns(dataset, wanted, corpus.column_names)
    corpus = corpus.select_columns(list(wanted)).rename_columns({a: b for a, b in wanted.items() if a != b})
    corpus = _undecoded(corpus)
    if corpus.features["image"].dtype == "string":
        corpus = corpus.map(
            lambda paths: {"image": [str(root / path) for path in paths]}, input_columns="image", batched=True
        )
    if id_column is None:
        corpus = corpus.add_column("group", [f"{dataset}:{row}" for row in range(len(corpus))])
    return corpus


def load_columns(
    dataset: str,
    needed: Mapping[str, str],
    optional: Mapping[str, str] | None = None,
    *,
    split: str = "train",
    revision: str | None = None,
    options: dict[str, Any] | None = None,
) -> datasets.Dataset:
    """Load some columns of a data set under our names.

    Args:
        dataset, split, revision, options: as in `load_corpus`.
        needed: our name of a column -> its name in the data set.
        optional: the same, of columns that may be missing.

    Raises:
        ValueError: as `load_corpus`.
    """
    table = _load(dataset, split, revision, options or {})
    _check_columns(dataset, needed.values(), table.column_names)
    columns = dict(needed) | {new: old for new, old in (optional or {}).items() if old in table.column_names}
    table = table.select_columns(list(columns.values()))
    table = table.rename_columns({old: new for new, old in columns.items() if old != new})
    return _undecoded(table)


# The keys that describe a data set, in the arguments and in `mixture`, are the parameters of `load_corpus` but these.
_NOT_IN_MIXTURES = ("streaming", "label_column")
CORPUS_KEYS = tuple(name for name in inspect.signature(load_corpus).parameters if name not in _NOT_IN_MIXTURES)
