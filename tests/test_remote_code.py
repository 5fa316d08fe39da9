"""A saved folder loads in a fresh process in which this package cannot be imported."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import tiny_batch, tiny_model
from model_cases import new
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoModelForZeroShotImageClassification, pipeline

from albef_hf import (
    AlbefForImageTextRetrieval,
    AlbefForQuestionAnswering,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    AlbefModel,
)
from albef_hf.remote_code import AUTO_MAP, FILES

AUTO_MODELS = ("AutoModel", "AutoModelForPreTraining", "AutoModelForZeroShotImageClassification")

LOAD = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "albef_hf":
            raise ImportError("albef_hf is not installed here")

sys.meta_path.insert(0, Absent())
import transformers
from safetensors.torch import load_file, save_file

folder, logits = sys.argv[1], {}
for name in sys.argv[2:]:
    model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
    logits[name] = model(**load_file(f"{folder}/inputs.safetensors")).logits_per_image.contiguous()
    model.save_pretrained(f"{folder}/again/{name}")
save_file(logits, f"{folder}/outputs.safetensors")

from PIL import Image

picture = Image.open(f"{folder}/picture.png")
classify = transformers.pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
found = classify(picture, candidate_labels=["a red car", "a tree"])
extract = transformers.pipeline("image-feature-extraction", model=folder, trust_remote_code=True)
(feature,) = extract(picture, pool=True)
with open(f"{folder}/pipelines.json", "w") as handle:
    json.dump({"scores": {row["label"]: row["score"] for row in found}, "feature": feature}, handle)
"""


@pytest.mark.parametrize("saved", ["AlbefForPreTraining", "AlbefModel"])
def test_every_auto_class_loads_a_folder_without_the_package(saved, tmp_path, processor):
    whole = tiny_model(text_config={"vocab_size": len(processor.tokenizer)}).eval()
    model = whole if saved == "AlbefForPreTraining" else whole.albef
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.effect_noise((40, 40), 90).convert("RGB")
    picture.save(tmp_path / "picture.png")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    batch = {
        key: value for key, value in tiny_batch().items() if key in ("input_ids", "attention_mask", "pixel_values")
    }
    save_file(batch, tmp_path / "inputs.safetensors")
    expected = model(**batch).logits_per_image
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    finished = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), *AUTO_MODELS],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    logits = load_file(tmp_path / "outputs.safetensors")
    for name in AUTO_MODELS:
        torch.testing.assert_close(logits[name], expected, atol=1e-6, rtol=0)
        # What was loaded from code saves its code again.
        assert AlbefModel.from_pretrained(tmp_path / "again" / name).config.model_type == "albef"
        assert (tmp_path / "again" / name / "modeling_albef.py").exists()
    found = json.loads((tmp_path / "pipelines.json").read_text())
    texts = [f"This is a photo of {label}." for label in found["scores"]]
    output = (whole.albef)(**processor(images=picture, text=texts))
    torch.testing.assert_close(
        torch.tensor([*found["scores"].values()]), output.logits_per_image.softmax(-1)[0], atol=1e-3, rtol=0
    )
    torch.testing.assert_close(torch.tensor(found["feature"]), output.image_embeds[0], atol=1e-2, rtol=0)


def test_all_code_files_are_listed(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for name in FILES:
        text = (tmp_path / name).read_text()
        for line in text.splitlines():
            if line.startswith("from ."):
                assert line.split()[1].removeprefix(".") + ".py" in FILES, f"{name}: {line}"
        imported = {
            module.split(".")[0]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.level == 0)
            for module in ([node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
        }
        # What comes with transformers, and what its image processors need.
        known = {"torch", "transformers", "huggingface_hub", "tokenizers", "safetensors", "numpy", "PIL"}
        assert imported <= known | set(sys.stdlib_module_names), f"{name} imports {imported - known}"


@pytest.mark.parametrize(
    ("saved", "auto"),
    [
        (AlbefForImageTextRetrieval, AutoModelForZeroShotImageClassification),
        (AlbefForVisualEntailment, AutoModelForSequenceClassification),
        (AlbefForVisualReasoning, AutoModelForSequenceClassification),
        (AlbefForTextAssignment, AutoModelForSequenceClassification),
    ],
)
def test_an_auto_class_takes_the_class_that_saved_the_folder(saved, auto, tmp_path):
    model = new(saved)
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is saved and loaded.loading_report == "every weight was in the checkpoint"
    file, name = json.loads((tmp_path / "config.json").read_text())["auto_map"][auto.__name__].split(".")
    assert f"{file}.py" in FILES and name == saved.__name__ and saved.__module__ == f"albef_hf.{file}"


@pytest.mark.parametrize("saved", [AlbefForVisualEntailment, AlbefForQuestionAnswering])
def test_projections_that_were_never_trained_are_refused(saved, tmp_path, processor):
    new(saved, text_config={"vocab_size": len(processor.tokenizer)}).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.new("RGB", (40, 40), "red")
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    with pytest.raises(ValueError, match="text_projection, vision_projection, temperature of this model were not in"):
        classify(picture, candidate_labels=["a red car", "a tree"])
    model = AlbefModel.from_pretrained(tmp_path)
    inputs = processor(images=picture, text="a car", return_tensors="pt")
    with pytest.raises(ValueError, match="load a folder of pre-training or retrieval"):
        model.get_image_features(inputs["pixel_values"])
    with pytest.raises(ValueError, match="load a folder of pre-training or retrieval"):
        model.get_text_features(inputs["input_ids"])
    model.train()(**inputs)  # to train them
    model.untrained_parts = ()
    assert model.eval()(**inputs).logits_per_image.shape == (1, 1)
