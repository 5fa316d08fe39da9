"""Rules for the test suite itself."""

import ast
from functools import cache
from pathlib import Path

FILES = sorted(Path(__file__).parent.glob("*.py"))
PACKAGES = ("albef_hf", "ssl_methods")


@cache
def imports(path: Path) -> list[str]:
    """The dotted names of everything that a file imports, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def test_helpers_stand_in_helper_modules():
    found = [f"{path.name}: {name}" for path in FILES for name in imports(path) if name.startswith("test_")]
    assert found == []


def test_tests_import_nothing_private_from_the_package():
    found = [
        f"{path.name}: {name}"
        for path in FILES
        for name in imports(path)
        if name.split(".")[0] in PACKAGES and any(part.startswith("_") for part in name.split("."))
    ]
    assert found == []
