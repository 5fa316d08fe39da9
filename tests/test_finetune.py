"""Every downstream task through its script: a run, its folder, resuming, evaluating the saved model, and errors."""

import csv
import json
import re
import shutil

import pytest
import torch
from helpers import tiny_model
from safetensors.torch import load_file
from task_cases import CASES, COLORS, logged, run_script, write_config

from albef_hf import AlbefProcessor
from albef_hf.reporting import report
from albef_hf.tasks import TASKS
from albef_hf.tasks.visual_entailment import VisualEntailment
from albef_hf.training.arguments import parse_arguments
from albef_hf.training.initialization import load_tokenizer
from albef_hf.training.task_arguments import TASK_GROUPS


@pytest.fixture(scope="module")
def configs(tmp_path_factory, model_folder):
    """A configuration of each task, by name."""
    return {task: write_config(task, tmp_path_factory.mktemp(task), model_folder) for task in TASKS}


def script(task):
    return "finetune_retrieval.py" if task == "retrieval" else "finetune.py"


@pytest.fixture(scope="module")
def finished(configs, tmp_path_factory):
    """The finished run folder of a task; each is made when it is first needed."""
    made = {}

    def folder_of(task):
        if task not in made:
            made[task] = tmp_path_factory.mktemp("runs") / task
            run_script(script(task), configs[task], output_dir=made[task])
        return made[task]

    return folder_of


@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_a_folder_that_explains_itself(finished, task):
    folder = finished(task)
    for name in ("config.yaml", "versions.json", "curves.png", "results.json", "report.html", "model/README.md"):
        assert (folder / name).stat().st_size > 0, name
    assert "](curves.png)" in (folder / "model" / "README.md").read_text()
    assert [row["step"] for row in logged(folder, "train")] == [1, 2, 3, 4]
    validated = {row["step"]: row["metrics"][TASKS[task].metric] for row in logged(folder, "evaluation")}
    assert sorted(validated) == [2, 4]
    results = json.loads((folder / "results.json").read_text())
    assert results["chosen"]["value"] == max(validated.values())
    assert results["chosen"]["step"] == min(step for step in validated if validated[step] == max(validated.values()))
    assert results["tests"]["test"].keys() >= {"chosen", "last", "baselines"}
    page = (folder / "report.html").read_text()
    assert sorted(path.name for path in (folder / "predictions").iterdir()) == list(CASES[task].predictions)
    for part in ("Results", "chosen weights", "last weights", *CASES[task].report):
        assert part in page, part


def test_predictions_are_what_the_servers_take(finished):
    answers = json.loads((finished("question_answering") / "predictions" / "test.json").read_text())
    assert [answer.keys() for answer in answers] == [{"question_id", "answer"}] * 6
    assert [answer["question_id"] for answer in answers] == list(range(100, 106))
    assert {answer["answer"] for answer in answers} <= set(COLORS)
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
    run_script(script(task), configs[task], output_dir=stopped, resume=True)
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
    run_script("evaluate.py", configs[task], model=finished(task) / "model", output_dir=tmp_path)
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

    chosen = Chosen(tmp_path, "accuracy", resumed=False)
    for step, accuracy in ((1, 0.3), (2, 0.5), (3, 0.5), (4, 0.4)):
        torch.nn.init.constant_(model.albef.temperature, step / 10)
        chosen.offer(model, processor, step, {"accuracy": accuracy}, writes=True)
    assert temperature() == pytest.approx(0.2)
    again = Chosen(tmp_path, "accuracy", resumed=True)
    assert again.best == {"step": 2, "metric": "accuracy", "value": 0.5}
    again.offer(model, processor, 5, {"accuracy": 0.45}, writes=True)
    assert temperature() == pytest.approx(0.2)
    again.offer(model, processor, 6, {"accuracy": 0.6}, writes=True)
    assert temperature() == pytest.approx(0.4) and json.loads((tmp_path / "model" / RECORD).read_text())["step"] == 6
    assert Chosen(tmp_path, "accuracy", resumed=False).best is None
    with pytest.raises(ValueError, match="chosen_by 'acuracy' is none of the metrics: accuracy"):
        Chosen(tmp_path, "acuracy", resumed=False).offer(model, processor, 1, {"accuracy": 0.1}, writes=True)


@pytest.mark.parametrize("broken", ["validation", "test"])
def test_a_measurement_that_fails_after_training_costs_a_warning_and_is_made_again(
    finished, configs, tmp_path, capsys, monkeypatch, broken
):
    measure, folder, task = VisualEntailment.measure, tmp_path / "run", "visual_entailment"

    def failing(self, model, rows, name):
        if name == broken:
            raise OSError("no such picture")
        return measure(self, model, rows, name)

    with monkeypatch.context() as patch:
        patch.setattr(VisualEntailment, "measure", failing)
        run_script(script(task), configs[task], output_dir=folder, evaluate_every=0)
    printed = capsys.readouterr().out
    assert printed.count("failed") == 1
    assert f"{broken} failed: OSError: no such picture. The trained weights are saved; --resume" in printed
    assert (folder / "model" / "model.safetensors").exists()
    run_script(script(task), configs[task], output_dir=folder, evaluate_every=0, resume=True)
    assert "failed" not in capsys.readouterr().out + (folder / "report.html").read_text()
    results, expected = (json.loads((each / "results.json").read_text()) for each in (folder, finished(task)))
    (row,) = logged(folder, "evaluation")
    assert results["chosen"] == {"step": 4, "metric": "accuracy", "value": row["metrics"]["accuracy"]}
    assert results["tests"]["test"]["last"] == expected["tests"]["test"]["last"]


# -- what is wrong is named -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("retrieval", {"validaton": "{}"}, "unknown flag --validaton; did you mean 'validation'"),
        ("retrieval", {"task": "question_answering"}, "unknown task 'question_answering'; there are: retrieval, gro"),
        ("visual_entailment", {"task": "visual_entialment"}, "did you mean 'visual_entailment'"),
        ("retrieval", {"caption_column": "text"}, "caption_column is for pre-training; for a task use columns: "),
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
        ("retrieval", {"model_path": "runs/nowhere/model"}, "'runs/nowhere/model' is neither a model folder"),
        ("question_answering", {"answer_list": "nowhere.json"}, "nowhere.json is not an answer list"),
    ],
)
def test_wrong_configurations_are_named(configs, tmp_path, task, flags, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_script(script(task), configs[task], output_dir=tmp_path, **flags)


def test_a_model_that_was_not_trained_for_the_task_is_not_measured(configs, model_folder, tmp_path):
    with pytest.raises(ValueError, match="has not been trained as AlbefForQuestionAnswering"):
        run_script("evaluate.py", configs["question_answering"], model=model_folder, output_dir=tmp_path)
    with pytest.raises(ValueError, match="unknown retrieval protocol 'coco-fine-tunde'; did you mean 'coco-fine-tune"):
        run_script(
            "evaluate.py", configs["retrieval"], model=model_folder, output_dir=tmp_path, protocol="coco-fine-tunde"
        )
    with pytest.raises(ValueError, match="for retrieval, but the task is grounding"):
        run_script(
            "evaluate.py", configs["grounding"], model=model_folder, output_dir=tmp_path, protocol="coco-fine-tuned"
        )
    with pytest.raises(
        ValueError, match="k = 256 candidates of each query cannot be re-ranked: the gallery of images"
    ):
        run_script(
            "evaluate.py", configs["retrieval"], model=model_folder, output_dir=tmp_path, protocol="coco-fine-tuned"
        )


def test_a_dry_run_draws_what_is_asked(configs, tmp_path, capsys):
    for task in ("visual_reasoning", "question_answering"):
        run_script("finetune.py", configs[task], output_dir=tmp_path / task, dry_run=True)
        assert (tmp_path / task / "first_batch.png").stat().st_size > 0
        assert not (tmp_path / task / "model").exists()
    assert "copied from the layer before" in capsys.readouterr().out


def test_the_resolved_configuration_can_be_run_again(finished):
    for task in ("retrieval", "question_answering"):
        groups = parse_arguments([str(finished(task) / "config.yaml")], TASK_GROUPS)
        assert groups[-1].task == task and groups[-1].tests.keys() == {"test"}
