"""Orders that are computed where they are needed: a keyed permutation of any size, without an array of it."""

from typing import Any

import numpy as np

_ROUNDS = 6


def _mixed(values: Any) -> np.ndarray:
    """Numbers of 64 bits -> others, one to one, every bit of which depends on all bits (splitmix64's last step)."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values = values ^ (values >> np.uint64(27))
    values = values * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _folded(key: tuple[Any, ...]) -> Any:
    """A key of numbers, or of arrays of them, as one number of 64 bits for each place."""
    folded = np.zeros(1, dtype=np.uint64)
    for part in key:
        number = np.atleast_1d(np.asarray(part)).astype(np.uint64)
        folded = _mixed(folded + number + np.uint64(0x9E3779B97F4A7C15))
    return folded


def permuted(places: np.ndarray, sizes: Any, *key: Any) -> np.ndarray:
    """Where places go in a shuffled order: a permutation of 0 .. size - 1 that a key names, at some of its places.

    The size is at most the product of two numbers near its root, by which a place is a pair of digits. In each round a
    hash of one digit and of the key is added to the other, which is one to one; what falls beyond the size goes
    through again. Time and memory depend on the number of places alone.

    Args:
        places: (n,) whole numbers, each 0 .. size - 1.
        sizes: one, or (n,), from 1 to 2^62.
        key: whole numbers below 2^64, not negative, or arrays (n,) of them: equal keys are equal permutations.

    Returns: (n,) int64.
    """
    found: Any = np.asarray(places).astype(np.uint64)
    size: Any = np.broadcast_to(np.asarray(sizes).astype(np.uint64), found.shape)
    keys = np.broadcast_to(_folded(key), found.shape)
    width: Any = np.maximum(np.ceil(np.sqrt(size.astype(np.float64))), 1).astype(np.uint64)
    height = (size + width - np.uint64(1)) // width
    left = np.arange(len(found))
    while len(left):
        own, across, down = keys[left], width[left], height[left]
        first, second = found[left] % across, found[left] // across
        for number in range(_ROUNDS):
            turn = own + np.uint64(number)
            first = (first + _mixed(_mixed(second + np.uint64(1)) ^ turn) % across) % across
            second = (second + _mixed(_mixed(first + np.uint64(2)) + turn) % down) % down
        found[left] = second * across + first
        left = left[found[left] >= size[left]]
    return found.astype(np.int64)
