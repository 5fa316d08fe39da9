"""Columns under our names, with pictures undecoded and fields taken out of mappings."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.compute

from .fields import check_keys_exist, check_texts, field_of, is_mixed, is_text, split_field, texts_of, type_name
from .hints import nearest_hint
from .labels import are_numbers, class_names

CHECKED = 100  # values of a column that are looked at before training
_PICTURE_KEYS = {"bytes", "path"}


def check_columns(dataset: str, wanted: Iterable[str], present: Iterable[str]) -> None:
    """Check that columns exist.

    Raises:
        ValueError: one does not; names the nearest that does.
    """
    known = list(present)
    for column in wanted:
        if split_field(column, known) is None:
            raise missing_column(dataset, column, known)


def missing_column(dataset: str, column: str, present: Iterable[str]) -> ValueError:
    """The error of a column that does not exist, with the nearest that does."""
    return ValueError(f"{dataset} has no column {column!r}; {nearest_hint(column, present)}")


def rename_columns(table: datasets.Dataset, columns: Mapping[str, str], dataset: str) -> datasets.Dataset:
    """The wanted columns under our names. Pictures stay bytes or paths; captions in fields become lists of texts.

    Args:
        columns: our name -> a column, or a field in its values, as in `caption.en`. Two of our names may have one
            column.
        dataset: its name, for errors.

    Raises:
        ValueError: a column or a field does not exist, or captions are no texts; names the nearest, or the row.
    """
    check_columns(dataset, columns.values(), table.column_names)
    found = {ours: split_field(name, table.column_names) for ours, name in columns.items()}
    needed = list(dict.fromkeys(column for column, _ in found.values()))  # type: ignore[misc]
    table = undecoded(table.select_columns(needed))
    whole: dict[str, str] = {}  # column -> our name
    parts = []
    for ours, (column, keys) in found.items():  # type: ignore[misc]
        if keys:
            check_keys_exist(dataset, columns[ours], table.features[column], keys)
        if not keys and column not in whole:
            whole[column] = ours
        else:
            parts.append(_field_column(table, column, keys, ours, dataset))
    kept = table.select_columns(list(whole)).rename_columns({a: b for a, b in whole.items() if a != b})
    return datasets.concatenate_datasets([kept, *parts], axis=1) if parts else kept


def _field_column(
    table: datasets.Dataset, column: str, keys: tuple[str, ...], ours: str, dataset: str
) -> datasets.Dataset:
    """What the values of a column hold under keys, as a data set of one column."""

    def take(values: list[Any], rows: list[int]) -> dict[str, list[Any]]:
        held = [field_of(value, keys) for value in values]
        if ours != "captions":
            return {ours: held}
        for row, value in zip(rows, held, strict=True):
            check_texts(dataset, ".".join([column, *keys]), None, [value], first=row)
        return {ours: [texts_of(value) for value in held]}

    features = datasets.Features({ours: datasets.List(datasets.Value("string"))}) if ours == "captions" else None
    made = table.select_columns([column]).map(
        take, input_columns=column, with_indices=True, batched=True, remove_columns=[column], features=features
    )
    if len(made) and all(value is None or value == [] for value in made[ours]):
        raise ValueError(f"{dataset} has no field {'.'.join([column, *keys])!r} in any row")
    return made


def undecoded(table: datasets.Dataset) -> datasets.Dataset:
    """The table with its pictures, and its lists of pictures, left as bytes, or as paths where there are no bytes; and
    with texts of one type. Plain bytes, and mappings of `bytes` and `path`, are taken for pictures."""
    for name, feature in table.features.items():
        inner = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else feature
        if _holds_pictures(inner):
            picture = datasets.Image(decode=False)
            table = table.cast_column(name, picture if inner is feature else datasets.List(picture))
            if inner is feature:
                table = _paths_alone(table, name)
        elif feature == datasets.Value("large_string"):  # as some readers have it
            table = table.cast_column(name, datasets.Value("string"))
    return table


def _holds_pictures(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return set(feature) == _PICTURE_KEYS
    return isinstance(feature, datasets.Image) or feature in (datasets.Value("binary"), datasets.Value("large_binary"))


def _paths_alone(table: datasets.Dataset, name: str) -> datasets.Dataset:
    """A column of pictures without bytes becomes a column of their paths."""
    column = table.with_format("arrow")[:][name] if table._indices is not None else table.data.column(name)
    if not len(column) or pyarrow.compute.struct_field(column, "bytes").null_count < len(column):
        return table
    paths = pyarrow.compute.struct_field(column, "path")
    if paths.null_count == len(column):
        return table
    return table.remove_columns(name).add_column(name, paths.to_pylist())


def complete_pictures(table: datasets.Dataset, dataset: str, column: str, root: Path) -> datasets.Dataset:
    """The column `image` checked, and its relative paths completed.

    Args:
        column: its name in the data set, for errors.
        root: folder that relative paths start from.

    Raises:
        ValueError: it holds no pictures, or none of the first pictures exists; names what it holds.
    """
    feature = table.features["image"]
    if isinstance(feature, datasets.Image):
        return table
    if not is_text(feature):
        raise ValueError(f"{dataset}, column {column!r} holds {type_name(feature)}, not pictures or their paths")
    first = [path for path in table[:CHECKED]["image"] if path]
    if first and not any((root / path).is_file() for path in first):
        if first[0].startswith(("http://", "https://")):
            raise ValueError(f"{dataset}, column {column!r} holds addresses such as {first[0]}; download them first")
        raise ValueError(
            f"{dataset}, column {column!r}: none of the first {len(first)} pictures exists; the first is "
            f"{root / first[0]}. Set image_root to the folder that their paths start from"
        )
    return table.map(
        lambda paths: {"image": [path and str(root / path) for path in paths]}, input_columns="image", batched=True
    )


def captions_from_classes(values: Sequence[Any], feature: Any, template: str) -> list[list[str]]:
    """Names of classes, or numbers of a `ClassLabel` -> a caption each. `_` in a name becomes a space."""
    lists = [value if isinstance(value, list | tuple) else [value] for value in values]
    return [
        [template.replace("{}", name.replace("_", " ")) for name in class_names(each, feature) if name is not None]
        for each in lists
    ]


def fill_template(table: datasets.Dataset, dataset: str, template: str) -> datasets.Dataset:
    """A table whose `captions` are names of classes -> captions made of them.

    Raises:
        ValueError: the classes are numbers without names.
    """
    feature = table.features["captions"]
    if are_numbers(feature):
        raise ValueError(f"{dataset}: caption_template needs names of classes, but its column holds {feature.dtype}")
    captions = captions_from_classes(table["captions"], feature, template)
    kind = datasets.List(datasets.Value("string"))
    return table.remove_columns("captions").add_column("captions", captions, feature=kind)


def check_captions(table: datasets.Dataset, dataset: str, column: str) -> None:
    """Check that the column `captions` holds texts. column: its name in the data set.

    Raises:
        ValueError: it does not; names row and type.
    """
    feature = table.features["captions"]
    if isinstance(feature, datasets.Value) and feature.dtype == "null":
        raise ValueError(f"{dataset}, column {column!r} is empty in every row")
    count = len(table) if is_mixed(feature) else min(CHECKED, len(table))
    first = table[:count]["captions"]
    check_texts(dataset, column, feature, first)
    if len(table) and not any(first) and not any(table["captions"]):
        raise ValueError(f"{dataset}, column {column!r} is empty in every row")
