"""Data files of installed packages."""

import importlib.util
from pathlib import Path


def package_folder(module: str, missing: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        ImportError: the package is not installed, with `missing` as the message.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(missing)
    return Path(spec.submodule_search_locations[0])
