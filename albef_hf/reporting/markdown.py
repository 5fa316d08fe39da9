"""Text and tables in Markdown."""

from collections.abc import Sequence
from typing import Any


def markdown_text(value: Any) -> str:
    """A value as text that has no markup. Of a path on this machine only the last part is shown."""
    text = str(value)
    if text.startswith(("/", "~")) or (len(text) > 2 and text[1:3] == ":\\"):
        text = text.replace("\\", "/").rstrip("/").split("/")[-1]
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A table. numbers: align all columns but the first to the right."""
    rule = ["---"] + ["---:" if numbers else "---"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, rule, *rows])
