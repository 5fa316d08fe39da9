"""Pictures as bytes and in a table, the same rows in every form of data, and the first batches of training data."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), (number * 10 % 256, 50, 90)).save(stream, "PNG")
    return stream.getvalue()


def table_of(count: int, first: int = 0) -> datasets.Dataset:
    rows = range(first, first + count)
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": picture(i), "path": None} for i in rows], "text": [f"thing number {i}" for i in rows]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )


def parquet_of(path: Path, count: int, first: int = 0) -> str:
    table_of(count, first).to_parquet(path)
    return str(path)


def first(data, count, start=0):
    return list(itertools.islice(data.batches(start), count))


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def array_file(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def pages(count: int) -> bytes:
    frames = [Image.new("L", (4, 4), 10 * page) for page in range(count)]
    return encode(frames[0], "TIFF", save_all=True, append_images=frames[1:])


# -- the same six rows in every form ----------------------------------------------------------------------------------


def folder_source(folder: Path) -> dict:
    for number in range(6):
        (folder / f"{number}.png").write_bytes(picture(number))
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"drawing {n}"}) for n in range(6)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return {"dataset": str(folder), "caption_column": "text"}


def tar_source(folder: Path) -> dict:
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for number in range(6):
            for name, data in ((f"{number}.png", picture(number)), (f"{number}.txt", f"drawing {number}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
    return {"dataset": str(folder / "shard.tar"), "image_column": "png", "caption_column": "txt"}


def parquet_source(folder: Path) -> dict:
    return {"dataset": parquet_of(folder / "table.parquet", 6), "caption_column": "text"}


def arrow_source(folder: Path) -> dict:
    table_of(6).rename_column("image", "picture").save_to_disk(folder / "saved")
    return {"dataset": str(folder / "saved"), "image_column": "picture", "caption_column": "text"}


# A form of data: writes its files into a folder and gives the arguments that load them.
SOURCES = {"imagefolder": folder_source, "tar": tar_source, "parquet": parquet_source, "arrow": arrow_source}
