"""Data forms, a metric and augmentations are added to a copy of the repository as CONTRIBUTING.md says, and work."""

import re

import pytest
from contributing_page import PAGE, blocks, check_style, copy_with, pass_in, section

SECTIONS = ("A data form", "A metric", "An augmentation")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the repository with all of them in it."""
    return copy_with(tmp_path_factory.mktemp("repository"), *SECTIONS)


def test_what_the_page_adds_passes_its_tests(repository):
    selected = "ndjson or squares or balance or negative or documented_tree or installed or each_operation_alone"
    files = ("data", "evaluation_balance", "augmentation", "ssl_augment", "architecture")
    found, _ = pass_in(repository, selected, *(f"test_{name}" for name in files))
    assert found >= 8


def test_what_the_page_adds_is_written_as_the_others(repository):
    check_style(repository)


def test_every_block_of_the_page_belongs_to_a_section_that_is_followed():
    followed = [*SECTIONS, "An image-only method", "A downstream task"]
    assert sum(len(blocks(section(title))) for title in followed) == len(re.findall("^```\\w", PAGE, re.MULTILINE))
