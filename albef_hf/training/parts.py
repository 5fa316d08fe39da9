"""The tensors of a checkpoint: whole in one file, or in the parts that the ranks of a sharded run wrote.

A sharded checkpoint of N ranks has for each rank, numbered from 1, `model-R-of-N.safetensors` and
`optimizer-R-of-N.safetensors` with the rank's rows, and `parts-R-of-N.json` with the shape of the whole tensors and
the first of these rows. What every rank has whole is in the files of the first.
"""

import json
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

KINDS = ("model", "optimizer")
PROGRESS = "progress.json"
FILES = (*(f"{kind}.safetensors" for kind in KINDS), PROGRESS)
_LAYOUT = re.compile(r"parts-\d{4,6}-of-(\d{4,6})\.json")


class Damaged(ValueError):
    """A checkpoint is not what was written. The message names the file."""


@dataclass
class Part:
    """A tensor that a process holds, and its place in the whole one.

    Attributes:
        tensor: the rows that this process holds.
        shape: of the whole tensor.
        start: the first of these rows in the whole tensor; None: this is the whole, which every rank has.
    """

    tensor: torch.Tensor
    shape: tuple[int, ...]
    start: int | None = None


def rank_files(rank: int, ranks: int) -> tuple[str, ...]:
    """The names of the files of a rank: of tensors, one for each of `KINDS`, and of the layout."""
    place = f"{rank + 1:04d}-of-{ranks:04d}"
    return (*(f"{kind}-{place}.safetensors" for kind in KINDS), f"parts-{place}.json")


def files_of(names: Iterable[str]) -> tuple[str, ...]:
    """The files that a checkpoint must have besides its manifest, given the names of some of them."""
    counts = [int(found[1]) for name in names if (found := _LAYOUT.fullmatch(name))]
    if not counts:
        return FILES
    return (*(name for rank in range(counts[0]) for name in rank_files(rank, counts[0])), PROGRESS)


class Saved:
    """The tensors of a checkpoint, of which only the rows that are asked for are read. A context.

    Args:
        folder: of the checkpoint. Its files must have been checked against the manifest.
        kind: one of `KINDS`.

    Attributes:
        shapes: of the whole tensors, by name.

    Raises:
        Damaged: a file cannot be read.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.stack = folder, ExitStack()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.places: dict[str, list[tuple[int, Any]]] = {}  # first row and file of each part, by ascending row
        layouts = [name for name in files_of(path.name for path in folder.iterdir()) if _LAYOUT.fullmatch(name)]
        for layout in layouts:
            known = json.loads((folder / layout).read_bytes())[kind]
            self._add(folder / f"{kind}{Path(layout).stem.removeprefix('parts')}.safetensors", known)
        if not layouts:
            self._add(folder / f"{kind}.safetensors", {})

    def _add(self, path: Path, layout: dict[str, tuple[list[int], int]]) -> None:
        try:
            file: Any = self.stack.enter_context(safe_open(path, "pt"))
        except SafetensorError as error:
            raise Damaged(f"{path} cannot be read: {error}") from error
        for name in file.keys():  # noqa: SIM118
            shape, start = layout.get(name) or (file.get_slice(name).get_shape(), 0)
            self.shapes[name] = tuple(shape)
            self.places[name] = sorted([*self.places.get(name, []), (start, file)], key=lambda place: place[0])

    def __enter__(self) -> "Saved":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def whole(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        shape = self.shapes[name]
        return self.rows(name, 0, shape[0]) if shape else self.places[name][0][1].get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor, without the latter."""
        pieces, reached = [], start
        for first, file in self.places[name]:
            piece = file.get_slice(name)
            end = min(stop, first + piece.get_shape()[0])
            if first <= reached < end:
                pieces.append(piece[reached - first : end - first])
                reached = end
        if reached != stop:
            raise Damaged(f"{self.folder} lacks rows {reached} to {stop} of {name}")
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0] if pieces else piece[0:0]

    def read(self, name: str, part: Part) -> torch.Tensor:
        """What a part held when it was saved."""
        if part.start is None:
            return self.whole(name)
        return self.rows(name, part.start, part.start + len(part.tensor))
