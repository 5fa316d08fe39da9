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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..data.hashing import file_digest

MANIFEST = "manifest.json"
FILES = ("model.safetensors", "optimizer.safetensors", "progress.json")


class Damaged(ValueError):
    """A checkpoint is not what was written. The message names the file."""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that safetensors can write: a tensor with two names (tied weights) is copied for the second."""
    written: dict[str, torch.Tensor] = {}
    addresses = set()
    for name, tensor in state.items():
        tensor = tensor.detach().contiguous()
        written[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    return written


def _named_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def _check_finite(model: nn.Module, moments: dict[str, torch.Tensor]) -> None:
    """Raises: ValueError: a parameter or moment is not finite, or a buffer is not a number; names it."""
    finite = {**dict(model.named_parameters()), **moments}
    wrong = [name for name, tensor in finite.items() if not torch.isfinite(tensor).all()]
    wrong += [name for name, buffer in model.named_buffers() if torch.isnan(buffer).any()]
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
    moments = _named_optimizer_state(model, optimizer)
    _check_finite(model, moments)
    before = saved_checkpoints(folder)
    kept = f"{before[-1]} is complete" if before else "there is no checkpoint yet"
    with naming_a_full_disk(target, kept):
        _write(folder, target, model, moments, progress)
    others = [path for path in before if path != target]
    beyond = [path for path in others if step_of(path) > progress["step"]]
    older = [path for path in others if path not in beyond and not (keep_every and step_of(path) % keep_every == 0)]
    for old in [*beyond, *older[: max(0, len(older) + 1 - max(keep, 1))]]:
        _remove(old)
    return target


def write_manifest(folder: Path) -> None:
    """Write the size and the digest of each file of a checkpoint beside them."""
    entries = {name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)} for name in FILES}
    (folder / MANIFEST).write_text(json.dumps(entries), encoding="utf-8")


def _write(
    folder: Path, target: Path, model: nn.Module, moments: dict[str, torch.Tensor], progress: dict[str, Any]
) -> None:
    scratch = folder / f".{target.name}.incomplete"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file(_contiguous(dict(model.state_dict())), scratch / "model.safetensors")
    save_file(_contiguous(moments), scratch / "optimizer.safetensors")
    (scratch / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    write_manifest(scratch)
    for path in [*scratch.iterdir(), scratch]:
        _sync(path)
    if target.exists():
        _remove(target)
    os.rename(scratch, target)
    _sync(folder)


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
        expected = {name: (int(entries[name]["bytes"]), str(entries[name]["sha256"])) for name in FILES}
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise Damaged(f"{manifest} is damaged: it does not list the size and digest of {', '.join(FILES)}") from error
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
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Load a checkpoint into a model and its optimizer, and return the `progress` it was saved with.

    Args:
        progress: what `check_checkpoint` returned, if it was just called; otherwise it is called here.

    Raises:
        Damaged: a file is missing, truncated or changed; names it.
        ValueError: it belongs to another model.
    """
    progress = progress or check_checkpoint(path)
    try:
        state = load_file(path / "model.safetensors")
        moments = load_file(path / "optimizer.safetensors")
    except SafetensorError as error:
        raise Damaged(f"{path} cannot be read: {error}") from error
    current = model.state_dict()
    wrong = sorted(
        name
        for name in current.keys() | state.keys()
        if name not in current or name not in state or current[name].shape != state[name].shape
    )
    if wrong:
        raise ValueError(f"{path / 'model.safetensors'} belongs to another model: {', '.join(wrong[:5])} differ")
    model.load_state_dict(state)
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        prefix = f"{name}/"
        saved = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
        if saved:
            optimizer.state[parameter] = {
                key: value if key == "step" and parameter.device.type == "cpu" else value.to(parameter.device)
                for key, value in saved.items()
            }
    return progress
