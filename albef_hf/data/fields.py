"""Fields inside values, and the texts in them: a column may hold a text, a list, a mapping, or JSON of these."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets

from .hints import nearest_hint
from .images import BadImage

MAX_CHARACTERS = 100_000  # of a caption


class NotText(ValueError):
    """A value that holds no text. `reason` says what it holds instead."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_json(value: str) -> Any:
    """The list or mapping that a text is the JSON of; the text itself where it is no such JSON."""
    text = value.strip()
    if (text[:1], text[-1:]) in (("[", "]"), ("{", "}")):
        try:
            return json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            return value
    return value


def split_field(name: str, present: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
    """The column that a name means, and the keys inside its values: `caption.en` -> ("caption", ("en",)).

    Args:
        present: the columns. One whose name has a dot goes before a field.

    Returns: None where there is no such column.
    """
    columns = set(present)
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        column = ".".join(parts[:count])
        if column in columns:
            return column, tuple(parts[count:])
    return None


def field_of(value: Any, keys: Sequence[str]) -> Any:
    """What a value holds under keys, one inside the other. A list gives what each of its entries holds.

    Returns: None where a key is missing.
    """
    for number, key in enumerate(keys):
        if isinstance(value, str):
            value = parse_json(value)
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list | tuple):
            return [field_of(each, keys[number:]) for each in value]
        else:
            return None
    return value


def texts_of(value: Any) -> list[str]:
    """The texts in a value: a text, a list of texts, or the JSON of such a list. Nothing, and null, have none.

    Raises:
        NotText: it holds anything else.
    """
    if value is None:
        return []
    if isinstance(value, str):
        parsed = parse_json(value)
        return [value] if isinstance(parsed, str) else texts_of(parsed)
    if isinstance(value, list | tuple):
        for each in value:
            if not (each is None or isinstance(each, str)):
                raise NotText(f"a list of {_kind(each)}")
        return [each for each in value if each is not None]
    raise NotText(_kind(value))


def usable_captions(value: Any, processor: Any) -> list[str]:
    """The captions in a value that have words.

    Args:
        processor: cleans captions, see `AlbefProcessor.clean_caption`.

    Raises:
        BadImage: there are none; says what there is instead.
    """
    try:
        texts = texts_of(value)
    except NotText as problem:
        raise BadImage(f"captions: {problem.reason}") from problem
    longest = max(map(len, texts), default=0)
    if longest > MAX_CHARACTERS:
        raise BadImage(f"captions: one of {longest:,} characters, more than {MAX_CHARACTERS:,}")
    usable = [text for text in texts if processor.clean_caption(text)]
    if not usable:
        raise BadImage("captions: no caption with words in it")
    return usable


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, list(value)[:10]))}, of which none is named"
    if isinstance(value, list | tuple):
        return "lists inside lists"
    return f"{type(value).__name__} {str(value)[:80]!r}"


def keys_of(feature: Any) -> list[str]:
    """The keys of a column of mappings, or of lists of mappings; none for other columns."""
    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return list(feature) if isinstance(feature, Mapping) else []


def type_name(feature: Any) -> str:
    """A type of a column, for errors."""
    if isinstance(feature, datasets.ClassLabel):
        return "class numbers"
    if isinstance(feature, datasets.Value):
        return feature.dtype
    if isinstance(feature, datasets.List | datasets.LargeList):
        return f"lists of {type_name(feature.feature)}"
    if isinstance(feature, Mapping):
        return "mappings"
    return type(feature).__name__


def is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def is_mixed(feature: Any) -> bool:
    """Whether a column has values of several types (a type of `datasets` 5), so that only these tell what it holds."""
    return type(feature).__name__ == "Json"


def check_texts(dataset: str, column: str, feature: Any, values: Iterable[Any], first: int = 0) -> None:
    """Check that a column holds texts.

    Args:
        feature: its type.
        values: some of its values, or all where the type does not tell.
        first: the number of their first row.

    Raises:
        ValueError: it holds something else; names the data set, the column, the type and what to do.
    """
    where = f"{dataset}, column {column!r}"
    keys = keys_of(feature)
    if keys:
        raise ValueError(f"{where} holds mappings with the keys {', '.join(keys)}; name one: {column}.{keys[0]}")
    inner = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else feature
    if not (is_text(inner) or is_mixed(inner) or feature is None):
        hint = "; caption_template makes captions of classes" if isinstance(inner, datasets.ClassLabel) else ""
        raise ValueError(f"{where} holds {type_name(feature)}, not texts{hint}")
    for row, value in enumerate(values, start=first):
        try:
            texts_of(value)
        except NotText as problem:
            raise ValueError(f"{where}, row {row}: {problem.reason}; texts are needed") from problem


def check_keys_exist(dataset: str, name: str, feature: Any, keys: Sequence[str]) -> None:
    """Check the first of the keys that a field name gives, where the type of the column tells its keys.

    Raises:
        ValueError: there is no such key; names the nearest.
    """
    known = keys_of(feature)
    if keys and known and keys[0] not in known:
        raise ValueError(f"{dataset} has no field {name!r}; {nearest_hint(keys[0], known)}")
