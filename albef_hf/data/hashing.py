"""Hashes that are the same in every process and on every machine."""

import hashlib
from pathlib import Path
from typing import Any


def stable_id(value: Any) -> int:
    """A 63-bit number for a value, computed from its text."""
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "big") >> 1


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
