"""An index of pictures on disk, and the data sets that an index is made of."""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..data.files import PICTURE_ENDINGS
from ..data.folders import HIDDEN, counted_by_ending, list_folder
from ..data.hashing import file_digest
from ..data.hints import nearest_hint

_FEATURES, _DESCRIPTION = "features.safetensors", "retriever.json"


def fingerprint(model: Any) -> str:
    """A hash of both encoders and their projections, without heads and momentum copies.

    Weights are rounded to bfloat16 first, so that a model loaded in float32 and in bfloat16 has the same hash.
    """
    digest = hashlib.sha256()
    for name, value in sorted(getattr(model, "albef", model).state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).to(torch.bfloat16).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_index(folder: Path, features: torch.Tensor, rows: torch.Tensor, description: dict[str, Any]) -> None:
    """Write features and rows as safetensors, and the description with their digest as JSON.

    The description is written last and renamed into place, so `read_index` recognizes an index that is not whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"features": features, "rows": rows}, folder / _FEATURES)
    scratch = folder / f".{_DESCRIPTION}.incomplete"
    described = {"format": 1, **description, "sha256": file_digest(folder / _FEATURES)}
    scratch.write_text(json.dumps(described, indent=1), encoding="utf-8")
    os.replace(scratch, folder / _DESCRIPTION)


def read_index(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The description, and the tensors `features` and `rows`, that `write_index` wrote.

    Raises:
        ValueError: a file is missing or damaged; names it.
    """
    for name in (_DESCRIPTION, _FEATURES):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: {folder} is not a saved index")
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        expected = description["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / _DESCRIPTION} is damaged: {error!r}") from error
    if file_digest(folder / _FEATURES) != expected:
        raise ValueError(f"{folder / _FEATURES} is damaged: its content is not what was saved")
    try:
        return description, load_file(folder / _FEATURES)
    except SafetensorError as error:
        raise ValueError(f"{folder / _FEATURES} cannot be read: {error}") from error


def files_dataset(folder: Path, files: list[str]) -> datasets.Dataset:
    """Picture files of a folder as a data set: columns `image` (the path) and `file` (the path within the folder)."""
    return datasets.Dataset.from_dict({"image": [str(folder / name) for name in files], "file": files})


def picture_dataset(images: str | Path | datasets.Dataset, column: str) -> datasets.Dataset:
    """A folder of pictures, or a data set, as a data set with undecoded pictures in the column `image`.

    Raises:
        ValueError: the folder or the column does not exist, or the folder has no pictures.
    """
    if not isinstance(images, datasets.Dataset):
        folder = Path(images)
        if not folder.is_dir():
            raise ValueError(f"no such folder: {folder}")
        listing = list_folder(folder)
        found = listing.pictures
        if not found:
            raise ValueError(f"{folder} has no pictures ({', '.join(PICTURE_ENDINGS)})")
        others = {ending: count for ending, count in listing.left_out.items() if ending != HIDDEN}
        if others:
            said = ", ".join(counted_by_ending(others))
            warnings.warn(f"{folder}: {len(found):,} pictures; not indexed: {said}", stacklevel=3)
        return files_dataset(folder, [str(path.relative_to(folder)) for path in found])
    if column not in images.column_names:
        raise ValueError(f"no column {column!r}; {nearest_hint(column, images.column_names)}")
    if column != "image":
        images = images.remove_columns([name for name in ("image",) if name in images.column_names])
        images = images.rename_column(column, "image")
    if isinstance(images.features["image"], datasets.Image):
        images = images.cast_column("image", datasets.Image(decode=False))
    return images


__all__ = ["files_dataset", "fingerprint", "picture_dataset", "read_index", "write_index"]
