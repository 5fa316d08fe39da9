"""Labels by the names of their classes. A number means a class only together with the names of its own data set."""

from collections.abc import Sequence
from typing import Any

import datasets


def class_names(values: Sequence[Any], feature: Any = None, names: Sequence[str] | None = None) -> list[str | None]:
    """The name of each label's class.

    Args:
        values: labels as a data set has them: texts, booleans, numbers, or nothing.
        feature: the type of their column. A `ClassLabel` names its numbers.
        names: the name of each number, where the column does not say it.

    Returns: a name for each label; None where there is none (null, an empty text, a negative number). Numbers without
        names are named by themselves: "3".

    Raises:
        ValueError: two numbers have one name, a number has no name, or a value is no label; names its row.
    """
    known = list(names) if names is not None else feature.names if isinstance(feature, datasets.ClassLabel) else None
    twice = sorted({name for name in names or () if list(names or ()).count(name) > 1})
    if twice:
        raise ValueError(f"label_names: {', '.join(map(repr, twice))} stands there twice; each class needs its own")
    return [_class_name(value, known, row) for row, value in enumerate(values)]


def _class_name(value: Any, names: Sequence[str] | None, row: int) -> str | None:
    if value is None or isinstance(value, str) and not value.strip():
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and names is not None and value.strip().isdigit() and value.strip() not in names:
        value = int(value)
    if isinstance(value, bool | str):
        return str(value).strip()
    if not isinstance(value, int):
        raise ValueError(f"row {row}: {type(value).__name__} {value!r} is no label")
    if value < 0:
        return None
    if names is None:
        return str(value)
    if value >= len(names):
        raise ValueError(f"row {row}: label {value}, but there are {len(names)} class names: {', '.join(names)}")
    return names[value]


def are_numbers(feature: Any) -> bool:
    """Whether a column holds class numbers without names."""
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float"))


def ordered_classes(labels: Sequence[str | None], feature: Any = None) -> list[str]:
    """The classes of labels, in the order of a `ClassLabel`, else by number, else by name."""
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    found = {label for label in labels if label is not None}
    return sorted(found, key=lambda name: (0, int(name), name) if name.isdigit() else (1, 0, name))
