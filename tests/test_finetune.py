"""Every downstream task through its script: a run, its folder, resuming, evaluating what was saved, and its errors."""

import csv
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import tiny_model
from PIL import Image
from safetensors.torch import load_file

from albef_hf import AlbefProcessor
from albef_hf.reporting import report
from albef_hf.tasks.task import TASK_KINDS
from albef_hf.training.arguments import ModelArguments, parse_arguments
from albef_hf.training.initialization import build_task_model, load_tokenizer, load_trained_model
from albef_hf.training.task_arguments import TASK_GROUPS

ROOT = Path(__file__).parent.parent
COLOURS = ("red", "green", "blue", "yellow")
TASKS = list(TASK_KINDS)
COMMON = {
    "image_size": 32,
    "queue_size": 5,
    "validation": {"dataset": "validation.json"},
    "tests": {"test": {"dataset": "test.json"}},
    "batch_size": 4,
    "evaluation_batch_size": 4,
    "max_steps": 4,
    "save_every": 2,
    "evaluate_every": 2,
    "log_every": 1,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
    "rerank": 2,
    "threads": 1,
    "report_to": "none",
}


def row(task, number, name):
    """Row of a list as the publication writes it."""
    colour = COLOURS[number % 4]
    image = f"{colour}.png"
    rows = {
        "retrieval": {"image": image, "caption": [f"a {colour} square", colour], "image_id": colour},
        "question_answering": {
            "image": image,
            "question": "what colour is it?",
            "answer": [colour] * 10,
            "question_id": 100 + number,
            "question_type": "what colour",
        },
        "visual_reasoning": {
            "images": [image, "red.png"],
            "sentence": "both are red",
            "label": str(number % 4 == 0),
            "identifier": f"{name}-{number}",
        },
        "visual_entailment": {
            "image": image,
            "sentence": "it is red",
            "label": "entailment" if number % 4 == 0 else "contradiction" if number % 2 else "neutral",
        },
        "grounding": {
            "image": image,
            "text": f"the {colour} one",
            "bbox": [0, 0, 16, 16],
            "proposals": [[0, 0, 16, 16], [16, 16, 16, 16]],
        },
    }
    return rows["retrieval" if task == "text_assignment" else task]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny model of pre-training, as a folder."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = load_tokenizer("wordpiece")
    tiny_model(text_config={"vocab_size": len(tokenizer), "max_position_embeddings": 40}).save_pretrained(folder)
    AlbefProcessor.from_parts(tokenizer, image_size=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def configs(tmp_path_factory, start):
    """A configuration of each task, by name; data sets are lists beside it."""
    found = {}
    for task in TASKS:
        folder = tmp_path_factory.mktemp(task)
        for colour in COLOURS:
            Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
        for name, count in (("train", 12), ("validation", 7), ("test", 6)):
            rows = [row(task, number, name) for number in range(count)]
            if TASK_KINDS[task].rows == "retrieval":
                rows = rows[:4]
                rows *= 3 if name == "train" else 1
            (folder / f"{name}.json").write_text(json.dumps(rows))
        values = {**COMMON, "task": task, "model_path": str(start), "dataset": str(folder / "train.json")}
        values["validation"] = {"dataset": str(folder / "validation.json")}
        values["tests"] = {"test": {"dataset": str(folder / "test.json")}}
        found[task] = folder / "run.yaml"
        found[task].write_text(yaml.safe_dump(values))
    return found


def script(task):
    return "finetune_retrieval.py" if task == "retrieval" else "finetune.py"


def run_here(name, config, **flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [name, str(config), *(f"--{key}={value}" for key, value in flags.items())])
        runpy.run_path(f"scripts/{name}", run_name="__main__")


@pytest.fixture(scope="module")
def finished(configs, tmp_path_factory):
    """The run folder of a task; each is made when it is first asked for."""
    made = {}

    def folder_of(task):
        if task not in made:
            made[task] = tmp_path_factory.mktemp("runs") / task
            run_here(script(task), configs[task], output_dir=made[task])
        return made[task]

    return folder_of


def logged(folder, kind):
    return [row for row in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if row["kind"] == kind]


@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_a_folder_that_explains_itself(finished, task):
    folder = finished(task)
    for name in ("config.yaml", "versions.json", "curves.png", "results.json", "report.html", "model/README.md"):
        assert (folder / name).stat().st_size > 0, name
    assert [row["step"] for row in logged(folder, "train")] == [1, 2, 3, 4]
    validated = {row["step"]: row["metrics"][TASK_KINDS[task].metric] for row in logged(folder, "evaluation")}
    assert sorted(validated) == [2, 4]
    results = json.loads((folder / "results.json").read_text())
    assert results["chosen"]["value"] == max(validated.values())
    assert results["chosen"]["step"] == min(step for step in validated if validated[step] == max(validated.values()))
    assert results["tests"]["test"].keys() >= {"chosen", "last", "baselines"}
    page = (folder / "report.html").read_text()
    parts = {
        "retrieval": ("Heat maps", "Gallery", "Retrieval: test"),
        "question_answering": ("Examples: test", "Accuracy by type of question", "people: red"),
        "visual_reasoning": ("Examples: test", "Confusion: test"),
        "visual_entailment": ("Examples: test", "Confusion: test"),
        "text_assignment": ("Confusion: test",),
        "grounding": ("Examples: test", "a box at random"),
    }
    for part in ("Results", "chosen weights", "last weights", *parts[task]):
        assert part in page, part


def test_predictions_are_what_the_servers_take(finished):
    answers = json.loads((finished("question_answering") / "predictions" / "test.json").read_text())
    assert [answer.keys() for answer in answers] == [{"question_id", "answer"}] * 6
    assert [answer["question_id"] for answer in answers] == list(range(100, 106))
    assert {answer["answer"] for answer in answers} <= set(COLOURS)
    with (finished("visual_reasoning") / "predictions" / "test.csv").open(newline="") as handle:
        rows = list(csv.reader(handle))
    assert [row[0] for row in rows] == [f"test-{number}" for number in range(6)]
    assert {row[1] for row in rows} <= {"True", "False"}
    lines = (finished("visual_entailment") / "predictions" / "test.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["prediction"] in ("contradiction", "neutral", "entailment")
    ranks = json.loads((finished("retrieval") / "predictions" / "test.json").read_text())
    assert len(ranks["image_to_text"]) == 4 and len(ranks["text_ranks"]) == 8
    boxes = (finished("grounding") / "predictions" / "test.jsonl").read_text().splitlines()
    assert len(boxes) == 6 and len(json.loads(boxes[0])["box"]) == 4


@pytest.mark.parametrize("task", TASKS)
def test_stopped_and_resumed_equals_straight_bit_for_bit(finished, configs, task, tmp_path, monkeypatch):
    straight, stopped = finished(task), tmp_path / "stopped"
    shutil.copytree(straight, stopped)  # as if it had stopped after its first checkpoint
    shutil.rmtree(stopped / "checkpoints" / "step-00000004")
    (stopped / "results.json").unlink()
    monkeypatch.setattr(report, "plot_curves", lambda *_: None)
    run_here(script(task), configs[task], output_dir=stopped, resume=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(f / "checkpoints" / "step-00000004" / file) for f in (straight, stopped))
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == [], file
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (straight, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (straight / "results.json").read_text() == (stopped / "results.json").read_text()
    losses = [[row["loss"] for row in logged(folder, "train")] for folder in (straight, stopped)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.parametrize("task", TASKS)
def test_a_saved_model_gives_the_figures_of_its_run(finished, configs, task, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "plot_curves", lambda *_: None)
    run_here("evaluate.py", configs[task], model=finished(task) / "model", output_dir=tmp_path)
    found = json.loads((tmp_path / "evaluated" / "results.json").read_text())["tests"]["test"]
    expected = json.loads((finished(task) / "results.json").read_text())["tests"]["test"]
    assert found["metrics"] == expected["chosen"] and found["baselines"] == expected["baselines"]
    for path in (finished(task) / "predictions").glob("*"):
        assert path.read_bytes() == (tmp_path / "evaluated" / "predictions" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("task", TASKS)
def test_the_card_shows_code_that_runs(finished, task, monkeypatch, capsys):
    monkeypatch.chdir(finished(task))
    card = (finished(task) / "model" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.S)
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_best_weights_survive_worse_ones(tmp_path):
    from albef_hf.training.best_weights import RECORD, Chosen

    model = tiny_model()
    processor = AlbefProcessor.from_parts(load_tokenizer("wordpiece"), image_size=32)

    def temperature():
        return float(load_file(tmp_path / "model" / "model.safetensors")["albef.temperature"])

    chosen = Chosen(tmp_path, "accuracy", goes_on=False)
    for step, accuracy in ((1, 0.3), (2, 0.5), (3, 0.5), (4, 0.4)):
        torch.nn.init.constant_(model.albef.temperature, step / 10)
        chosen.offer(model, processor, step, {"accuracy": accuracy}, writes=True)
    assert temperature() == pytest.approx(0.2)
    again = Chosen(tmp_path, "accuracy", goes_on=True)
    assert again.best == {"step": 2, "metric": "accuracy", "value": 0.5}
    again.offer(model, processor, 5, {"accuracy": 0.45}, writes=True)
    assert temperature() == pytest.approx(0.2)
    again.offer(model, processor, 6, {"accuracy": 0.6}, writes=True)
    assert temperature() == pytest.approx(0.4) and json.loads((tmp_path / "model" / RECORD).read_text())["step"] == 6
    assert Chosen(tmp_path, "accuracy", goes_on=False).best is None
    with pytest.raises(ValueError, match="chosen_by 'acuracy' is none of the metrics: accuracy"):
        Chosen(tmp_path, "acuracy", goes_on=False).offer(model, processor, 1, {"accuracy": 0.1}, writes=True)


# -- starting a model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_larger_picture_resizes_the_position_table_and_its_copy(start, task):
    kind = TASK_KINDS[task].model
    own, _ = build_task_model(kind, ModelArguments(model_path=str(start), image_size=32, queue_size=5))
    model, processor = build_task_model(kind, ModelArguments(model_path=str(start), image_size=64, queue_size=5))
    assert processor.image_size == 64 and "resized to pictures of 64 pixels" in model.loading_report
    tables = {name: table for name, table in model.named_parameters() if name.endswith("position_embeddings")}
    pictures = torch.randn(2, 3, 64, 64)
    for name, table in tables.items():
        assert table.shape[1] == 17, name
    if hasattr(model, "momentum_copy"):
        assert len(tables) == 2 and torch.equal(*tables.values())
    states = [each.eval().albef.vision_model(pictures).tokens for each in (own, model)]  # the first interpolates
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)


def test_from_scratch_has_the_architecture_of_the_configuration():
    text = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    options = {"vision_config": vision, "vision_pooling": "mean", "image_size": 32, "projection_dim": 8}
    options |= {"queue_size": 3, "text_config": {**text, "fusion_layer": 2, "max_position_embeddings": 32}}
    model, _ = build_task_model(TASK_KINDS["visual_reasoning"].model, ModelArguments(**options))
    assert model.config.text_config.num_hidden_layers == 6 and model.config.vision_config.model_type == "resnet"
    for module, copied in ((m, getattr(model.momentum_copy, n)) for n, m in model.online_modules().items()):
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), copied.parameters(), strict=True))


def test_weights_that_do_not_arrive_are_named(start, finished, tmp_path):
    with pytest.raises(ValueError, match="has not been trained as AlbefForVisualEntailment: it lacks classifier"):
        load_trained_model(TASK_KINDS["visual_entailment"].model, str(start))
    with pytest.raises(ValueError, match="is no model folder"):
        build_task_model(TASK_KINDS["retrieval"].model, ModelArguments(model_path=str(tmp_path)))
    with pytest.raises(ValueError, match="lacks weights of AlbefForImageTextRetrieval: albef.temperature"):
        # a model of question answering has no contrast
        path = str(finished("question_answering") / "model")
        build_task_model(TASK_KINDS["retrieval"].model, ModelArguments(model_path=path, image_size=32))


# -- what is wrong is named -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("retrieval", {"validaton": "{}"}, "unknown flag --validaton; did you mean 'validation'"),
        ("retrieval", {"task": "question_answering"}, "unknown task 'question_answering'; there are: retrieval, gro"),
        ("visual_entailment", {"task": "visual_entialment"}, "did you mean 'visual_entailment'"),
        ("retrieval", {"caption_column": "text"}, "caption_column is of pre-training; for a task use columns: "),
        ("retrieval", {"columns": "{captions: captoin}"}, "no column 'captoin'; did you mean 'caption'"),
        ("retrieval", {"columns": "{caption: x}"}, "unknown key 'caption'; did you mean 'captions'"),
        ("retrieval", {"validation": "{spilt: x}"}, "validation: unknown key 'spilt'; did you mean 'split'"),
        ("retrieval", {"tests": "{test: other}"}, "test must say what differs from training"),
        (
            "retrieval",
            {"rerank": "50"},
            "k = 50 candidates of each query cannot be re-ranked: the gallery of images has",
        ),
        ("retrieval", {"chosen_by": "reranked_mean_recal"}, "did you mean 'reranked_mean_recall'"),
        ("grounding", {"columns": "{box: bboxes}"}, "no column 'bboxes'; did you mean 'bbox'"),
        ("retrieval", {"dataset": "./missing.json"}, "no such file: ./missing.json"),
        ("retrieval", {"model_path": "runs/nowhere/model"}, "'runs/nowhere/model' is no model folder"),
        ("question_answering", {"answer_list": "nowhere.json"}, "nowhere.json is not an answer list"),
    ],
)
def test_wrong_configurations_are_named(configs, tmp_path, task, flags, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_here(script(task), configs[task], output_dir=tmp_path, **flags)


def test_a_model_that_was_not_trained_for_the_task_is_not_measured(configs, start, tmp_path):
    with pytest.raises(ValueError, match="has not been trained as AlbefForQuestionAnswering"):
        run_here("evaluate.py", configs["question_answering"], model=start, output_dir=tmp_path)
    with pytest.raises(ValueError, match="unknown retrieval protocol 'coco-fine-tunde'; did you mean 'coco-fine-tune"):
        run_here("evaluate.py", configs["retrieval"], model=start, output_dir=tmp_path, protocol="coco-fine-tunde")
    with pytest.raises(ValueError, match="of retrieval, and the task is grounding"):
        run_here("evaluate.py", configs["grounding"], model=start, output_dir=tmp_path, protocol="coco-fine-tuned")
    with pytest.raises(
        ValueError, match="k = 256 candidates of each query cannot be re-ranked: the gallery of images"
    ):
        run_here("evaluate.py", configs["retrieval"], model=start, output_dir=tmp_path, protocol="coco-fine-tuned")


def test_a_dry_run_draws_what_is_asked(configs, tmp_path, capsys):
    for task in ("visual_reasoning", "question_answering"):
        run_here("finetune.py", configs[task], output_dir=tmp_path / task, dry_run=True)
        assert (tmp_path / task / "first_batch.png").stat().st_size > 0
        assert not (tmp_path / task / "model").exists()
    assert "copied from the layer before" in capsys.readouterr().out


def test_the_resolved_configuration_can_be_run_again(finished):
    for task in ("retrieval", "question_answering"):
        groups = parse_arguments([str(finished(task) / "config.yaml")], TASK_GROUPS)
        assert groups[-1].task == task and groups[-1].tests.keys() == {"test"}


# -- proof tasks ------------------------------------------------------------------------------------------------------


def test_proof_tasks_that_have_been_run_are_not_run_again(tmp_path, monkeypatch):
    script = runpy.run_path(str(ROOT / "scripts" / "run_proof_tasks.py"))
    started = []

    def run_task(name, model, seed, folder, flags):
        started.append((name, model, seed, flags))
        folder.mkdir(parents=True)
        accuracy = {"null": 0.25, "runs/emoji/model": 0.5}[model] + seed / 100
        test = {
            "chosen": {"accuracy": accuracy},
            "last": {"accuracy": 0.9},
            "baselines": {"most frequent class": 0.34},
        }
        other = test | {"chosen": {"accuracy": accuracy / 2}}
        (folder / "results.json").write_text(json.dumps({"tests": {"test": test, "other_design": other}}))

    monkeypatch.setitem(script["measure"].__globals__, "run_task", run_task)
    starts = {"pre-trained": "runs/emoji/model", "from scratch": "null"}
    for _ in range(2):
        found = script["measure"](["emoji_entailment"], starts, [1, 3], tmp_path, ["--max_steps", "5"])
    assert len(started) == 4 and started[0] == ("emoji_entailment", "runs/emoji/model", 1, ["--max_steps", "5"])
    assert script["table"](found).splitlines()[-2:] == [
        "| entailment, test | 52.0 ± 1.4 | 27.0 ± 1.4 | most frequent class 34.0 |",
        "| entailment, other_design | 26.0 ± 0.7 | 13.5 ± 0.7 | most frequent class 34.0 |",
    ]


def test_proof_tasks_name_configs_that_are_there():
    script = runpy.run_path(str(ROOT / "scripts" / "run_proof_tasks.py"))
    for name, metric in script["TASKS"].items():
        _, data, arguments, task = parse_arguments([str(ROOT / "configs" / f"{name}.yaml")], TASK_GROUPS)
        assert TASK_KINDS[task.task].metric == metric and task.tests.keys() == {"test", "other_design"}
        assert task.tests["other_design"]["options"]["designs"] == ["windows"]
        assert data.dataset_options["part"] == "train" and arguments.output_dir == f"runs/{name}"
