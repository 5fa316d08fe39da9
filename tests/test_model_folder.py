"""Malicious or damaged model folders: an error names the file, and no code is run."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer

from albef_hf import AlbefForPreTraining, AlbefModel, AlbefProcessor
from albef_hf.model_folder import INDEX

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    return tmp_path / "model"


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("slot", ["pytorch_model.bin", "legacy", WEIGHTS, "index", "config.json"])
def test_no_file_of_a_model_is_unpickled(folder, slot, tmp_path):
    mark = tmp_path / "mark"
    if slot in ("pytorch_model.bin", "legacy", "index"):
        name = "pytorch_model.bin" if slot == "legacy" else slot if slot != "index" else "weights.bin"
        torch.save(Payload(mark), folder / name, _use_new_zipfile_serialization=slot != "legacy")
        (folder / WEIGHTS).unlink()
        if slot == "index":
            write_index(folder, "weights.bin")
        named = {"index": INDEX}.get(slot, WEIGHTS)
    else:
        (folder / slot).write_bytes(pickle.dumps(Payload(mark)))
        named = slot
    for model_class in (AlbefForPreTraining, AlbefModel):
        with pytest.raises((ValueError, OSError), match=named):
            model_class.from_pretrained(folder)
    assert not mark.exists()
    # The file is malicious: unpickling it does run its code.
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


def test_honest_pickled_weights_are_not_read_either(folder):
    state = AlbefForPreTraining.from_pretrained(folder).state_dict()
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=WEIGHTS):
        AlbefForPreTraining.from_pretrained(folder)


@pytest.mark.parametrize("slot", ["processor_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_no_file_of_a_processor_is_unpickled(folder, slot, tmp_path):
    (folder / slot).write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    with pytest.raises(ValueError, match=slot):
        AlbefProcessor.from_pretrained(folder)
    assert not (tmp_path / "mark").exists()


def write_index(folder, shard):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"itm_head.bias": shard}}))


@pytest.mark.parametrize("shard", ["../outside.safetensors", "{absolute}", "a/../../outside.safetensors", "..\\x", 3])
def test_shards_lie_in_the_folder(folder, shard, tmp_path):
    outside = tmp_path / "outside.safetensors"
    (folder / WEIGHTS).rename(outside)
    write_index(folder, str(outside) if shard == "{absolute}" else shard)
    with pytest.raises(ValueError, match=f"{INDEX} names .* not a safetensors file of this folder"):
        AlbefForPreTraining.from_pretrained(folder)


def test_a_shard_that_is_missing_is_named(folder):
    (folder / WEIGHTS).unlink()
    write_index(folder, "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match="model-00001-of-00002.safetensors is missing"):
        AlbefForPreTraining.from_pretrained(folder)
    (folder / INDEX).write_text("[]")
    with pytest.raises(ValueError, match=f"{INDEX} has no weight_map"):
        AlbefForPreTraining.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "length", "header"])
def test_damaged_weights_are_named(folder, damage):
    content = (folder / WEIGHTS).read_bytes()
    flip = {"length": 0, "header": 40}.get(damage, 0)
    flipped = content[:flip] + bytes([content[flip] ^ 4]) + content[flip + 1 :]
    (folder / WEIGHTS).write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, flipped))
    with pytest.raises(ValueError, match=WEIGHTS):
        AlbefForPreTraining.from_pretrained(folder)


@pytest.mark.parametrize("reference", ["../evil.X", "/{absolute}/evil.X", "evil.X", "a.b.c.d"])
@pytest.mark.parametrize("name", ["config.json", "processor_config.json"])
def test_code_names_of_a_folder_are_not_followed_where_the_package_is_there(folder, name, reference, tmp_path):
    for place in (tmp_path, folder):
        (place / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    content = json.loads((folder / name).read_text())
    content["auto_map"] = dict.fromkeys(content["auto_map"], reference.format(absolute=tmp_path))
    (folder / name).write_text(json.dumps(content))
    assert isinstance(AutoModel.from_pretrained(folder), AlbefModel)
    AlbefProcessor.from_pretrained(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("model_type", ["bert", "vit", "albef_text", None])
def test_a_configuration_of_another_model_is_an_error(folder, model_type):
    config = {} if model_type is None else {"model_type": model_type}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"config.json is for a model of type {model_type!r}"):
        AlbefForPreTraining.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json is missing"):
        AlbefForPreTraining.from_pretrained(folder)


def test_a_configuration_of_other_sizes_is_an_error(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"projection_dim": 16}))
    with pytest.raises(ValueError, match="do not fit its config.json"):
        AlbefForPreTraining.from_pretrained(folder)


def test_a_vocabulary_of_another_model_is_an_error(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 30000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="tokenizer.json: the tokenizer has 30522 tokens, the text model only 30000"):
        AlbefProcessor.from_pretrained(folder)


def test_a_sound_folder_is_untouched_by_loading(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    AlbefForPreTraining.from_pretrained(folder)
    AlbefProcessor.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder, config=AlbefModel.from_pretrained(folder).config)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with safe_open(folder / WEIGHTS, "pt") as handle:
        assert "itm_head.bias" in handle.keys()  # noqa: SIM118
