"""The crash test: its short form passes, it notices planted faults, and it leaves alone what others made."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from training_helpers import trained

from albef_hf.crashtest.command import main
from albef_hf.crashtest.compare import differences
from albef_hf.crashtest.damage import DAMAGES
from albef_hf.data.hashing import file_digest
from albef_hf.training.checkpoints import Damaged, check_checkpoint, saved_checkpoints

WORKER = Path(__file__).parent / "crashtest_worker.py"
NAMED = {"pointer": "reload: from step-00000006: model: queue.cursor", "seeds": "rank 0: other random numbers"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What it printed without and with each planted fault, by the name of the fault."""
    folder = tmp_path_factory.mktemp("crashtest")
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent.parent)}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (folder / "mine").exists()
    return {path.stem: path.read_text() for path in folder.glob("*.txt")}


def test_a_run_survives_the_short_form(printed):
    text = printed["none"]
    assert text.endswith("exit 0\n") and "verdict: passed" in text, text
    for group in (
        "kills",
        "exits at file calls",
        "ENOSPC",
        "EIO",
        "signals",
        "damaged",
        "poisoned",
        "changed",
        "controls",
    ):
        assert f"\n{group}" in text or f" {group}" in text, group
    assert "6 kills (" in text and "not covered:" in text


@pytest.mark.parametrize("fault", list(NAMED))
def test_a_planted_fault_is_noticed_and_named(printed, fault):
    assert printed[fault].endswith("exit 1\n"), printed[fault]
    assert "verdict: FAILED" in printed[fault] and NAMED[fault] in printed[fault]


def test_what_others_made_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights").write_text("precious")
    with pytest.raises(ValueError, match="holds something that is not from this test: set --folder"):
        main(["--folder", str(tmp_path / "mine"), str(WORKER)])
    assert (tmp_path / "mine" / "weights").read_text() == "precious"
    with pytest.raises(ValueError, match="--only kill: there are reload, kills"):
        main(["--only", "kill", str(WORKER)])
    with pytest.raises(ValueError, match="is no script: give, e.g., scripts/pretrain.py"):
        main(["configs/quickstart.yaml"])


# -- what the comparison notices --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run. Tests must not change it."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    trained(folder, [1.0] * 4, log_every=2, save_every=2)
    (folder / "report.html").write_text(
        'Steps: 4\n<div class="tile"><b>2 s</b><span>training time</span></div>\n'
        "<section>\n<h2>Warnings</h2>\nnone</section>\nworkers: 0\n"
    )
    (folder / "result.txt").write_text("0.5")
    return folder


def within(file, change):
    """Change a file of the last checkpoint, given its content, and its manifest with it."""

    def changed(folder):
        path = folder / "checkpoints" / "step-00000004" / file
        content = json.loads(path.read_text()) if path.suffix == ".json" else load_file(path)
        change(content)
        if path.suffix == ".json":
            path.write_text(json.dumps(content))
        else:
            save_file(content, path)
        entries = json.loads((path.parent / "manifest.json").read_text())
        entries[file] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        (path.parent / "manifest.json").write_text(json.dumps(entries))

    return changed


def text(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


NOTICED = {
    "model: queue.cursor": within("model.safetensors", lambda state: state["queue.cursor"].add_(1)),
    "model: online.0.bias": within("model.safetensors", lambda state: state["online.0.bias"][0].neg_()),
    "model: copy.updates": within("model.safetensors", lambda state: state.pop("copy.updates")),
    "optimizer: online.0.weight/exp_avg": within(
        "optimizer.safetensors", lambda state: state["online.0.weight/exp_avg"][1].mul_(1 + 1e-6)
    ),
    "model: queue.ids": within(
        "model.safetensors", lambda state: state.update({"queue.ids": state["queue.ids"].int()})
    ),
    "progress: guard.in_row": within("progress.json", lambda progress: progress["guard"].pop("in_row")),
    "progress: scaler.scale": within("progress.json", lambda progress: progress.update(scaler={"scale": 2.0})),
    "the last checkpoint is step-00000002, not step-00000004": lambda folder: shutil.rmtree(
        folder / "checkpoints" / "step-00000004"
    ),
    "log: train row 2 (2 rows, not 2)": text("log.jsonl", '"step": 4, "epoch"', '"step": 4, "era"'),
    "log: train row 3 (3 rows, not 2)": lambda folder: (folder / "log.jsonl").write_text(
        (folder / "log.jsonl").read_text() + '{"kind": "train", "step": 6}\n'
    ),
    "log: warning row 1 (1 rows, not 0)": lambda folder: (folder / "log.jsonl").write_text(
        (folder / "log.jsonl").read_text() + '{"kind": "warning", "step": 4, "text": "hot"}\n'
    ),
    "report.html differs": text("report.html", "Steps: 4", "Steps: 5"),
    "result.txt differs": text("result.txt", "0.5", "0.6"),
    "result.txt is missing": lambda folder: (folder / "result.txt").unlink(),
    ".model.incomplete is left over": lambda folder: (folder / ".model.incomplete").mkdir(),
}


@pytest.mark.parametrize("named", list(NOTICED))
def test_every_difference_is_noticed_and_named(undisturbed, tmp_path, named):
    shutil.copytree(undisturbed, tmp_path / "run")
    NOTICED[named](tmp_path / "run")
    assert differences(undisturbed, tmp_path / "run") == [named]


def test_times_and_the_number_of_workers_are_no_difference(undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for change in (text("report.html", "2 s", "9 s"), text("report.html", "workers: 0", "workers: 2")):
        change(run)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (run / "log.jsonl").write_text("".join(json.dumps(row | {"seconds": 9.0}) + "\n" for row in rows))
    assert differences(undisturbed, run) == []
    text("report.html", "none", "the report failed")(run)
    assert differences(undisturbed, run) == ["report.html differs"]
    assert differences(undisturbed, run, disturbed=True) == []


@pytest.mark.parametrize("what", list(DAMAGES))
def test_every_damage_is_one(undisturbed, tmp_path, what):
    shutil.copytree(undisturbed / "checkpoints", tmp_path / "checkpoints")
    (_, newest) = saved_checkpoints(tmp_path / "checkpoints")
    DAMAGES[what](newest)
    with pytest.raises(Damaged):
        check_checkpoint(newest)
