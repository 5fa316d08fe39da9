"""Checks of a model folder before transformers reads it. Errors name the file, and nothing is unpickled."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is not JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: not JSON ({error})") from error


def check_json(folder: Path, names: Iterable[str]) -> None:
    """Check those of these files that exist.

    Raises:
        ValueError: one of them is not JSON; names it.
    """
    for path in (folder / name for name in names):
        if path.is_file():
            read_json(path)


def check_model_folder(folder: Path, model_type: str) -> None:
    """Check a model folder before transformers reads it.

    Raises:
        ValueError: config.json is missing, damaged or for another model type; a shard is missing, outside the folder,
            or not a safetensors file; weights are truncated or damaged. Names the file.
    """
    if (folder / "adapter_config.json").is_file():  # an adapter: its model is in another folder
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder / 'config.json'} is missing: not a model folder")
    config = read_json(folder / "config.json")
    actual = config.get("model_type") if isinstance(config, dict) else None
    if actual != model_type:
        raise ValueError(f"{folder / 'config.json'} is for a model of type {actual!r}, not {model_type!r}")
    names = {"model.safetensors"} if (folder / "model.safetensors").is_file() else set()
    if (folder / INDEX).is_file():
        names |= _shards(folder / INDEX)
    for name in sorted(names):
        try:
            with safe_open(folder / name, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{folder / name} cannot be read: {error}") from error


def check_attention(fields: Any, where: str) -> None:
    """Check the attention that a configuration asks for, also in its parts. Other names are kernels of the Hub, which
    transformers would download and run.

    Raises:
        ValueError: it is none of `ATTENTIONS`; names it.
    """
    if not isinstance(fields, Mapping):
        return
    for key, value in fields.items():
        if "attn_implementation" in key:
            for name in value.values() if isinstance(value, Mapping) else [value]:
                if name is not None and name not in ATTENTIONS:
                    raise ValueError(
                        f"{where} asks for the attention {name!r}, which is none of {', '.join(ATTENTIONS)}. Take it "
                        "out of the configuration; what you trust you can give yourself, as attn_implementation"
                    )
        else:
            check_attention(value, where)


def _shards(index: Path) -> set[str]:
    content = read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict):
        raise ValueError(f"{index} has no weight_map")
    for name in shards.values():
        if (
            not isinstance(name, str)
            or not name.endswith(".safetensors")
            or Path(name.replace("\\", "/")).name != name
        ):
            raise ValueError(f"{index} names {name!r}, which is not a safetensors file of this folder")
        if not (index.parent / name).is_file():
            raise ValueError(f"{index.parent / name} is missing, though {index.name} names it")
    return set(shards.values())


__all__ = ["check_attention", "check_json", "check_model_folder", "read_json"]
