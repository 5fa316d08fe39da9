"""Scripts find libraries before their own folder."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent.parent / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_evaluate_is_the_library_in_every_script(script, tmp_path):
    """The script's first statements run as the script would run them, up to the first import of more than `sys`."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for other in SCRIPTS:
        (folder / other.name).write_text("raise SystemExit('the script, not the library')\n")
    source = script.read_text(encoding="utf-8")
    beginning, found, _ = source.partition('endswith("scripts"))')
    end = "\nimport importlib.util, sibling\nprint(importlib.util.find_spec('evaluate').origin)\n"
    (folder / "sibling.py").write_text("")
    (folder / script.name).write_text(beginning + found + end)
    printed = subprocess.run([sys.executable, str(folder / script.name)], capture_output=True, text=True, check=True)
    assert printed.stdout.strip().endswith(str(Path("site-packages", "evaluate", "__init__.py"))), printed
    imports = [line for line in beginning.splitlines() if line.startswith(("import ", "from "))]
    assert imports == ["import sys"]
