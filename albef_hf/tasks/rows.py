"""Rows of the downstream tasks: complete picture paths, and COCO and Flickr30K from Karpathy's lists."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

KARPATHY_LISTS = ("dataset_coco.json", "dataset_flickr30k.json")


def holds_paths(feature: Any) -> bool:
    """Whether a column holds paths of pictures, or numbers that become paths with a suffix."""
    return isinstance(feature, datasets.Value) and (feature.dtype == "string" or feature.dtype.startswith("int"))


def complete_paths(rows: datasets.Dataset, columns: Iterable[str], root: Path, suffix: str = "") -> datasets.Dataset:
    """Put `root` before every picture path and `suffix` after it. Columns that hold pictures themselves stay.

    Args:
        columns: columns with a picture, or with a list of pictures; those that `rows` lacks are skipped.
    """

    def complete(value: Any) -> Any:
        return value if value is None else str(root / f"{value}{suffix}")

    for name in columns:
        if name not in rows.column_names:
            continue
        feature = rows.features[name]
        if holds_paths(feature):
            values = [complete(value) for value in rows[name]]
        elif isinstance(feature, datasets.List) and holds_paths(feature.feature):
            values = [None if several is None else [complete(value) for value in several] for several in rows[name]]
        else:
            continue
        rows = rows.remove_columns(name).add_column(name, values)
    return rows


def load_karpathy(path: str | Path, split: str, image_root: str | Path | None = None) -> datasets.Dataset:
    """A split of COCO or Flickr30K from Karpathy's `dataset_coco.json` or `dataset_flickr30k.json`.

    Args:
        split: `train`, `val` or `test`; `train` includes COCO's `restval`, as is usual.
        image_root: folder of the pictures; that of the list where left out.

    Returns: columns `image` (path), `captions` (list), `image_id`.

    Raises:
        ValueError: the file is no such list, the split is unknown, or an image has no caption (names its row).
    """
    path = Path(path)
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not one of Karpathy's lists: {type(error).__name__}: {error}") from error
    splits = {image.get("split") for image in images}
    wanted = {"train", "restval"} if split == "train" else {split}
    if not wanted & splits:
        raise ValueError(f"{path} has no split {split!r}; there are: {', '.join(sorted(map(str, splits)))}")
    root = path.parent if image_root is None else Path(image_root)
    rows: dict[str, list] = {"image": [], "captions": [], "image_id": []}
    for number, image in enumerate(images):
        if image["split"] not in wanted:
            continue
        captions = [sentence["raw"].strip() for sentence in image.get("sentences", ()) if sentence["raw"].strip()]
        if not captions:
            raise ValueError(f"{path}, images[{number}] ({image.get('filename')}): no caption")
        rows["image"].append(str(root / image.get("filepath", "") / image["filename"]))
        rows["captions"].append(captions)
        rows["image_id"].append(str(image.get("cocoid", image["filename"])))
    return datasets.Dataset.from_dict(rows)
