"""Help with names that a user wrote: what was probably meant, and what a former name is called today."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

LISTED = 30  # a folder may hold thousands of files


def nearest_hint(name: str, known: Iterable[str], otherwise: str | None = None, cutoff: float = 0.6) -> str:
    """The end of an error about an unknown name: "did you mean 'x'?", or the names that exist.

    Args:
        otherwise: the hint where no known name is near; left out, the known names are listed.
        cutoff: how alike two names must be to be near, 0 .. 1, as in `difflib.get_close_matches`.
    """
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    if otherwise is not None:
        return otherwise
    if not names:
        return "there are none"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"there are: {', '.join(names[:LISTED])}{more}"


def current_names(options: Mapping[str, Any], former: Mapping[str, str], where: str) -> dict[str, Any]:
    """Options under the names they have today.

    Args:
        options: as a user wrote them.
        former: former name -> today's name.
        where: what the options belong to, for the error.

    Raises:
        ValueError: an option is given under both its names.
    """
    for old, new in former.items():
        if old in options and new in options:
            raise ValueError(f"{where}: {old!r} is the former name of {new!r}; give only {new!r}")
    return {former.get(name, name): value for name, value in options.items()}
