"""The sections of CONTRIBUTING.md, followed to the letter in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = ("albef_hf", "ssl_methods", "scripts", "tests")


@dataclass
class Block:
    """A block of code of the page. kind: `python`, `yaml` or `diff`; path: the file that its first line names."""

    kind: str
    path: str
    code: str


def section(title: str) -> str:
    """The text of a section, with the sections inside it."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return text


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n# (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def changed(text: str, block: Block) -> str:
    """A file after a `diff` block. Each part, begun by a line @@, must fit one place of the file."""
    text = f"\n{text}"
    for part in block.code.removeprefix("@@\n").split("\n@@\n"):
        lines = [line or " " for line in part.rstrip("\n").split("\n")]
        old, new = ("\n".join(["", *(line[1:] for line in lines if line[0] != kind), ""]) for kind in "+-")
        assert text.count(old) == 1, f"CONTRIBUTING.md changes lines that are not in {block.path} once:{old}"
        text = text.replace(old, new)
    return text[1:]


def follow(title: str, repository: Path) -> None:
    """Do in a copy of the repository what a section says: every block, and the table of the architecture."""
    text = section(title)
    for block in blocks(text):
        path = repository / block.path
        if block.kind == "diff":
            path.write_text(changed(path.read_text(encoding="utf-8"), block), encoding="utf-8")
        elif path.exists():
            path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{block.code}", encoding="utf-8")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
    table = repository / "docs" / "architecture.md"
    for paragraph in text.split("\n\n"):
        if "`docs/architecture.md`" not in paragraph:
            continue
        for folder, name in re.findall(r"`(\S+)/(\w+)\.py`", paragraph):
            before = rf"(?<=\| `{folder}/` \| )(?=`)"  # the start of the row's list
            content, count = re.subn(before, f"`{name}` ", table.read_text(encoding="utf-8"))
            assert count == 1, folder
            table.write_text(content, encoding="utf-8")


def copy_with(folder: Path, *titles: str) -> Path:
    """A copy of the repository in which some sections of the page were followed."""
    for name in ("albef_hf", "ssl_methods", "scripts", "configs", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.cfg"), *(ROOT / "tests").glob("*.py")):
        shutil.copy(path, folder / path.relative_to(ROOT))
    for title in titles:
        follow(title, folder)
    return folder


def run_in(repository: Path, *arguments: str) -> str:
    """What a Python module prints, run within a copy of the repository and on its packages."""
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_style(repository: Path) -> None:
    """The code of a copy of the repository is written as `ruff` wants it."""
    run_in(repository, "ruff", "check", *CODE)
    run_in(repository, "ruff", "format", "--check", *CODE)


def pass_in(repository: Path, selected: str, *files: str) -> tuple[int, Path]:
    """How many selected tests of some files pass, and the folder in which they left theirs. None may fail."""
    left = repository / "left"
    options = ("-q", "-p", "no:xdist", "-o", "addopts=", "-p", "no:cacheprovider", f"--basetemp={left}")
    printed = run_in(repository, "pytest", *options, "-k", selected, *(f"tests/{name}.py" for name in files))
    (count,) = re.findall(r"^(\d+) passed, \d+ deselected in", printed, re.MULTILINE)
    return int(count), left
