"""The format of the files in `configs/`, and that each can be parsed."""

import itertools
from pathlib import Path

import pytest
import yaml

from albef_hf.training.arguments import GROUPS, parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
# libyaml's loader reads several times faster than the one in Python.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def nodes_below(node: yaml.Node):
    """Every node of a composed document below its root."""
    children = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
    for child in children if isinstance(node, yaml.CollectionNode) else ():
        yield child
        yield from nodes_below(child)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_is_written_in_blocks_of_short_lines_and_parses(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > 119] == []
    inline = [
        str(node.start_mark)
        for node in nodes_below(yaml.compose(text, LOADER))
        if isinstance(node, yaml.MappingNode) and node.flow_style and len(node.value) > 1
    ]
    assert inline == []
    config = yaml.load(text, LOADER)
    groups = TASK_GROUPS if "task" in config else GROUPS
    # A comparison holds the arguments of several runs.
    config.pop("supervised_epochs", None)
    for own in config.pop("methods", {"": {}}).values():
        wanted = {**config, **own}
        run = path
        if own:
            run = tmp_path / "run.yaml"
            run.write_text(yaml.safe_dump(wanted), encoding="utf-8")
        parsed = {}
        for group in parse_arguments([str(run)], groups):
            parsed |= vars(group)
        assert {name: parsed[name] for name in wanted} == wanted


def test_all_configs_have_their_keys_in_one_order():
    orders = set()
    for path in CONFIGS:
        orders |= set(itertools.combinations(yaml.load(path.read_text(encoding="utf-8"), LOADER), 2))
    assert [(one, other) for one, other in orders if (other, one) in orders] == []
