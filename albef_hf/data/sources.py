"""Loading of data sets from every kind of source, with their columns under our names and their pictures undecoded."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from .columns import check_captions, complete_pictures, fill_template, rename_columns
from .fields import split_field
from .opening import BUILT_IN, check_keys, open_dataset
from .streaming import CorpusStream, group_of


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
    caption_template: str | None = None,
    options: dict[str, Any] | None = None,
    streaming: bool = False,
) -> Any:
    """Load pictures with captions.

    Args:
        dataset: one of `BUILT_IN`, a Hub id, a folder of pictures, a folder that `datasets` saved, or a file of rows,
            a pattern of such files (`shards/{000..012}.tar`) or a folder of them: Parquet, Arrow, JSON, comma- or
            tab-separated values, tar or zip. The publication's JSON lists have `image_column="image"` and
            `caption_column="caption"`.
        split: of a folder, a saved folder or a data set of the Hub; "all" takes all of a folder.
        image_column, caption_column, id_column, label_column: a column, or a field in its values (`caption.en`). In
            archives, endings of files: `jpg;png`, `txt`, `json.caption`.
        caption_column: None where captions are not wanted.
        id_column: rows with the same value show the same thing. Where left out, these are rows with the same path, and
            a picture without a path is alone.
        label_column: classes, for evaluation only.
        image_root: folder that relative picture paths start from; where left out, the folder of the files.
        caption_template: makes captions of the names of classes, `a photo of a {}`; then `caption_column` may hold
            class numbers with names.
        options: further arguments of the loader.

    Returns: a data set with the columns `image` (undecoded), `captions` (a string or a list of strings), `group`, and
        `label` where asked for; with `streaming` a `CorpusStream` of such rows.

    Raises:
        ValueError: a path, split or column does not exist (names it and the nearest one that does), a file is cut or
            damaged, a column holds something else than pictures or texts, or no picture is where its path says.
    """
    if dataset == "emoji":  # its drawings of one emoji are a group
        id_column = id_column or "group"
    named = {"image": image_column, "captions": caption_column, "label": label_column, "group": id_column}
    columns = {ours: name for ours, name in named.items() if name is not None}
    if caption_template is not None and caption_template.count("{}") != 1:
        raise ValueError(f"caption_template needs {{}} once, where the class goes, not {caption_template!r}")
    opened = open_dataset(dataset, columns, split, revision, options or {}, streaming)
    root = Path(image_root).expanduser() if image_root is not None else opened.root
    if streaming:
        present = {name: name for name in columns} if opened.renamed else columns
        return CorpusStream(opened.rows, dataset, present, root, caption_template)
    corpus = opened.rows if opened.renamed else rename_columns(opened.rows, columns, dataset)
    if "captions" in columns and caption_template is not None:
        corpus = fill_template(corpus, dataset, caption_template)
    if "captions" in columns:
        check_captions(corpus, dataset, columns["captions"])
    keys = corpus["image"] if corpus.features["image"] == datasets.Value("string") else range(len(corpus))
    corpus = complete_pictures(corpus, dataset, image_column, root)
    given = [None] * len(corpus) if id_column is None else corpus["group"]
    groups = [group_of(dataset, value, key) for value, key in zip(given, keys, strict=True)]
    return corpus.remove_columns(["group"] if id_column is not None else []).add_column("group", groups)


def load_columns(
    dataset: str,
    needed: Mapping[str, str],
    optional: Mapping[str, str] | None = None,
    *,
    split: str = "train",
    revision: str | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[datasets.Dataset, Path]:
    """Load some columns of a data set under our names.

    Args:
        dataset, split, revision, options: as in `load_corpus`.
        needed: our name of a column -> its name in the data set.
        optional: the same, of columns that may be missing.

    Returns: the data set, and the folder that relative picture paths start from.

    Raises:
        ValueError: as `load_corpus`.
    """
    every = {**(optional or {}), **needed}
    opened = open_dataset(dataset, every, split, revision, options or {}, optional=optional or ())
    if opened.renamed:
        return opened.rows, opened.root
    present = opened.rows.column_names
    columns = {ours: name for ours, name in every.items() if ours in needed or split_field(name, present)}
    return rename_columns(opened.rows, columns, dataset), opened.root


# The keys that describe a data set, in the arguments and in `mixture`, are the parameters of `load_corpus` but these.
_NOT_IN_MIXTURES = ("streaming", "label_column")
CORPUS_KEYS = tuple(name for name in inspect.signature(load_corpus).parameters if name not in _NOT_IN_MIXTURES)

__all__ = ["BUILT_IN", "CORPUS_KEYS", "CorpusStream", "check_keys", "load_columns", "load_corpus"]
