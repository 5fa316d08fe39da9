"""A data set from wherever it lives -> rows of `image` (undecoded), `captions` (list of strings), `group`."""

import difflib
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
    """Raises:
    ValueError: a key that is unknown, with the nearest known one, or one that is missing.
    """
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; {_nearest(str(key), known)}")
    for key in needed:
        if key not in entry:
            raise ValueError(f"{where}: {dict(entry)} has no {key!r}")


def _nearest(value: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(value, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(known)}"


def _missing(what: str, dataset: str, path: Path) -> ValueError:
    beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    return ValueError(f"no such {what}: {dataset}; {_nearest(path.name, beside)}")


def _check_metadata(folder: Path) -> None:
    """Rows of a `metadata.jsonl` that cannot be read or name no file: the library would leave them out in silence."""
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


def _load(dataset: str, split: str, revision: str | None, options: dict[str, Any], streaming: bool) -> Any:
    if dataset in BUILT_IN:
        corpus = BUILT_IN[dataset](**options)
        if isinstance(corpus, datasets.DatasetDict):
            corpus = corpus[split]
        return corpus.to_iterable_dataset() if streaming else corpus
    path = Path(dataset).expanduser()
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(path))
            if streaming:
                loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
                return loaded.to_iterable_dataset()
        else:
            _check_metadata(path)
            loaded = datasets.load_dataset("imagefolder", data_dir=str(path), streaming=streaming, **options)
    elif path.suffix in _FILES:
        if not path.is_file() and "*" not in path.name:
            raise _missing("file", dataset, path)
        files = {"train": str(path)}
        loaded = datasets.load_dataset(_FILES[path.suffix], data_files=files, streaming=streaming, **options)
        split = "train"
    elif path.is_absolute() or dataset.startswith("."):
        raise _missing("folder", dataset, path)
    else:
        loaded = datasets.load_dataset(dataset, revision=revision, streaming=streaming, **options)
    if isinstance(loaded, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        if split not in loaded:
            raise ValueError(f"{dataset} has no split {split!r}; {_nearest(split, list(loaded))}")
        loaded = loaded[split]
    return loaded


@dataclass
class CorpusStream:
    """A data set read from front to back: rows of `image` (undecoded), `captions`, `group`."""

    stream: datasets.IterableDataset
    dataset: str
    columns: dict[str, str]
    image_root: Path

    def rows(self, seed: int, rank: int = 0, world_size: int = 1) -> Iterator[dict[str, Any]]:
        """The rows of a rank. `seed` sets the order of the shards.

        Raises:
            ValueError: a column that is not there, or a file that cannot be read to its end.
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


def _check_columns(dataset: str, wanted: Iterable[str], present: list[str]) -> None:
    for column in wanted:
        if column not in present:
            raise ValueError(f"{dataset} has no column {column!r}; {_nearest(column, present)}")


def _is_damaged(path: Path) -> bool:
    try:
        if path.suffix == ".parquet":
            pyarrow.parquet.read_metadata(path)
        elif path.suffix == ".tar":
            with tarfile.open(path) as archive:
                archive.getmembers()
        else:
            text = path.read_text(encoding="utf-8")
            for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
                json.loads(part)
    except (*_UNREADABLE, json.JSONDecodeError, OSError):
        return True
    return False


def _unreadable(dataset: str, error: BaseException) -> ValueError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    pattern = Path(dataset).expanduser()
    damaged = [str(path) for path in sorted(pattern.parent.glob(pattern.name)) if path.is_file() and _is_damaged(path)]
    named = ", ".join(damaged[:5]) or dataset
    return ValueError(f"{named} cannot be read: {type(cause).__name__}: {cause}")


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
    """Load a data set and check its columns. Pictures stay undecoded.

    Args:
        dataset: `emoji`, `digits` or `fashion_mnist`, a Hub id, a folder of pictures with metadata, a saved Arrow
            folder, or a Parquet, JSON or tar file (or pattern). The publication's JSON lists have
            `image_column="image"`, `caption_column="caption"`.
        caption_column: None where captions are not wanted.
        label_column: classes, for evaluation only.
        image_root: folder that relative picture paths start from; that of the list where left out.

    Returns: a data set with columns `image`, `captions` (a string or a list of strings), `group`, and `label` where
        asked for; with `streaming` a `CorpusStream` of such rows.

    Raises:
        ValueError: a path, split or column that is not there (names it and the nearest one that is), or a file that
            is cut or damaged.
    """
    try:
        corpus = _load(dataset, split, revision, options or {}, streaming)
    except _UNREADABLE as error:
        raise _unreadable(dataset, error) from error
    root = Path(image_root) if image_root is not None else Path(dataset).expanduser().parent
    wanted = {image_column: "image"}
    if caption_column is not None:
        wanted[caption_column] = "captions"
    if label_column is not None:
        wanted[label_column] = "label"
    if dataset == "emoji":
        id_column = id_column or "group"
    if id_column is not None:
        wanted[id_column] = "group"
    if streaming:
        return CorpusStream(corpus, dataset, wanted, root)
    _check_columns(dataset, wanted, corpus.column_names)
    corpus = corpus.select_columns(list(wanted)).rename_columns({a: b for a, b in wanted.items() if a != b})
    if isinstance(corpus.features["image"], datasets.Image):
        corpus = corpus.cast_column("image", datasets.Image(decode=False))
    elif corpus.features["image"].dtype == "string":
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
    """Columns of a data set under other names, pictures undecoded.

    Args:
        dataset, split, revision, options: as in `load_corpus`.
        needed, optional: what to call each column -> its name in the data set; optional ones where they are there.

    Raises:
        ValueError: as `load_corpus`.
    """
    try:
        table = _load(dataset, split, revision, options or {}, False)
    except _UNREADABLE as error:
        raise _unreadable(dataset, error) from error
    _check_columns(dataset, needed.values(), table.column_names)
    columns = dict(needed) | {new: old for new, old in (optional or {}).items() if old in table.column_names}
    table = table.select_columns(list(columns.values()))
    table = table.rename_columns({old: new for new, old in columns.items() if old != new})
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return table


# What describes a data set, in a mixture too.
_NOT_IN_MIXTURES = ("streaming", "label_column")
CORPUS_KEYS = tuple(name for name in inspect.signature(load_corpus).parameters if name not in _NOT_IN_MIXTURES)
