"""Uploads contain the model, its code and its card, and nothing private."""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers import tiny_model
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from albef_hf import AlbefForPreTraining
from albef_hf.data.arguments import DataArguments
from albef_hf.remote_code import FILES
from albef_hf.reporting.model_card import write_model_card
from albef_hf.reporting.publishing import stage
from albef_hf.training.arguments import ModelArguments, TrainingArguments, resolved
from albef_hf.training.checkpoints import save_checkpoint

ROOT = Path(__file__).parent.parent
TOKEN, SECRET = "hf_" + "AbCdEfGh" * 4, "correct-horse-battery"
DATA = "/mnt/zqclinic/patients"
CANARIES = (TOKEN, SECRET, DATA, "zqclinic", "zqward", "exp_avg")


@pytest.fixture
def run(tmp_path, model_folder, monkeypatch):
    """A run folder full of contents that must not be uploaded."""
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    folder = tmp_path / "run"
    shutil.copytree(model_folder, folder / "model")
    data = DataArguments(dataset=DATA, image_root="zqward/images")
    groups = (ModelArguments(vision_model=f"{DATA}/privatevit"), data, TrainingArguments(output_dir=str(folder)))
    (folder / "config.yaml").write_text(resolved(*groups) + f"note: {TOKEN}\n")
    (folder / "log.jsonl").write_text(json.dumps({"kind": "run", "method": "albef", "dataset": DATA}) + "\n")
    (folder / "rejected.jsonl").write_text(json.dumps({"row": f"{DATA}/1.png"}))
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model.albef.temperature.sum().backward()
    optimizer.step()
    for place in (folder / "checkpoints", folder / "model" / "checkpoints"):
        save_checkpoint(place, model, optimizer, {"step": 1}, 1)
    for name in ("optimizer.safetensors", "training_args.bin", "pytorch_model.bin", ".env", "data.parquet"):
        (folder / "model" / name).write_bytes(f"exp_avg {TOKEN} {DATA}".encode())
    saved = json.loads((folder / "model" / "config.json").read_text())
    saved["vision_config"]["_name_or_path"] = f"{DATA}/privatevit"
    saved["my_note"] = f"trained with {TOKEN}"
    saved["my_data"], saved["my_root"], saved["my_secret"] = f"file:{DATA}", "zqward/images", SECRET
    (folder / "model" / "config.json").write_text(json.dumps(saved))
    write_model_card(folder, folder / "model")
    return folder


def run_script(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["push_to_hub.py", *map(str, argv)])
    runpy.run_path(str(ROOT / "scripts" / "push_to_hub.py"), run_name="__main__")


def test_a_dry_run_holds_no_canary_and_loads(run, tmp_path, monkeypatch, capsys):
    run_script(monkeypatch, run, "--repo_id", "someone/tiny", "--dry_run", tmp_path / "upload")
    files = {path.relative_to(tmp_path / "upload").as_posix() for path in (tmp_path / "upload").rglob("*")}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "processor_config.json"}
    assert files == {"config.json", "model.safetensors", "README.md", *tokenizer, *FILES}
    for name in files:
        content = (tmp_path / "upload" / name).read_bytes()
        for canary in CANARIES:
            assert canary.encode() not in content, f"{canary} in {name}"
    card = (tmp_path / "upload" / "README.md").read_text()
    assert 'name = "someone/tiny"  # its id on the Hub' in card
    assert "nothing was uploaded" in capsys.readouterr().out
    assert "privatevit" not in (tmp_path / "upload" / "config.json").read_text()
    loaded = AlbefForPreTraining.from_pretrained(tmp_path / "upload")
    expected = load_file(run / "model" / "model.safetensors")["itm_head.weight"]
    assert torch.equal(loaded.itm_head.weight, expected)


@pytest.mark.parametrize("public", [False, True])
def test_an_upload_is_what_the_dry_run_shows_and_private_unless_asked(run, tmp_path, monkeypatch, capsys, public):
    made, sent = {}, {}

    def create_repo(self, repo_id, *, private, exist_ok):
        made.update(repo_id=repo_id, private=private)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        sent.update({p.relative_to(folder_path).as_posix(): p.read_bytes() for p in Path(folder_path).rglob("*")})
        return huggingface_hub.CommitInfo(
            commit_url="https://huggingface.co/someone/tiny/commit/abc",
            commit_message="",
            commit_description="",
            oid="abc",
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    run_script(monkeypatch, run / "model", "--repo_id", "someone/tiny", *(["--public"] if public else []))
    assert made == {"repo_id": "someone/tiny", "private": not public}
    names = stage(run, tmp_path / "upload", "someone/tiny")
    assert sent == {name: (tmp_path / "upload" / name).read_bytes() for name in names}
    assert "revision='abc'" in capsys.readouterr().out


PRIVATE = {
    "a token": TOKEN,
    "a secret of the environment": SECRET,
    "a path": f"trained on {DATA}/a.json",
    "a home": "`/home/somebody/x`",
    "a relative path": "see zqward/images",
    "a token of an application": "gho_" + "AbCd1234" * 4,
    "a key of a cloud": "aws_secret_access_key = " + "AbCd1234" * 5,
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
    "a password in an address": "https://me:password@example.com/x",
    "a bucket": "data: s3://clinic-bucket/patients",
    "another bucket": "gs://clinic/x",
    "a cluster": "hdfs://node/data",
    "a share": "from \\\\server\\share\\x",
    "an address": "ask somebody.else+x@clinic.example.org",
}


@pytest.mark.parametrize("text", PRIVATE.values(), ids=PRIVATE)
@pytest.mark.parametrize("name", ["README.md", "losses.py"])
def test_a_text_that_names_this_machine_is_refused_with_its_line(run, tmp_path, text, name):
    if name.endswith(".py") and "@clinic" in text:
        pytest.skip("code may name its authors")
    path = run / "model" / name
    path.write_text(f"# first\n{text}\n")
    with pytest.raises(ValueError, match=f"{name}, line 2"):
        stage(run, tmp_path / "upload", "someone/tiny")
    assert not (tmp_path / "upload").exists()


def test_weights_are_what_they_are_called(run, tmp_path):
    weights = run / "model" / "model.safetensors"
    save_file({"a": torch.zeros(1)}, weights, metadata={"from": DATA})
    with pytest.raises(ValueError, match=r"model.safetensors.*zqclinic"):
        stage(run, tmp_path / "a", "someone/tiny")
    torch.save({"a": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        stage(run, tmp_path / "b", "someone/tiny")
    weights.unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        stage(run, tmp_path / "c", "someone/tiny")
    os.symlink(run / "model" / "optimizer.safetensors", weights)
    with pytest.raises(ValueError, match="is a link"):
        stage(run, tmp_path / "d", "someone/tiny")


@pytest.mark.parametrize("name", [".eval_results", "anything"])
def test_a_link_to_a_folder_is_refused(run, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "results.yaml").write_text("private: true\n")
    (run / "model" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(ValueError, match=f"{name} is a link to a folder"):
        stage(run, tmp_path / "upload", "someone/tiny")


def test_what_is_no_model_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="neither a run folder"):
        stage(run / "checkpoints" / "step-00000001", tmp_path / "upload", "someone/tiny")
    with pytest.raises(ValueError, match="not empty"):
        stage(run, run, "someone/tiny")
    (run / "model" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged: not JSON"):
        stage(run, tmp_path / "upload", "someone/tiny")


def test_names_targets_and_half_models_that_cannot_be_published(run, tmp_path):
    for name in ("", "tiny", "/tiny", "someone/", "a/b/c", "someone/tiny model"):
        with pytest.raises(ValueError, match="is no name of a repository: write OWNER/NAME"):
            stage(run, tmp_path / "upload", name)
    with pytest.raises(ValueError, match="log.jsonl is a file: give a new folder"):
        stage(run, run / "log.jsonl", "someone/tiny")
    for path in (run / "model").glob("*tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="a processor without its tokenizer"):
        stage(run, tmp_path / "upload", "someone/tiny")
    assert not (tmp_path / "upload").exists()


def test_a_backbone_without_a_card_gets_one(tmp_path):
    config = ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    ViTModel(config).save_pretrained(tmp_path / "run" / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "run" / "model")
    names = stage(tmp_path / "run", tmp_path / "upload", "someone/backbone")
    assert names == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert 'name = "someone/backbone"  # its id on the Hub' in (tmp_path / "upload" / "README.md").read_text()
