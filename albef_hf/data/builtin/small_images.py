"""Small labeled sets of pictures from packages, for trials of image-only methods on a laptop."""

import functools
import gzip
import importlib.util
import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
FASHION_NAMES = ["top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]


def _png(array: np.ndarray) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def _dataset(pictures: list[np.ndarray], labels: list[int], names: list[str]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": [_png(p) for p in pictures], "label": labels}, features=features)


def _place(digit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An 8 x 8 digit enlarged to 20 .. 29 pixels, somewhere on 32 x 32 pixels: bright on a dark color, with noise."""
    side = int(generator.integers(20, 30))
    large = Image.fromarray((digit * (255 / 16)).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    mask = np.zeros((32, 32, 1))
    top, left = generator.integers(0, 33 - side, size=2)
    mask[top : top + side, left : left + side, 0] = np.asarray(large) / 255
    front, back = generator.uniform(0.5, 1.0, size=3), generator.uniform(0.0, 0.4, size=3)
    picture = mask * front + (1 - mask) * back + generator.normal(0, 0.05, size=(32, 32, 3))
    return (picture.clip(0, 1) * 255).astype(np.uint8)


@functools.cache
def load_digits(placements: int = 2, seed: int = 0) -> datasets.DatasetDict:
    """Colored, displaced digits: scikit-learn's 1,797 handwritten 8 x 8 digits, each placed on 32 x 32 pixels.

    Color and position say nothing about the class, so raw pixels are poor features. The splits are `train` (1,300
    digits) and `test` (the other 497), with each digit `placements` times.

    Returns: columns `image` and `label` (0 .. 9).

    Raises:
        ImportError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError('the digits come from scikit-learn: pip install "albef-hf[images]"')
    from sklearn.datasets import load_digits as load

    digits = load()
    order = np.random.default_rng(seed).permutation(len(digits.images))
    parts = {}
    for part, rows in (("train", order[:1300]), ("test", order[1300:])):
        generator = np.random.default_rng([seed, len(rows)])
        repeated = np.repeat(rows, placements)
        pictures = [_place(digits.images[row], generator) for row in repeated]
        labels = [int(digits.target[row]) for row in repeated]
        parts[part] = _dataset(pictures, labels, [str(number) for number in range(10)])
    return datasets.DatasetDict(parts)


def _idx(path: Path) -> np.ndarray:
    """The array of a file in MNIST's IDX format: after four bytes the shape, then the values."""
    with gzip.open(path) as handle:
        data = handle.read()
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


@functools.cache
def load_fashion_mnist(folder: str = FASHION_MNIST, train_rows: int = 0) -> datasets.DatasetDict:
    """Fashion-MNIST (MIT): 60,000 and 10,000 gray photographs of products, 28 x 28 pixels, in ten classes.

    Args:
        folder: has the four `.gz` files of the publication; left out, where Debian's dataset-fashion-mnist puts them.
        train_rows: use only this many training pictures, the first ones; 0: all.

    Returns: splits `train` and `test` with columns `image` and `label`.

    Raises:
        ValueError: a file is missing.
    """
    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        files = [Path(folder) / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        for file in files:
            if not file.is_file():
                raise ValueError(f"no such file: {file}; apt-get install dataset-fashion-mnist, or set `folder`")
        rows = train_rows or None if part == "train" else None
        images, labels = _idx(files[0])[:rows], _idx(files[1])[:rows]
        parts[part] = _dataset(list(images), labels.tolist(), FASHION_NAMES)
    return datasets.DatasetDict(parts)
