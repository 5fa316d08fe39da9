"""Odd flags and configs of the scripts that prepare and compare: one error that says what to do, before any work."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--columns", "answers"), "--columns answers: write it as OURS=THEIRS"),
        (("--most", 0), "--most 0: at least 1"),
        (("--most", -1), "--most -1: at least 1"),
        (("--minimum", 0), "--minimum 0: at least 1"),
    ],
)
def test_flags_of_the_answer_list(script, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        script("build_answer_list.py", "no.json", "--output", tmp_path / "list.json", *flags)


def test_the_answer_list_goes_into_a_new_folder_but_is_none(script, tmp_path):
    with pytest.raises(ValueError, match="is a folder: name a file"):
        script("build_answer_list.py", "no.json", "--output", tmp_path)
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"image": "a.png", "question": "what?", "answer": ["red", "red"]}]))
    script("build_answer_list.py", rows, "--output", tmp_path / "new ü" / "list.json")
    assert json.loads((tmp_path / "new ü" / "list.json").read_text()) == ["red"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--images", 0),
        ("--k", -1),
        ("--image_tokens", 0),
        ("--threads", 0),
        ("--max_length", 0),
        ("--mean_length", "nan"),
    ],
)
def test_flags_of_the_benchmark(script, capsys, flags):
    with pytest.raises(SystemExit):
        script("benchmark_reranking.py", *flags)
    error = capsys.readouterr().err.splitlines()[-1]
    assert flags[0] in error and "at least" in error


def compared(folder, text):
    path = folder / "compare.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("methods", [None, [], ["byol"], "byol"])
def test_methods_that_are_no_mapping(script, tmp_path, methods):
    text = yaml.safe_dump({"methods": methods, "supervised_epochs": 0, "output_dir": str(tmp_path / "out")})
    with pytest.raises(ValueError, match="methods names each method with what it sets"):
        script("compare_image_methods.py", compared(tmp_path, text))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "- a\n", "methods: {}\nmethods: {}\n"])
@pytest.mark.parametrize("name", ["compare_image_methods.py", "compare_backbones.py"])
def test_a_config_that_is_none_is_named(script, tmp_path, text, name):
    (tmp_path / "x" / "model").mkdir(parents=True)
    (tmp_path / "x" / "model" / "config.json").write_text("{}")
    config = compared(tmp_path, text)
    flags = ("--backbones", tmp_path / "x" / "model") if name == "compare_backbones.py" else ()
    with pytest.raises(ValueError, match=r"compare\.yaml"):
        script(name, config, *flags, *(("--output_dir", tmp_path / "out") if flags else ()))


def test_what_stands_there_twice_is_not_counted_twice(script, tmp_path):
    with pytest.raises(ValueError, match="--seeds: 1 stands there twice"):
        script("compare_image_methods.py", tmp_path / "no.yaml", "--seeds", 1, 2, 1)
    for flags, message in (
        (("--seeds", 3, 3), "--seeds: 3"),
        (("--tasks", "emoji_vqa", "emoji_vqa"), "--tasks: emoji"),
    ):
        with pytest.raises(ValueError, match=message):
            script("run_emoji_tasks.py", "--output_dir", tmp_path / "out", *flags)
    paths = [tmp_path / each / "byol-1" / "model" for each in ("old", "new")]
    for path in paths:
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="--backbones.*: byol-1 stands there twice"):
        script("compare_backbones.py", tmp_path / "no.yaml", "--backbones", *paths)


def test_a_run_without_evaluation_is_named(script, tmp_path):
    folder = tmp_path / "out" / "byol-1"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("")
    (folder / "config.yaml").write_text("method: byol\n")
    (folder / "log.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    text = yaml.safe_dump({"methods": {"byol": None}, "supervised_epochs": 0, "output_dir": str(tmp_path / "out")})
    with pytest.raises(ValueError, match="byol-1 was never evaluated: set evaluation_dataset"):
        script("compare_image_methods.py", compared(tmp_path, text), "--seeds", 1)
