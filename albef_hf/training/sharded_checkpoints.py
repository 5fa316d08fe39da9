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
    main, scratch = rank() == 0, target.with_name(f".{target.name}.incomplete")
    tensors = {"model": shards.state(), "optimizer": moments_of(shards, optimizer)}

    def prepare() -> None:
        own = {kind: {name: part.tensor for name, part in parts.items()} for kind, parts in tensors.items()}
        parameters = dict(shards.named_parameters())
        buffers = {name: tensor for name, tensor in own["model"].items() if name not in parameters}
        checkpoints.check_finite(parameters, own["optimizer"], buffers)
        if main:
            begin(target)

    def write() -> None:
        if not scratch.is_dir():
            raise ValueError(f"{scratch} is not there: output_dir must be a folder that all ranks share")
        write_parts(scratch, tensors, rank(), world_size())

    def finish() -> None:
        if main:
            complete(scratch, target, progress)
            remove_older(folder, target, keep, keep_every)

    with naming_a_full_disk(target, kept_before(folder)):
        for work in (prepare, write, finish):
            together(work)
    return target


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
