"""What a run remembers of its data, to notice that it goes on with other data."""

import hashlib
import os
from pathlib import Path
from typing import Any

from .batches import TrainingData
from .corpora import ORDER
from .streaming import CorpusStream

ROWS = 16  # looked at in each data set
_IDS = ("group", "image_id")  # where none is given, made of the data set's name and the row or its picture


def _digest(value: Any, into: "hashlib._Hash") -> None:
    """Add a value of an undecoded row. A picture counts by its bytes, or by the name and size of its file."""
    if isinstance(value, str) and os.path.isabs(value) and os.path.isfile(value):
        value = {"path": value}
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            _digest(value["bytes"], into)
        elif isinstance(value.get("path"), str):
            path = Path(value["path"])
            _digest((path.name, path.stat().st_size if path.is_file() else -1), into)
        else:
            for key in sorted(value, key=str):
                _digest((key, value[key]), into)
    elif isinstance(value, bytes):
        into.update(value)
    elif isinstance(value, list | tuple):
        into.update(b"[")
        for each in value:
            _digest(each, into)
    else:
        into.update(f"{type(value).__name__} {value!r};".encode())


def _looked_at(part: Any) -> list[int]:
    """Rows spread over a data set, or over the first and last chunk of a stream, which may be archives."""
    if not isinstance(part, CorpusStream):
        return [number * (len(part) - 1) // (ROWS - 1) for number in range(ROWS)]
    half = ROWS // 2
    spread = [(start, int(part.shards.chunks[at])) for at, start in ((0, 0), (-1, len(part) - part.shards.chunks[-1]))]
    return [int(start) + number * (size - 1) // (half - 1) for start, size in spread for number in range(half)]


def data_fingerprint(data: TrainingData) -> dict[str, Any]:
    """The size of the data, their order, and a digest of rows spread over them. It does not depend on where the files
    lie.

    Returns: `rows`: samples in an epoch; `order`: how rows are ordered, where the data are streams with the rows that
        are shuffled together; `digest`: hexadecimal.
    """
    corpus = data.samples.corpus
    order = [ORDER, *(part.window for part in corpus.parts if isinstance(part, CorpusStream))]
    into = hashlib.sha256()
    for part, name, count in zip(corpus.parts, corpus.names, corpus.counts, strict=True):
        _digest((len(part), int(count), list(part.column_names)), into)
        if isinstance(part, CorpusStream):
            _digest(part.shards.chunks.tobytes(), into)
        for number in _looked_at(part):
            row = part[number]
            own = {
                key: str(value).removeprefix(f"{name}:").removeprefix("=") for key, value in row.items() if key in _IDS
            }
            _digest({**row, **own}, into)
    return {"rows": data.rows, "order": order, "digest": into.hexdigest()}
