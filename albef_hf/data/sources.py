"""A data set from wherever it lives -> rows of `image` (undecoded), `captions` (list of strings), `group`."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from .emoji import load_emoji_corpus

_FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".tar": "webdataset"}


def _nearest(value: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(value, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(known)}"


def _load(dataset: str, split: str, revision: str | None, options: dict[str, Any]) -> datasets.Dataset:
    if dataset == "emoji":
        return load_emoji_corpus(**options)
    path = Path(dataset).expanduser()
    if path.is_dir():
        loaded = (
            datasets.load_from_disk(str(path))
            if (path / "state.json").exists() or (path / "dataset_dict.json").exists()
            else datasets.load_dataset("imagefolder", data_dir=str(path), **options)
        )
    elif path.suffix in _FILES:
        if not path.is_file() and "*" not in path.name:
            beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
            raise ValueError(f"no such file: {dataset}; {_nearest(path.name, beside)}")
        loaded = datasets.load_dataset(_FILES[path.suffix], data_files={"train": str(path)}, **options)
        split = "train"
    elif path.is_absolute() or dataset.startswith("."):
        beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise ValueError(f"no such folder: {dataset}; {_nearest(path.name, beside)}")
    else:
        loaded = datasets.load_dataset(dataset, revision=revision, **options)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ValueError(f"{dataset} has no split {split!r}; {_nearest(split, list(loaded))}")
        loaded = loaded[split]
    return loaded


def load_corpus(
    dataset: str,
    *,
    split: str = "train",
    revision: str | None = None,
    image_column: str = "image",
    caption_column: str = "captions",
    id_column: str | None = None,
    image_root: str | None = None,
    options: dict[str, Any] | None = None,
) -> datasets.Dataset:
    """Load a data set and check its columns. Pictures stay undecoded.

    Args:
        dataset: `emoji`, a Hub id, a folder of pictures with metadata, a saved Arrow folder, or a Parquet, JSON or tar
            file (or pattern). The publication's JSON lists have `image_column="image"`, `caption_column="caption"`.

        image_root: folder that relative picture paths start from; that of the list where left out.

    Returns: columns `image`, `captions` (a string or a list of strings), `group`.

    Raises:
        ValueError: a path, split or column that is not there; names it and the nearest one that is.
    """
    corpus = _load(dataset, split, revision, options or {})
    wanted = {image_column: "image", caption_column: "captions"}
    if dataset == "emoji":
        id_column = id_column or "group"
    if id_column is not None:
        wanted[id_column] = "group"
    for column in wanted:
        if column not in corpus.column_names:
            raise ValueError(f"{dataset} has no column {column!r}; {_nearest(column, corpus.column_names)}")
    corpus = corpus.select_columns(list(wanted)).rename_columns({a: b for a, b in wanted.items() if a != b})
    if isinstance(corpus.features["image"], datasets.Image):
        corpus = corpus.cast_column("image", datasets.Image(decode=False))
    elif corpus.features["image"].dtype == "string":
        root = Path(image_root) if image_root is not None else Path(dataset).expanduser().parent
        corpus = corpus.map(
            lambda paths: {"image": [str(root / path) for path in paths]}, input_columns="image", batched=True
        )
    if id_column is None:
        corpus = corpus.add_column("group", [str(row) for row in range(len(corpus))])
    return corpus
