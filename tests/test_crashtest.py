"""The crash test: its short form passes, it notices planted faults, and it leaves alone what others made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from albef_hf.crashtest.__main__ import main

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
