"""A downstream task is added to a copy of the repository as CONTRIBUTING.md says, and passes the tests of a task."""

import pytest
from contributing_page import check_style, copy_with, pass_in

from albef_hf.training.arguments import parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the repository with the task of the page in it."""
    return copy_with(tmp_path_factory.mktemp("repository"), "A downstream task")


def test_a_task_added_by_the_page_passes_every_test_of_a_task(repository):
    """Its files travel and stand in the table of the architecture, too, and its recipes are written as the others."""
    selected = "certainty or one_order or travels or documented_tree or is_here"
    files = ("finetune", "task_start", "model_contract", "configs", "architecture")
    found, _ = pass_in(repository, selected, *(f"test_{name}" for name in files))
    assert found >= 27


def test_a_task_added_by_the_page_is_written_as_the_others(repository):
    check_style(repository)


@pytest.mark.parametrize("name", ["certainty", "emoji_certainty"])
def test_the_configurations_of_the_page_are_understood(name, repository):
    *_, task = parse_arguments([str(repository / "configs" / f"{name}.yaml")], TASK_GROUPS)
    assert task.task == "certainty" and task.validation and task.tests.keys() == {"test"}
