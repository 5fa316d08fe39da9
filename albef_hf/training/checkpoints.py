"""Checkpoints without pickle: tensors as safetensors, the rest as JSON. A checkpoint is complete or absent."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..data.hashing import file_digest

MANIFEST = "manifest.json"


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


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any], keep: int
) -> Path:
    """Write `folder/step-XXXXXXXX`: a temporary folder is written, synced and renamed, then older ones are removed.

    Args:
        progress: what else resuming needs, as JSON; `step` names the folder.
        keep: how many checkpoints to keep; at least this one.

    Returns: the checkpoint's folder.
    """
    target = folder / f"step-{progress['step']:08d}"
    scratch = folder / f".{target.name}.incomplete"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file(_contiguous(dict(model.state_dict())), scratch / "model.safetensors")
    save_file(_contiguous(_named_optimizer_state(model, optimizer)), scratch / "optimizer.safetensors")
    (scratch / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    manifest = {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in scratch.iterdir()}
    (scratch / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for path in [*scratch.iterdir(), scratch]:
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(scratch, target)
    _sync(folder)
    saved = sorted(folder.glob("step-*"))
    beyond = [path for path in saved if path.name > target.name]  # of an earlier run
    for old in [*beyond, *[path for path in saved if path not in beyond][: -max(keep, 1)]]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder; None: there is none."""
    complete = sorted(path for path in folder.glob("step-*") if (path / MANIFEST).exists())
    return complete[-1] if complete else None


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into a model and its optimizer, and return the `progress` it was saved with.

    Raises:
        ValueError: a file is missing, truncated or changed, or belongs to another model; names it.
    """
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{path / MANIFEST} is missing: not a complete checkpoint")
    for name, expected in json.loads((path / MANIFEST).read_text(encoding="utf-8")).items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        if file.stat().st_size != expected["bytes"] or file_digest(file) != expected["sha256"]:
            raise ValueError(f"{file} is damaged: it is not what was written")
    try:
        state = load_file(path / "model.safetensors")
        moments = load_file(path / "optimizer.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    current = model.state_dict()
    wrong = sorted(
        name
        for name in current.keys() | state.keys()
        if name not in current or name not in state or current[name].shape != state[name].shape
    )
    if wrong:
        raise ValueError(f"{path / 'model.safetensors'} belongs to another model: {', '.join(wrong[:5])} differ")
    model.load_state_dict(state)
    for name, parameter in model.named_parameters():
        prefix = f"{name}/"
        saved = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
        if saved:
            optimizer.state[parameter] = {
                key: value if key == "step" and parameter.device.type == "cpu" else value.to(parameter.device)
                for key, value in saved.items()
            }
    return json.loads((path / "progress.json").read_text(encoding="utf-8"))
