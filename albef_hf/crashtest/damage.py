"""What may happen to a checkpoint on a disk, and components of its state put back to where a run starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..training.checkpoints import FILES, MANIFEST, write_manifest
from ..training.parts import KINDS, Saved
from .compare import leaves, same_bits


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def _other_digest(path: Path) -> None:
    entries = json.loads(path.read_text())
    next(iter(entries.values()))["sha256"] = "0" * 64
    path.write_text(json.dumps(entries))


def _empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


_OF_A_FILE: dict[str, Callable[[Path], object]] = {
    "cut": _cut,
    "with one bit changed": _flip,
    "of zeros": lambda path: path.write_bytes(bytes(300)),
    "removed": Path.unlink,
}
_OF_A_MANIFEST: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "a list": lambda path: path.write_text("[]"),
    "with another digest": _other_digest,
}


def _within(name: str, damage: Callable[[Path], object]) -> Callable[[Path], object]:
    """Damage a file of a checkpoint; of the files of its kind in a sharded one, the last."""

    def damaged(folder: Path) -> object:
        found = [folder / name] if (folder / name).exists() else sorted(folder.glob(f"{Path(name).stem}-*"))
        return damage(found[-1])

    return damaged


# What is damaged -> how, given the folder of a checkpoint.
DAMAGES: dict[str, Callable[[Path], object]] = {
    **{f"{name} {how}": _within(name, damage) for name in (*FILES, MANIFEST) for how, damage in _OF_A_FILE.items()},
    **{f"{MANIFEST} {how}": _within(MANIFEST, damage) for how, damage in _OF_A_MANIFEST.items()},
    "an empty folder": _empty,
}


def _whole(checkpoint: Path, kind: str) -> dict[str, torch.Tensor]:
    with Saved(checkpoint, kind) as saved:
        return {name: saved.whole(name) for name in saved.shapes}


class Controls:
    """Components of a checkpoint's state, each of which can be put back to its value at the start of the run.

    Args:
        initial, middle: checkpoints after step 0 and after a later one.
        named: tensor of the model -> its component.
    """

    def __init__(self, initial: Path, middle: Path, named: dict[str, str]) -> None:
        self.model, self.later = (_whole(path, "model") for path in (initial, middle))
        self.progress, self.later_progress = (json.loads((p / "progress.json").read_text()) for p in (initial, middle))
        self.initial, self.named = initial, named
        self.moments = {f"optimizer: {name.rsplit('/', 1)[1]}" for name in _whole(middle, "optimizer")}
        start, now = leaves(self.progress), leaves(self.later_progress)
        moved = {named.get(name, name) for name in self.later if not same_bits(self.model[name], self.later[name])}
        changed = {f"progress: {key}" for key in now if start.get(key) != now[key]}
        every = {named.get(name, name) for name in self.later} | {f"progress: {key}" for key in now}
        self.names = sorted(moved) + sorted(self.moments) + sorted(changed)
        self.unmoved = sorted(every - moved - changed)

    def put_back(self, checkpoint: Path, component: str) -> None:
        """Put a component of a checkpoint back to its value at the start. Its manifest says that all is well.

        A sharded checkpoint becomes an unsharded one.
        """
        tensors = {kind: _whole(checkpoint, kind) for kind in KINDS}
        for path in checkpoint.glob("*-of-*"):
            path.unlink()
        if component in self.moments:
            initial, moments = _whole(self.initial, "optimizer"), tensors["optimizer"]
            for name in [each for each in moments if each.rsplit("/", 1)[1] == component.removeprefix("optimizer: ")]:
                moments[name] = initial.get(name, torch.zeros_like(moments[name]))
        elif component.startswith("progress: "):
            progress = json.loads((checkpoint / "progress.json").read_text())
            key, _, inner = component.removeprefix("progress: ").partition(".")
            owner: dict[str, Any] = progress[key] if inner else progress
            value = leaves(self.progress).get(component.removeprefix("progress: "))
            owner[inner or key] = value
            if value is None:
                del owner[inner or key]
            (checkpoint / "progress.json").write_text(json.dumps(progress))
        else:
            model = tensors["model"]
            model |= {name: self.model[name] for name in model if self.named.get(name, name) == component}
        for kind, state in tensors.items():
            save_file(state, checkpoint / f"{kind}.safetensors")
        write_manifest(checkpoint)
