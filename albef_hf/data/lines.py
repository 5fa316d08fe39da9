"""Files of JSON lines that a killed process may have left with half a line at the end."""

import json
import os
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if there is no file. A last line that was cut off is left out.

    Raises:
        ValueError: another line is not a JSON object; names the file and the line.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is no JSON object")
        except ValueError as error:
            if not any(later.strip() for later in lines[number:]):
                break
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        rows.append(row)
    return rows


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a temporary file is written, synced and renamed."""
    scratch = path.with_name(f".{path.name}.incomplete")
    with scratch.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(scratch, path)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with `write_text`."""
    write_text(path, _lines(rows))


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a file."""
    with path.open("a", encoding="utf-8") as handle:
        handle.write(_lines(rows))


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
