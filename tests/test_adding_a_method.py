"""An image-only method is added to a copy of the repository as CONTRIBUTING.md says, and passes a method's tests."""

import json

import pytest
from contributing_page import check_style, copy_with, pass_in


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the repository with the method of the page in it."""
    return copy_with(tmp_path_factory.mktemp("repository"), "An image-only method")


def test_a_method_added_by_the_page_passes_every_test_of_a_method(repository):
    """But for the one on two ranks, which trains all methods. Among them is a run of its laptop twin by the script."""
    selected = "simsiam or described_and_cited or logged or logs or one_order or documented_tree"
    files = ("ssl_reference", "ssl_methods", "ssl_run", "names", "configs", "architecture")
    found, left = pass_in(repository, selected, *(f"test_{name}" for name in files))
    assert found >= 15
    (run,) = {path.resolve() for path in left.glob("*/straight")}
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[0]["method"] == "simsiam" and rows[0]["chance"] == {"loss": 1.0}
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "SimSiam (Chen and He 2021)" in card and "chen2021exploring" in card


def test_a_method_added_by_the_page_is_written_as_the_others(repository):
    check_style(repository)
    example = (repository / "ssl_methods" / "simsiam.py").read_text(encoding="utf-8")
    assert example.count("\n") < 60
