"""Checkpoints without pickle: tensors as safetensors, the rest as JSON. A checkpoint is complete or absent.

The names in a folder of checkpoints, N being the step in eight digits:

- `step-N`: a checkpoint;
- `step-N.damaged`: one that failed its check and was set aside, never removed by us;
- `.step-N.incomplete`, `.step-N.removed`: what a killed process left behind, removed at the next start.

Anything else is not ours and is never touched.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..data.hashing import file_digest
from .parts import FILES as FILES
from .parts import Damaged as Damaged
from .parts import Part, Saved, files_of

MANIFEST = "manifest.json"


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def contiguous(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that safetensors can write: a tensor with two names (tied weights) is copied for the second."""
    written: dict[str, torch.Tensor] = {}
    addresses = set()
    for name, tensor in state.items():
        tensor = tensor.detach().contiguous()
        written[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    return written


def optimizer_state(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimizer of a model's parameters: `parameter/key` -> tensor."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def check_finite(
    parameters: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]
) -> None:
    """Raises: ValueError: a parameter or moment is not finite, or a buffer is not a number; names it."""
    wrong = [name for name, tensor in {**parameters, **moments}.items() if not torch.isfinite(tensor).all()]
    wrong += [name for name, buffer in buffers.items() if torch.isnan(buffer).any()]
    if wrong:
        raise ValueError(
            f"not saved: {', '.join(wrong[:5])} {'is' if len(wrong) == 1 else 'are'} not finite; the checkpoints "
            "before this one are good. Lower the learning rate and go on from them with --resume"
        )


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by ascending step, whatever their state."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def clean_up(folder: Path) -> None:
    """Remove what a killed process left in a folder of checkpoints."""
    for path in folder.glob(".step-*"):
        if re.fullmatch(r"\.step-\d{8,}\.(incomplete|removed)", path.name) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint: rename it first, so that a killed process leaves no half of one under its name."""
    if checkpoint.is_symlink():  # its place is the user's choice
        return
    gone = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(checkpoint, gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def naming_a_full_disk(path: Path, kept: str) -> Iterator[None]:
    """Turn "no space left" into an error that names the path, what is still good, and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = re.search(r"\(os error (\d+)\)", str(error))  # how safetensors says it
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            number, f"the disk is full: {path} could not be written; {kept}. Make room and go on with --resume auto"
        ) from error


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Write `folder/step-XXXXXXXX`: a temporary folder is written, synced and renamed, then older ones are removed.

    Args:
        progress: what else resuming needs, as JSON; `step` names the folder.
        keep: how many of the newest checkpoints to keep; at least this one.
        keep_every: keep every checkpoint whose step is a multiple of this, too; 0: none.

    Returns: the checkpoint's folder.

    Raises:
        ValueError: a tensor is not finite; nothing is written.
        OSError: it cannot be written. The checkpoints before it are as they were.
    """
    target = folder / f"step-{progress['step']:08d}"
    moments = optimizer_state(model, optimizer)
    check_finite(dict(model.named_parameters()), moments, dict(model.named_buffers()))
    with naming_a_full_disk(target, kept_before(folder)):
        scratch = begin(target)
        save_file(contiguous(model.state_dict()), scratch / "model.safetensors")
        save_file(contiguous(moments), scratch / "optimizer.safetensors")
        complete(scratch, target, progress)
    remove_older(folder, target, keep, keep_every)
    return target


def kept_before(folder: Path) -> str:
    """Which checkpoint a save that fails leaves, in words."""
    before = saved_checkpoints(folder)
    return f"{before[-1]} is complete" if before else "there is no checkpoint yet"


def begin(target: Path) -> Path:
    """Make the temporary folder that will become a checkpoint."""
    scratch = target.with_name(f".{target.name}.incomplete")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch


def complete(scratch: Path, target: Path, progress: dict[str, Any]) -> None:
    """Write what is not tensors, wait until everything is on the disk, and give the folder its name."""
    (scratch / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    write_manifest(scratch)
    for path in [*scratch.iterdir(), scratch]:
        sync(path)
    if target.exists():
        _remove(target)
    os.rename(scratch, target)
    sync(target.parent)


def remove_older(folder: Path, newest: Path, keep: int, keep_every: int) -> None:
    """Remove checkpoints that need not be kept: see `save_checkpoint`. newest: the one just written."""
    step = step_of(newest)
    others = [path for path in saved_checkpoints(folder) if path != newest]
    beyond = [path for path in others if step_of(path) > step]
    older = [path for path in others if path not in beyond and not (keep_every and step_of(path) % keep_every == 0)]
    for old in [*beyond, *older[: max(0, len(older) + 1 - max(keep, 1))]]:
        _remove(old)


def write_manifest(folder: Path) -> None:
    """Write the size and the digest of each file of a checkpoint beside them."""
    names = files_of(path.name for path in folder.iterdir())
    entries = {name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)} for name in names}
    (folder / MANIFEST).write_text(json.dumps(entries), encoding="utf-8")


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest.

    Returns: the `progress` it was saved with.

    Raises:
        Damaged: a file is missing, cut or changed, or the manifest is not one; names it.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise Damaged(f"{manifest} is missing: not a complete checkpoint")
    try:
        entries = json.loads(manifest.read_bytes())
        names = files_of(entries)
        expected = {name: (int(entries[name]["bytes"]), str(entries[name]["sha256"])) for name in names}
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise Damaged(f"{manifest} is damaged: it does not list the size and digest of every file") from error
    for name, (size, digest) in expected.items():
        file = path / name
        if not file.is_file():
            raise Damaged(f"{file} is missing")
        if file.stat().st_size != size or file_digest(file) != digest:
            raise Damaged(f"{file} is damaged: it is not what was written")
    progress = json.loads((path / "progress.json").read_bytes())
    if progress["step"] != step_of(path):
        raise Damaged(f"{path} is not what its name says: it was saved at step {progress['step']}")
    return progress


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that passes `check_checkpoint`; None: there is none. It changes nothing."""
    for path in reversed(saved_checkpoints(folder)):
        try:
            check_checkpoint(path)
            return path
        except Damaged:
            continue
    return None


def newest_valid(folder: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest checkpoint that passes `check_checkpoint`. Newer ones are renamed to `step-N.damaged`.

    Returns: the checkpoint, or None if there is none; the `progress` it was saved with; and for each that was renamed,
        what is wrong with it.
    """
    reasons: list[str] = []
    for path in reversed(saved_checkpoints(folder)):
        try:
            return path, check_checkpoint(path), reasons
        except Damaged as error:
            aside, number = path.with_name(f"{path.name}.damaged"), 1
            while aside.exists():
                number += 1
                aside = path.with_name(f"{path.name}.damaged-{number}")
            os.rename(path, aside)
            reasons.append(f"{error}; it is kept as {aside.name}")
    return None, {}, reasons


def load_checkpoint(
    path: Path, model: Any, optimizer: torch.optim.Optimizer, progress: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Load a checkpoint into a model and its optimizer, and return the `progress` it was saved with.

    Args:
        path: of a checkpoint that any number of ranks wrote, sharded or not.
        model: a module, or the `Shards` of one.
        progress: what `check_checkpoint` returned, if it was just called; otherwise it is called here.

    Raises:
        Damaged: a file is missing, truncated or changed; names it.
        ValueError: it belongs to another model.
    """
    progress = progress or check_checkpoint(path)
    whole = isinstance(model, nn.Module)
    current = {n: Part(t, tuple(t.shape)) for n, t in model.state_dict().items()} if whole else model.state()
    with Saved(path, "model") as saved, torch.no_grad():
        wrong = sorted(
            name
            for name in current.keys() | saved.shapes.keys()
            if name not in current or name not in saved.shapes or current[name].shape != saved.shapes[name]
        )
        if wrong:
            raise ValueError(f"{path} belongs to another model: {', '.join(wrong[:5])} differ")
        for name, part in current.items():
            part.tensor.copy_(saved.read(name, part))
    optimizer.state.clear()
    parameters = dict(model.named_parameters())
    with Saved(path, "optimizer") as saved:
        for entry, shape in saved.shapes.items():
            name, _, key = entry.rpartition("/")
            parameter = parameters.get(name)
            if parameter is None:
                continue
            part = Part(parameter, shape) if whole or not shape else model.part(name, parameter)
            value = saved.read(entry, part)
            stays = key == "step" and parameter.device.type == "cpu"
            optimizer.state[parameter][key] = value if stays else value.to(parameter.device)
    return progress
