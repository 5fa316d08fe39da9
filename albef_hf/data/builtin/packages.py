"""Data that installed packages carry."""

import importlib.util
from pathlib import Path


def package_folder(module: str, missing: str) -> Path:
    """The folder of an installed package, which is not imported.

    Raises:
        ImportError: it is not installed; `missing` says what to do.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(missing)
    return Path(spec.submodule_search_locations[0])
