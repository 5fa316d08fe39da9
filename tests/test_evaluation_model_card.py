"""The card of a model folder: metadata for the Hub, results beside chance, and code that runs."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from helpers import tiny_model
from huggingface_hub import parse_eval_result_entries
from transformers import BertTokenizerFast, ViTConfig, ViTImageProcessor, ViTModel

from albef_hf import AlbefProcessor
from albef_hf.evaluation import RetrievalResult
from albef_hf.reporting.model_card import DataSource, write_model_card
from albef_hf.training.loop import device_name


def make_result(k: int = 16) -> RetrievalResult:
    names = [f"{way}_r{cutoff}" for way in ("image_to_text", "text_to_image") for cutoff in (1, 5, 10)]
    metrics = dict.fromkeys([*names, "mean_recall"], 0.25)
    metrics |= {f"reranked_{name}": 0.5 for name in metrics} if k else {}
    nothing = np.zeros((4, 4))
    return RetrievalResult(
        "emoji | twitter", 4, 4, k, metrics, dict.fromkeys(metrics, 0.01), *[nothing] * 4, *[np.zeros(4)] * 2
    )


@pytest.fixture
def folders(tmp_path):
    run, model = tmp_path / "run", tmp_path / "run" / "model"
    model.mkdir(parents=True)
    config = {
        "dataset": "emoji",
        "dataset_options": {"designs": ["google", "twitter"]},
        "vision_model": "facebook/deit-small",
        "text_model": "/home/somebody/weights/minilm",
        "learning_rate": 3e-4,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (run / "versions.json").write_text(json.dumps({"torch": "2.15.0"}), encoding="utf-8")
    rows = [{"kind": "run", "method": "albef", "parameters": 1234567}, {"kind": "train", "step": 800, "loss": 1.0}]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run, model


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_metadata_is_what_the_hub_reads(folders):
    path = write_model_card(*folders, license="apache-2.0")
    assert path == folders[1] / "README.md"
    metadata = front_matter(path.read_text(encoding="utf-8"))
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "zero-shot-image-classification"
    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == ["facebook/deit-small"]
    assert "albef" in metadata["tags"]
    assert "datasets" not in metadata  # the built-in corpus has no id on the Hub
    assert "license" not in front_matter(write_model_card(*folders).read_text(encoding="utf-8"))


def test_a_corpus_of_the_hub_is_named_and_a_folder_is_not(folders):
    run, model = folders
    for dataset, expected in (("someone/pairs", ["someone/pairs"]), ("/data/private/pairs", None), ("./pairs", None)):
        (run / "config.yaml").write_text(yaml.safe_dump({"dataset": dataset}), encoding="utf-8")
        card = write_model_card(run, model).read_text(encoding="utf-8")
        assert front_matter(card).get("datasets") == expected
        assert "/data/private" not in card and "pairs\n" not in card.replace("someone/pairs", "")


def test_every_data_set_of_a_mixture_is_named(folders):
    run, model = folders
    mixture = [{"dataset": "someone/pairs", "weight": 1}, {"dataset": "/data/private/more.json"}]
    (run / "config.yaml").write_text(yaml.safe_dump({"dataset": "emoji", "mixture": mixture}), encoding="utf-8")
    card = write_model_card(run, model, sources=[]).read_text(encoding="utf-8")
    assert front_matter(card)["datasets"] == ["someone/pairs"]
    assert "[someone/pairs](https://huggingface.co/datasets/someone/pairs), local data" in card
    assert "private" not in card


@pytest.mark.parametrize("k", [0, 16])
def test_results_on_a_data_set_of_the_hub_are_entries_that_the_hub_reads(folders, k):
    run, model = folders
    write_model_card(run, model, make_result(k))
    assert not (model / ".eval_results").exists()  # the built-in corpus has no id on the Hub
    (run / "config.yaml").write_text(yaml.safe_dump({"evaluation_dataset": "someone/test"}), encoding="utf-8")
    card = write_model_card(run, model, make_result(k)).read_text(encoding="utf-8")
    assert "model-index" not in card
    entries = parse_eval_result_entries(yaml.safe_load((model / ".eval_results" / "results.yaml").read_text()))
    assert {entry.task_id for entry in entries} == set(make_result(0).metrics)
    for entry in entries:
        assert entry.dataset_id == "someone/test" and entry.value == (50.0 if k else 25.0)
        assert ("top 16 re-ranked" in entry.notes) == (k == 16)


def test_curves_and_hardware_are_shown_where_they_are_known(folders):
    run, model = folders
    plain = write_model_card(run, model).read_text(encoding="utf-8")
    assert "hardware" not in plain and "curves.png" not in plain and "training time" not in plain
    (run / "curves.png").write_bytes(b"picture")
    device = device_name(torch.device("cpu"))
    row = {"kind": "run", "method": "albef", "devices": 2, "device": device, "start": 0}
    rows = [row, {"kind": "train", "step": 800, "loss": 1.0, "seconds": 61.4}]
    (run / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    card = write_model_card(run, model).read_text(encoding="utf-8")
    assert f"| hardware | 2 x {device} |" in card and "| training time | 61 s |" in card
    assert "](curves.png)" in card and (model / "curves.png").read_bytes() == b"picture"
    row["start"] = 400  # only the time since then is known
    (run / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    assert "training time" not in write_model_card(run, model).read_text(encoding="utf-8")


@pytest.mark.parametrize("channels", [3, 1])
def test_a_backbone_has_a_card_of_the_same_form(folders, channels, capsys, monkeypatch):
    run, model = folders
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=32, num_channels=channels
    )
    ViTModel(config).save_pretrained(model)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(model)
    (run / "config.yaml").write_text(yaml.safe_dump({"dataset": "emoji", "vision_pooling": "mean"}), encoding="utf-8")
    (run / "log.jsonl").write_text(json.dumps({"kind": "run", "method": "byol"}) + "\n", encoding="utf-8")
    card = write_model_card(run, model, probes={"knn_20": 0.5}).read_text(encoding="utf-8")
    metadata = front_matter(card)
    assert metadata["pipeline_tag"] == "image-feature-extraction" and metadata["tags"] == ["byol"]
    assert "'mean' of its tokens" in card and "| knn_20 | 50.00% |" in card and "grill2020bootstrap" in card
    assert "Noto Emoji" in card and "em-keyboard" not in card and "ALBEF" not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run)
    exec(compile(code, "card", "exec"), {})
    assert "torch.Size([1, 5, 12])" in capsys.readouterr().out


def test_results_stand_beside_chance(folders):
    card = write_model_card(*folders, make_result()).read_text(encoding="utf-8")
    assert "|  | contrastive | top 16 re-ranked | chance |" in card
    assert "| image to text R@1 | 25.00% | 50.00% | 1.00% |" in card
    assert "emoji \\| twitter" in card
    plain = write_model_card(*folders, make_result(k=0)).read_text(encoding="utf-8")
    assert "| text to image R@10 | 25.00% | 1.00% |" in plain and "re-ranked" not in plain


def test_the_recipe_and_versions_are_there_and_no_path_of_this_machine(folders):
    card = write_model_card(*folders).read_text(encoding="utf-8")
    for row in (
        "| trainable parameters | 1,234,567 |",
        "| optimizer steps done | 800 |",
        "| peak learning rate | 0.0003 |",
        "| text encoder from | minilm |",
        "| torch | 2.15.0 |",
    ):
        assert row in card
    assert "/home/somebody" not in card and "@inproceedings{li2021align" in card


def test_the_built_in_corpus_is_attributed(folders):
    run, model = folders
    card = write_model_card(run, model).read_text(encoding="utf-8")
    assert "| [Noto Emoji](https://github.com/googlefonts/noto-emoji) | Apache-2.0 |" in card
    assert "| [Twemoji](https://github.com/twitter/twemoji) | CC BY 4.0 |" in card
    config = {"dataset": "emoji", "dataset_options": {"designs": ["windows"]}}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    card = write_model_card(run, model).read_text(encoding="utf-8")
    assert "| windows emoji | proprietary |" in card and "Twemoji" not in card
    own = write_model_card(run, model, sources=[DataSource("my pictures", "CC0", "me")]).read_text(encoding="utf-8")
    assert "| my pictures | CC0 | me |" in own and "windows" not in own


@pytest.mark.parametrize("name", ["config.yaml", "versions.json", "log.jsonl"])
def test_a_damaged_file_of_a_run_is_named(folders, name):
    run, model = folders
    (run / name).write_text("[1, 2\n{", encoding="utf-8")
    with pytest.raises(ValueError, match=name):
        write_model_card(run, model)


def test_an_empty_run_still_has_a_card(tmp_path):
    card = write_model_card(tmp_path, tmp_path).read_text(encoding="utf-8")
    assert front_matter(card)["library_name"] == "transformers" and "Not recorded." in card


@pytest.mark.parametrize("with_code", [False, True])
def test_the_usage_code_is_for_what_the_folder_holds(folders, with_code):
    run, model = folders
    if with_code:
        (model / "modeling_albef.py").touch()
    (code,) = re.findall(r"```python\n(.*?)```", write_model_card(run, model).read_text(encoding="utf-8"), re.DOTALL)
    compile(code, "card", "exec")
    assert ("trust_remote_code=True" in code) == with_code
    assert ("import albef_hf" in code) != with_code
    assert '"model"' in code
    named = write_model_card(run, model, repository="someone/albef-emoji").read_text(encoding="utf-8")
    assert 'name = "someone/albef-emoji"' in named and "\n# albef-emoji\n" in named


def test_the_usage_code_runs_as_printed(folders, tmp_path):
    run, model = folders
    letters = [chr(ord("a") + index) for index in range(26)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    size = {"height": 32, "width": 32}
    tiny_model().save_pretrained(model)
    AlbefProcessor(ViTImageProcessor(size=size), BertTokenizerFast(vocab=vocabulary)).save_pretrained(model)
    (code,) = re.findall(r"```python\n(.*?)```", write_model_card(run, model).read_text(encoding="utf-8"), re.DOTALL)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=run, env=environment, capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"tensor\(\[\[0\.\d+, 0\.\d+\]\]\)", finished.stdout)
