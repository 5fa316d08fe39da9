"""One vocabulary: names in curves, reports, cards and documents are those of the arguments and of the log."""

import ast
import dataclasses
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.utils import send_to_device
from backbone_cases import PAGE as ENCODERS
from helpers import tiny_batch, tiny_model
from model_cases import TASKS, new, task_batch
from ssl_helpers import tiny_method

from albef_hf.data.arguments import DataArguments
from albef_hf.data.sources import BUILT_IN, CORPUS_KEYS
from albef_hf.evaluation import RetrievalResult
from albef_hf.reporting.card_facts import CITATIONS, DESCRIPTIONS
from albef_hf.reporting.curves import HEALTH, NOT_NOISY, SINGLE_PANELS, TITLES
from albef_hf.reporting.model_card import RECIPE, CardText, write_model_card
from albef_hf.reporting.report import write_report
from albef_hf.training.arguments import GROUPS, ModelArguments, TrainingArguments, resolved
from albef_hf.training.loop import train
from albef_hf.training.processes import build_accelerator
from albef_hf.training.task_arguments import ENTRY_KEYS, TASK_GROUPS, TaskArguments
from ssl_methods import METHODS
from ssl_methods.augment import ViewRecipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FIELDS = {field.name for group in TASK_GROUPS for field in dataclasses.fields(group)}
# What is logged and has no curve: what orders the rows, what follows from another curve, what is a count.
NOT_DRAWN = {"kind", "step", "epoch", "seconds", "skipped_steps", "spikes", "alpha", "alignment"}


# -- what the loop logs -----------------------------------------------------------------------------------------------


class OneBatch:
    """The data of a run, with the same batch at every step."""

    steps_per_epoch = 2

    def __init__(self, batch: dict) -> None:
        self.batch = batch
        self.batch_size = self.rows = len(batch.get("views", batch.get("input_ids")))

    def batches(self, start: int = 0):
        while True:
            yield {**self.batch, "rejected": []}

    def to_device(self, batch: dict, device: torch.device) -> dict:
        return send_to_device(batch, device)


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> dict[str, list[dict]]:
    """The rows that the training loop logs of every kind of model, in two steps with an evaluation after each."""
    generator = torch.Generator().manual_seed(0)
    views = {"views": torch.rand(4, 2, 3, 16, 16, generator=generator), "shuffle_draws": torch.rand(4)}
    runs = {"albef": (tiny_model(), tiny_batch())}
    runs |= {kind.__name__: (new(kind), task_batch(kind)) for kind in TASKS}
    runs |= {name: (tiny_method(name), views) for name in METHODS}
    found = {}
    for name, (method, batch) in runs.items():
        folder = tmp_path_factory.mktemp(name)
        arguments = TrainingArguments(
            output_dir=str(folder), max_steps=2, batch_size=4, log_every=1, evaluate_every=1, report_to="none"
        )
        measured = {"evaluate": lambda model: {"image_to_text_r10": 0.5}, "evaluation_name": "toys"}
        train(method, OneBatch(batch), arguments, build_accelerator(arguments), **measured)
        found[name] = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return found


def keys_of(rows: list[dict], kind: str) -> set[str]:
    return {key for row in rows if row["kind"] == kind for key in row}


def test_every_curve_is_of_something_that_is_logged(logs):
    logged = set().union(*(keys_of(rows, "train") for rows in logs.values()))
    for named in (TITLES, HEALTH, SINGLE_PANELS, NOT_NOISY):
        assert set(named) - logged == set()
    drawn = {key for key in logged if key.startswith("loss") or key.endswith("accuracy")} | set(SINGLE_PANELS)
    assert logged - drawn == NOT_DRAWN


def test_every_level_is_of_something_that_its_run_logs(logs):
    for name, rows in logs.items():
        levels = {key for row in rows if row["kind"] == "run" for key in (*row["levels"], *row["chance"])}
        assert levels - keys_of(rows, "train") == set(), name


# -- what reports and cards ask for -----------------------------------------------------------------------------------


class Asked(dict):
    """A dict that notes which keys it is asked for."""

    def __init__(self, content: dict, keys: set[str]) -> None:
        super().__init__(content)
        self.keys_asked = keys

    def __getitem__(self, key):
        self.keys_asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.keys_asked.add(key)
        return super().__contains__(key)

    def get(self, key, default=None):
        self.keys_asked.add(key)
        return super().get(key, default)


def retrieval_result() -> RetrievalResult:
    names = [f"{way}_r{cutoff}" for way in ("image_to_text", "text_to_image") for cutoff in (1, 5, 10)]
    metrics = dict.fromkeys([*names, "mean_recall"], 0.25)
    metrics |= {f"reranked_{name}": 0.5 for name in metrics}
    order, ranks = np.zeros((2, 2), dtype=int), np.zeros(2, dtype=int)
    return RetrievalResult("toys", 2, 2, 1, metrics, dict.fromkeys(metrics, 0.1), *[order] * 4, *[ranks] * 2)


def run_folders(tmp_path: Path, logs: dict[str, list[dict]]):
    """A run folder of each kind, and what its card is given beside it."""
    data = DataArguments(
        mixture=[{"dataset": "someone/pairs", "weight": 1.0}, {"dataset": "emoji", "weight": 1.0}],
        evaluation_dataset="someone/test",
    )
    card = CardText("A model.", None, [], [], "AlbefProcessor")
    kinds = {
        "albef": ((ModelArguments(vision_model="someone/vit"), data, TrainingArguments()), {}),
        "AlbefForVisualEntailment": ((ModelArguments(), DataArguments(), TrainingArguments(), TaskArguments()), {}),
        "byol": ((ModelArguments(method="byol"), DataArguments(dataset="digits"), TrainingArguments()), {}),
    }
    kinds["albef"][1]["result"] = retrieval_result()
    kinds["AlbefForVisualEntailment"][1]["task"] = card
    kinds["byol"][1]["probes"] = {"knn_20": 0.5}
    for name, (groups, options) in kinds.items():
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        (folder / "config.yaml").write_text(resolved(*groups), encoding="utf-8")
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logs[name]), encoding="utf-8")
        model_type = "resnet" if name == "byol" else "albef"
        (folder / "model" / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        yield folder, options


def test_reports_and_cards_ask_for_arguments_and_log_keys_that_exist(tmp_path, logs, monkeypatch):
    folders = list(run_folders(tmp_path, logs))
    of_config: set[str] = set()
    of_entry: set[str] = set()
    of_rows: dict[str, set[str]] = {"run": set(), "train": set(), "evaluation": set(), "warning": set()}
    load_yaml, load_json = yaml.safe_load, json.loads

    def config(text):
        loaded = load_yaml(text)
        loaded["mixture"] = [Asked(entry, of_entry) for entry in loaded["mixture"]]
        return Asked(loaded, of_config)

    def row(text, **options):
        loaded = load_json(text, **options)
        return Asked(loaded, of_rows[loaded["kind"]]) if isinstance(loaded, dict) and "kind" in loaded else loaded

    with monkeypatch.context() as patch:
        patch.setattr(yaml, "safe_load", config)
        patch.setattr(json, "loads", row)
        for folder, options in folders:
            write_report(folder, options.get("result"), None)
            write_model_card(folder, folder / "model", **options)
    assert of_config >= {"dataset", "mixture", "max_caption_tokens", "accumulation", "vision_pooling"}  # it did look
    assert of_config - FIELDS == set()
    assert of_entry == {"dataset"} <= set(CORPUS_KEYS)
    for kind, asked in of_rows.items():
        logged = set().union(*(keys_of(rows, kind) for rows in logs.values()))
        beside_it = {"chance"} if kind == "evaluation" else set()  # from the saved result
        assert asked - logged - beside_it == set(), kind
    assert of_rows["run"] and of_rows["train"] and of_rows["evaluation"]


def test_a_recipe_lists_the_arguments_that_had_an_effect(tmp_path, logs):
    assert set(RECIPE) - FIELDS == set()
    cards = {}
    for folder, options in run_folders(tmp_path, logs):
        cards[folder.name] = write_model_card(folder, folder / "model", **options).read_text(encoding="utf-8")
    assert "| text length (tokens) | 25 |" in cards["albef"]
    for name, card in cards.items():
        assert "| micro-batches per optimizer step | 1 |" in card and "| warm-up steps | 2000 |" in card
        assert ("text length" in card) == (name == "albef")  # tasks have their own lengths, pictures none
        assert "warm-up epochs" not in card and "steps asked for" not in card
    folder, options = next(run_folders(tmp_path / "epochs", logs))
    changed = TrainingArguments(accumulation=4, warmup_epochs=2.0, max_steps=7)
    (folder / "config.yaml").write_text(resolved(ModelArguments(), DataArguments(), changed), encoding="utf-8")
    card = write_model_card(folder, folder / "model", **options).read_text(encoding="utf-8")
    assert "| micro-batches per optimizer step | 4 |" in card and "| optimizer steps asked for | 7 |" in card
    assert "| warm-up epochs | 2.0 |" in card and "warm-up steps" not in card


def test_every_method_is_described_and_cited():
    methods = {"albef", *METHODS}
    assert set(CITATIONS) == set(DESCRIPTIONS) == methods
    (field,) = (field for field in dataclasses.fields(ModelArguments) if field.name == "method")
    assert set(re.findall(r"\w+", field.metadata["help"])) >= methods


# -- documents --------------------------------------------------------------------------------------------------------


def flags_of(script: str) -> set[str]:
    """The flags of a script: its own, those of the arguments it parses, and those it passes on to other scripts."""
    path = ROOT / "albef_hf/crashtest/command.py" if script == "crashtest" else ROOT / "scripts" / f"{script}.py"
    source = path.read_text(encoding="utf-8")
    flags = {"help"}
    for node in ast.walk(ast.parse(source)):
        others = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            flags |= {name.removeprefix("--") for name in names if name.startswith("--")}
        elif isinstance(node, ast.Name) and node.id == "parse_arguments":
            flags |= {field.name for group in GROUPS for field in dataclasses.fields(group)}
        elif isinstance(node, ast.Name) and node.id == "TASK_GROUPS":
            flags |= FIELDS
        elif isinstance(node, ast.ImportFrom):
            others = [str(node.module)]
        elif isinstance(node, ast.Constant) and "parse_known_args" in source:
            others = re.findall(r"^(\w+)\.py$", str(node.value))
        flags |= set().union(*(flags_of(name) for name in others if (ROOT / "scripts" / f"{name}.py").is_file()))
    return flags


def commands_and_code(path: Path) -> tuple[list[str], list[str]]:
    """The lines of a document's blocks of commands, and what stands in backticks within its text."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines, re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_flags_of_a_document_exist(path):
    lines, code = commands_and_code(path)
    tried = flags_of("crashtest")
    every = tried.union(*(flags_of(script.stem) for script in (ROOT / "scripts").glob("*.py")))
    for command in (part for text in (*lines, *code) for part in text.split("&&")):
        script = re.search(r"scripts/(\w+)\.py", command)
        own = command if "albef_hf.crashtest" in command or not script else command[script.end() :]
        flags = set(re.findall(r"(?<![\w-])--([a-z]\w*)", own.split("#")[0]))
        if script or command.startswith("--"):
            known = flags_of(script[1]) if script else every
            assert flags - (known | tried if "albef_hf.crashtest" in command else known) == set(), command


def option_names() -> set[str]:
    """Every key that may stand in a configuration, at any depth."""
    methods = {base for method in METHODS.values() for base in method.__mro__ if base.__module__.startswith("ssl_")}
    loaders = (parameter for loader in BUILT_IN.values() for parameter in inspect.signature(loader).parameters)
    names = FIELDS | set(CORPUS_KEYS) | set(ENTRY_KEYS) | {"weight"} | set(loaders)
    names |= {field.name for field in dataclasses.fields(ViewRecipe)}
    return names | {name for method in methods for name in inspect.signature(method).parameters}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_keys_of_a_document_exist(path):
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"```yaml\n(.*?)```", text, re.S):
        content = yaml.safe_load(block)
        assert set(content) - FIELDS == set()
        for entry in content.get("mixture", []):
            assert set(entry) - {*CORPUS_KEYS, *ENTRY_KEYS, "weight"} == set()
    known = option_names()
    for code in commands_and_code(path)[1]:
        if not re.match(r"[a-z_]+: ?\S", code):
            continue
        for part in re.split(r", (?=[a-z_]+: )", code):
            key, value = part.split(":", 1)
            nested = re.findall(r"\w+", value) if key == "dataset_options" else []
            assert {key, *nested} - known == set(), code


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_names_of_a_document_occur_in_the_code(path):
    folders = ("albef_hf", "ssl_methods", "scripts", "configs")
    sources = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".yaml")]
    words = {word for file in sources for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    words |= {file.stem for file in sources} | set(folders)
    names = {code for code in commands_and_code(path)[1] if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", code)}
    if path == ENCODERS:  # names of transformers and timm, which the tests write themselves
        names -= set(re.findall(r"`(\w+)`", path.read_text(encoding="utf-8").split("### transformers")[1]))
    assert names - words == set()
