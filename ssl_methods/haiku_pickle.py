"""Reading a pickle of JAX arrays without executing anything in it.

DeepMind's BYOL checkpoints are pickles (written by dill) of named tuples, Haiku's mappings and numpy arrays. A pickle
asks for classes and functions by name. This reader imports none of them: it has a short list of names with stand-ins
that only keep what they are given, and any other name is an error.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Fields of the named tuple of DeepMind's training state, for pickles that name its class without defining it.
_STATE_FIELDS = ("online_params", "target_params", "online_state", "target_state", "opt_state")


class _NumberType:
    """numpy's description of a number: its type and size, then its byte order."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = str(name), "<"

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = str(state[1])

    def plain(self) -> np.dtype:
        if len(self.name) < 2 or self.name[0] not in "fiub" or not self.name[1:].isdigit():
            raise pickle.UnpicklingError(f"an array of {self.name!r}, which is no kind of number")
        return np.dtype(("" if self.order == "|" else self.order) + self.name)


class _Array:
    """numpy's pickled array: shape, type and bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: Sequence[Any] | None = None

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.state = state

    def plain(self) -> np.ndarray:
        if self.state is None:
            raise pickle.UnpicklingError("an array without content")
        _, shape, number_type, by_columns, content = self.state
        flat = np.frombuffer(content, dtype=number_type.plain())
        return flat.reshape(shape, order="F" if by_columns else "C").copy()


class _Inert:
    """Stands in for an object that is not needed, and forgets its content."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _array_by_parts(make: Callable[..., _Array], arguments: Sequence[Any], state: Sequence[Any], *_: Any) -> _Array:
    """An array as dill and JAX write it."""
    array = make(*arguments)
    array.__setstate__(state)
    return array


def _named_tuple(name: str, fields: Sequence[str], *_: Any) -> type:
    """A stand-in for a class of named tuples, whose objects are dicts."""

    def new(cls: type, *values: Any) -> dict[str, Any]:
        return dict(zip(fields, values, strict=True))

    return type(str(name), (), {"__new__": new})


def _number(number_type: _NumberType, content: bytes = b"") -> Any:
    return np.frombuffer(content, dtype=number_type.plain())[0].item()


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _NumberType,
    ("byol.byol_experiment", "_ByolExperimentState"): _named_tuple("ByolState", _STATE_FIELDS),
    ("byol.utils.optimizers", "LarsState"): _Inert,
    ("collections", "OrderedDict"): dict,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _STAND_INS |= {(_module, "_reconstruct"): _Array, (_module, "scalar"): _number}
for _module in ("dill._dill", "dill.dill"):
    _STAND_INS |= {(_module, "_create_namedtuple"): _named_tuple, (_module, "_create_array"): _array_by_parts}
for _module in ("haiku._src.data_structures", "haiku.data_structures"):
    _STAND_INS |= {(_module, name): dict for name in ("FlatMapping", "FlatMap", "frozendict")}
for _module, _name in (
    ("jax._src.array", "_reconstruct_array"),
    ("jax._src.device_array", "reconstruct_device_array"),
):
    _STAND_INS[_module, _name] = _array_by_parts


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STAND_INS[module, name]

    def persistent_load(self, identifier: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside the file")


def _plain(value: Any, made: dict[int, Any]) -> Any:
    """The value with numpy arrays in place of their stand-ins. What occurs twice is made once: a small file can name
    one object so often that copies of it would fill the memory.

    Args:
        made: results by the identity of their value.
    """
    if id(value) not in made:
        if isinstance(value, _Array):
            made[id(value)] = value.plain()
        elif isinstance(value, Mapping):
            made[id(value)] = {}
            made[id(value)].update((key, _plain(content, made)) for key, content in value.items())
        else:
            return value
    return made[id(value)]


def read_haiku_pickle(path: str | Path) -> dict[str, Any]:
    """The content of a pickled checkpoint: dicts, numbers and numpy arrays.

    Raises:
        ValueError: the file is damaged, or holds anything else.
    """
    try:
        with Path(path).open("rb") as handle:
            loaded = _Reader(handle).load()
            content = _plain(loaded, {})
    except Exception as error:  # a hostile file can make the reader fail with any error, but cannot do harm
        raise ValueError(f"{path} was not read: it is no pickle of numpy arrays ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} was not read: it holds no checkpoint but a {type(content).__name__}")
    return content


__all__ = ["read_haiku_pickle"]
