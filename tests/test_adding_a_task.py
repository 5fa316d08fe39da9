"""A downstream task is added to a copy of the repository as CONTRIBUTING.md says, and passes the tests of a task."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from albef_hf.training.arguments import parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Files of the page: each block of code begins with the name of its file.
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", PAGE, re.DOTALL))


def insert(path: Path, before: str, line: str) -> None:
    """A line into a file, before a text that stands there once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, (path, before)
    path.write_text(text.replace(before, f"{line}\n{before}"), encoding="utf-8")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the repository with the task of the page in it."""
    copy = tmp_path_factory.mktemp("repository")
    for name in ("albef_hf", "scripts", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests").mkdir()
    for path in (ROOT / "tests").glob("*.py"):
        shutil.copy(path, copy / "tests")
    for name in ("albef_hf/modeling_albef_certainty.py", "albef_hf/tasks/certainty.py"):
        (copy / name).write_text(FILES[name], encoding="utf-8")
    for name in ("configs/certainty.yaml", "configs/emoji_certainty.yaml"):
        (copy / name).write_text(FILES[name], encoding="utf-8")
    package, tasks = copy / "albef_hf" / "__init__.py", copy / "albef_hf" / "tasks" / "__init__.py"
    insert(
        package,
        "from .modeling_albef_classification import (",
        "from .modeling_albef_certainty import AlbefForCertainty",
    )
    insert(package, '    "AlbefForImageTextRetrieval",', '    "AlbefForCertainty",')
    insert(
        copy / "albef_hf" / "remote_code.py",
        '    "modeling_albef_classification.py",',
        '    "modeling_albef_certainty.py",',
    )
    insert(tasks, "from .grounding import Grounding", "from .certainty import Certainty")
    insert(tasks, "    Retrieval,", "    Certainty,")
    cases = copy / "tests" / "task_cases.py"
    cases.write_text(f"{cases.read_text(encoding='utf-8')}\n\n{FILES['tests/task_cases.py']}", encoding="utf-8")
    return copy


def test_a_task_added_by_the_page_passes_every_test_of_a_task(repository):
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", "certainty"]
    result = subprocess.run(
        [*command, "tests/test_finetune.py", "tests/test_task_start.py"],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^5 passed", result.stdout, re.MULTILINE), result.stdout


@pytest.mark.parametrize("name", ["certainty", "emoji_certainty"])
def test_the_configurations_of_the_page_are_understood(name, repository):
    *_, task = parse_arguments([str(repository / "configs" / f"{name}.yaml")], TASK_GROUPS)
    assert task.task == "certainty" and task.validation and task.tests.keys() == {"test"}


def test_every_block_of_the_page_belongs_to_a_file():
    assert len(FILES) == len(re.findall(r"```(?:python|yaml)\n", PAGE)) == 5
