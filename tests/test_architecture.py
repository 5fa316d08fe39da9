"""The structure of the code: imports, the files saved with a model, sizes, and how long a step is to follow."""

import ast
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from helpers import tiny_config
from torch import nn
from transformers import ResNetConfig

from albef_hf import AlbefForPreTraining
from albef_hf.remote_code import FILES
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.loop import make_steps, train
from albef_hf.training.processes import build_accelerator
from albef_hf.vision_backbone import VisionBackbone
from ssl_methods import METHODS
from ssl_methods.augment import draw_view, view_recipes
from ssl_methods.data import TwoViewCollator

ROOT = Path(__file__).parent.parent
PACKAGES = ("albef_hf", "ssl_methods")
# A room may import the rooms to the left of it. `convert` and `inference` may import those in `BESIDE`.
ROW = ("flat", "data", "evaluation", "reporting", "tasks", "training", "crashtest")
BESIDE = {"convert": ("flat", "evaluation"), "inference": ("flat", "data", "evaluation")}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, also inside functions."""
    package = list(path.relative_to(ROOT).with_suffix("").parts)[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*start, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in (*PACKAGES, "scripts")}


def room(module: str) -> str:
    parts = module.split(".")
    if parts[0] != "albef_hf":
        return parts[0]
    return parts[1] if len(parts) > 1 and (ROOT / "albef_hf" / parts[1]).is_dir() else "flat"


def test_imports_run_one_way():
    wrong = []
    for path in sources(*PACKAGES):
        own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if path == ROOT / "albef_hf" / "__init__.py":  # it imports from all rooms what users need
            continue
        for module in imports(path):
            other = room(module)
            if own == "ssl_methods":
                allowed = other not in ("scripts",)
            elif own in BESIDE:
                allowed = other in (own, *BESIDE[own])
            else:
                allowed = other in ROW[: ROW.index(own) + 1] or other in BESIDE and own == "training"
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_no_two_files_import_each_other_in_a_circle():
    def name(path: Path) -> str:
        parts = path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    graph = {name(path): imports(path) for path in sources(*PACKAGES) if path.name != "__init__.py"}
    done, active = set(), []

    def visit(module: str) -> None:
        assert module not in active, " -> ".join([*active[active.index(module) :], module])
        if module in done or module not in graph:
            return
        active.append(module)
        for other in sorted(graph[module]):
            visit(other)
        done.add(active.pop())

    for module in graph:
        visit(module)


def test_what_lies_flat_is_what_travels():
    flat = {path.name for path in (ROOT / "albef_hf").glob("*.py")} - {"__init__.py"}
    assert flat == set(FILES)


def test_files_and_functions_are_small_enough_to_read():
    large = []
    for path in sources(*PACKAGES, "scripts"):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 350:
            large.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 80:
                large.append(f"{path.relative_to(ROOT)}, {node.name}: {node.end_lineno - node.lineno + 1} lines")
    assert large == []


def test_the_loop_asks_for_no_attribute_by_name():
    loop = (ROOT / "albef_hf" / "training" / "loop.py").read_text(encoding="utf-8")
    assert not re.search(r"\b(has|get)attr\(", loop)


def test_the_documented_tree_is_the_tree():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    documented: dict[str, set[str]] = {}
    for line in text.splitlines():
        row = re.fullmatch(r"\| `([\w/]+)/` \| (.+?) \| .+ \|", line)
        if row:
            documented[row[1]] = set(re.findall(r"`(\w+)`", row[2]))
    actual: dict[str, set[str]] = {}
    for path in sources(*PACKAGES, "scripts"):
        folder = path.parent.relative_to(ROOT).as_posix()
        if path.name != "__init__.py" and "metrics" not in folder:
            actual.setdefault(folder, set()).add(path.stem)
    assert documented == actual


def test_every_folder_of_code_is_installed():
    """`setup.cfg` finds folders with an `__init__.py` only."""
    folders = {path.parent for path in sources(*PACKAGES)}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()] == []


# -- how long a step is to follow -------------------------------------------------------------------------------------


class OneBatch:
    """The same batch again and again; `after` is called with the number of each before it is handed out."""

    batch_size, steps_per_epoch, rows = 4, 10, 40

    def __init__(self, batch: dict, after, to_device) -> None:
        self.batch, self.after, self.to_device = batch, after, to_device

    def batches(self, start: int = 0):
        for number in itertools.count(start):
            self.after(number)
            yield {**self.batch, "rejected": []}


def followed(method: nn.Module, batch: dict, folder: Path, to_device=send_to_device) -> dict[str, int]:
    """Lines of the functions of ours that one step of training calls, by file; those that read data left out."""
    used: dict[str, set[int]] = {}

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and not code.co_name.startswith("<"):
            used.setdefault(code.co_filename, set()).add(code.co_firstlineno)

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=3, batch_size=4, log_every=3, save_every=3, report_to="none", warmup_steps=1
    )
    data = OneBatch(batch, lambda number: sys.setprofile(note if number == 1 else None), to_device)
    try:
        train(method, data, arguments, build_accelerator(arguments))
    finally:
        sys.setprofile(None)
    loop = sys.modules[train.__module__].__file__
    used.setdefault(loop, set()).add(make_steps.__code__.co_firstlineno)  # it runs already
    lines: dict[str, int] = {}
    for path in map(Path, used):
        folders = path.relative_to(ROOT).parts if path.is_relative_to(ROOT) else ("",)
        if folders[0] not in PACKAGES or folders[:2] == ("albef_hf", "data"):
            continue
        functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
        counted = set()
        for node in functions:
            if {node.lineno, *(d.lineno for d in node.decorator_list)} & used[str(path)]:
                counted |= set(range(node.lineno, node.end_lineno + 1))
        lines[path.relative_to(ROOT).as_posix()] = len(counted)
    assert "albef_hf/training/loop.py" in lines, f"the package is imported from elsewhere: {loop}"
    return lines


def pretraining_batch() -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 25).reshape(4, 5)
    labels = torch.full_like(ids, -100)
    labels[:, 2] = ids[:, 2]
    return {
        "pixel_values": torch.randn(4, 3, 32, 32),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mlm_input_ids": ids,
        "mlm_labels": labels,
        "mlm_positions": torch.arange(2, 20, 5),
        "image_ids": torch.arange(4),
        "caption_ids": torch.arange(4),
        "negative_draws": torch.rand(4, 2),
    }


def test_a_step_of_albef_is_followed_in_600_lines_and_7_files(tmp_path):
    lines = followed(AlbefForPreTraining(tiny_config()), pretraining_batch(), tmp_path)
    assert len(lines) <= 7 and sum(lines.values()) <= 600, lines


def test_a_step_of_moco_is_followed_in_350_lines(tmp_path):
    """With the colors that are changed on the device, as `configs/digits_moco_v2.yaml` changes them."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    method = METHODS["moco_v2"](VisionBackbone(config, "mean"), queue_size=8, batch_norm_splits=2)
    recipes = view_recipes("moco_v2", blur=0.0, flip=0.0, gray=0.5)
    generator = np.random.default_rng(0)
    numbers = [[draw_view(recipe, generator) for recipe in recipes] for _ in range(4)]
    batch = {
        "crops": torch.randint(256, (4, 2, 3, 32, 32), dtype=torch.uint8),
        "numbers": torch.tensor(np.array(numbers)).float(),
        "shuffle_draws": torch.rand(4),
    }
    collator = TwoViewCollator(recipes, (0.5,) * 3, (0.25,) * 3, pillow=False)
    lines = followed(method, batch, tmp_path, collator.to_device)
    assert "ssl_methods/augment.py" in lines and sum(lines.values()) <= 350, lines


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_is_a_file_of_at_most_150_lines(name):
    path = Path(sys.modules[METHODS[name].__module__].__file__)
    assert path.read_text(encoding="utf-8").count("\n") <= 150
