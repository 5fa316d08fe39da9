"""Reading checkpoint files that others made. Nothing in them is ever executed."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import safe_globals

CONTAINERS = ("model", "state_dict")
_NO_CHECKPOINT = (
    "is no torch checkpoint, or not a whole one: it is cut, damaged, or of another format. Fetch it again and compare "
    "its size"
)


def read_file(path: str | Path) -> Any:
    """The tensors and plain values in a `.pth`, `.pt`, `.pth.tar` or `.safetensors` file.

    torch's restricted reader creates tensors, dicts, lists, strings and numbers, and refuses everything else. One more
    class is allowed, since training scripts save their command line with the weights: `argparse.Namespace`, which only
    holds attributes. Nothing here turns this check off.

    Raises:
        ValueError: the file does not exist, is damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is a folder; name a file in it" if path.is_dir() else f"there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        raise ValueError(f"reading {path} safely needs torch 2.10 or newer, not {torch.__version__}")
    try:
        with safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:  # torch's own text advises to read the file unsafely
            raise ValueError(f"{path} {_NO_CHECKPOINT}") from error
        raise ValueError(
            f"{path} was not read, because it holds more than tensors and plain values: it asks for {wanted[1]}. "
            "If you made the file yourself, save its weights alone, torch.save(model.state_dict(), path), or allow "
            "a class that you trust with torch.serialization.add_safe_globals."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} {_NO_CHECKPOINT}") from error


def find_state(content: Any, where: str = "the checkpoint") -> dict[str, torch.Tensor]:
    """The weights in the content of a file, without `module.` before their names.

    They are the whole content, or under `model` or `state_dict`.

    Args:
        where: what the content is, for the error.

    Raises:
        ValueError: there are no weights, something else is among them, or some are NaN or infinite.
    """
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        found = f"the keys {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else type(content)
        raise ValueError(f"{where} holds no weights, alone or under {' or '.join(CONTAINERS)}; it has {found}")
    other = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise ValueError(f"{where} holds something that is no tensor among its weights: {other[:5]}")
    state = dict(content)
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{where} holds weights that are no numbers (NaN or infinite), so it is of no use: {', '.join(broken[:5])}"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def check_target(folder: Path) -> None:
    """Raises:
    ValueError: the folder to write is a file, is inside one, or holds a model already.
    """
    file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise ValueError(f"{folder} cannot be written: {file} is a file; name a folder")
    if (folder / "config.json").exists() or any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds a model already: remove it, or name another folder")


def check_image_size(size: int | None, patch: int) -> None:
    """Raises:
    ValueError: pictures of that size, in pixels, are not covered by patches.
    """
    if size is not None and (size < 1 or size % patch):
        raise ValueError(f"image_size {size} is no multiple of the patch size, {patch}")


def shape_of(state: Mapping[str, torch.Tensor], name: str) -> torch.Size:
    """The shape of a weight. Raises: ValueError: it is missing."""
    if name not in state:
        raise ValueError(f"the checkpoint lacks {name!r}, so the sizes of the model are unknown")
    return state[name].shape


def read_state(source: str | Path | Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights in a file, or in the content of one. See `read_file` and `find_state`."""
    if isinstance(source, (str, Path)):
        return find_state(read_file(source), str(source))
    return find_state(source)


__all__ = ["check_image_size", "check_target", "find_state", "read_file", "read_state", "shape_of"]
