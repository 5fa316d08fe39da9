"""Checkpoints of sharded runs: every rank writes its own files, then the main process makes a checkpoint of them.

Until the last rename there is only a temporary folder, whatever dies when. What is in the files: see `parts.py`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..gathering import rank, world_size
from . import checkpoints
from .checkpoints import begin, complete, contiguous, kept_before, naming_a_full_disk, optimizer_state, remove_older
from .parts import KINDS, Part, rank_files
from .sharding import Shards

T = TypeVar("T")


def together(work: Callable[[], T]) -> T:
    """Do `work` on every rank, and wait until all have done it.

    Raises:
        ValueError, OSError: of this rank's work as it is, and of another rank's with its number.
    """
    result, error = None, None
    try:
        result = work()
    except (ValueError, OSError) as raised:
        error = raised
    said: list[str | None] = [None] * world_size()
    dist.all_gather_object(said, None if error is None else str(error))
    if error is not None:
        raise error
    told = [f"rank {number}: {text}" for number, text in enumerate(said) if text is not None]
    if told:
        raise ValueError("; ".join(told))
    return result  # type: ignore[return-value]


def save_shards(
    folder: Path,
    shards: Shards,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Write `folder/step-XXXXXXXX`, as `save_checkpoint` does. Called on all ranks.

    A rank holds no more in memory than its parts, as the files take them.

    Args:
        progress, keep, keep_every: see `save_checkpoint`.

    Returns: the checkpoint's folder.

    Raises:
        ValueError: a tensor is not finite, or another rank failed; there is no new checkpoint.
        OSError: files cannot be written. The checkpoints before it are as they were.
    """
    target = folder / f"step-{progress['step']:08d}"
    tensors = {"model": shards.state(), "optimizer": moments_of(shards, optimizer)}
    parameters = {name for name, _ in shards.named_parameters()}
    together(lambda: _check(tensors, parameters))
    with naming_a_full_disk(target, kept_before(folder)):
        for work in phases(target, tensors, progress, rank(), world_size()):
            together(work)
        together(lambda: remove_older(folder, target, keep, keep_every) if rank() == 0 else None)
    return target


def _check(tensors: dict[str, dict[str, Part]], parameters: set[str]) -> None:
    model, moments = ({name: part.tensor for name, part in tensors[kind].items()} for kind in KINDS)
    buffers = {name: tensor for name, tensor in model.items() if name not in parameters}
    checkpoints.check_finite({name: model[name] for name in parameters}, moments, buffers)


def phases(
    target: Path, tensors: dict[str, dict[str, Part]], progress: dict[str, Any], number: int, ranks: int
) -> list[Callable[[], object]]:
    """What a rank does to write a checkpoint. Each phase begins when all ranks have ended the one before.

    Args:
        target: the checkpoint.
        tensors: the rank's parts, by kind and name.
    """
    scratch = target.with_name(f".{target.name}.incomplete")

    def write() -> None:
        if not scratch.is_dir():
            raise ValueError(f"{scratch} is not there: output_dir must be a folder that all ranks share")
        write_parts(scratch, tensors, number, ranks)

    first: Callable[[], object] = lambda: begin(target)  # noqa: E731
    last: Callable[[], object] = lambda: complete(scratch, target, progress)  # noqa: E731
    return [first, write, last] if number == 0 else [lambda: None, write, lambda: None]


def moments_of(shards: Shards, optimizer: torch.optim.Optimizer) -> dict[str, Part]:
    """The parts of the optimizer's state."""
    return {
        entry: shards.part(entry.rpartition("/")[0], tensor)
        for entry, tensor in optimizer_state(shards, optimizer).items()
    }


def write_parts(folder: Path, tensors: dict[str, dict[str, Part]], number: int, ranks: int) -> None:
    """Write the files of a rank, and wait until they are on the disk.

    Args:
        tensors: the rank's parts, by kind and name.
    """
    *files, layout = rank_files(number, ranks)
    places = {}
    for kind, file in zip(KINDS, files, strict=True):
        written = {name: part for name, part in tensors[kind].items() if _writes(part, number)}
        places[kind] = {name: (part.shape, part.start) for name, part in written.items() if part.start is not None}
        state = contiguous({name: part.tensor for name, part in written.items()})
        checkpoints.save_file(state, folder / file)
    (folder / layout).write_text(json.dumps(places), encoding="utf-8")
    for name in (*files, layout):
        checkpoints.sync(folder / name)


def _writes(part: Part, number: int) -> bool:
    """Whether a rank writes a part: it has rows, or is whole on all ranks, of which the first writes it."""
    return number == 0 if part.start is None else len(part.tensor) > 0
