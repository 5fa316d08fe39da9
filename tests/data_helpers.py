"""Pictures as bytes and in a table, and the first batches of training data."""

import io
import itertools
from pathlib import Path

import datasets
from PIL import Image


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), (number * 10 % 256, 50, 90)).save(stream, "PNG")
    return stream.getvalue()


def parquet_of(path: Path, count: int, first: int = 0) -> str:
    rows = range(first, first + count)
    datasets.Dataset.from_dict(
        {"image": [{"bytes": picture(i), "path": None} for i in rows], "text": [f"thing number {i}" for i in rows]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    ).to_parquet(path)
    return str(path)


def first(data, count, start=0):
    return list(itertools.islice(data.batches(start), count))
