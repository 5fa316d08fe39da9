"""Saving, sharing and loading: what is uploaded, which class loads what, and pipelines of a saved folder."""

import json

import huggingface_hub
import pytest
import torch
import transformers
from helpers import tiny_batch, tiny_model
from PIL import Image
from safetensors import safe_open
from transformers import pipeline

from albef_hf import AlbefForPreTraining, AlbefModel, AlbefProcessor, AlbefTextModel
from albef_hf.remote_code import AUTO_MAP, FILES, TEXT_AUTO_MAP

PROCESSOR_FILES = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
MODEL_FILES = {"config.json", "model.safetensors", *FILES}


@pytest.fixture
def uploads(monkeypatch, tmp_path):
    """What each commit to the Hub would hold, {path: bytes}, and the arguments it was made with."""
    commits = []

    def create_repo(self, repo_id, **options):
        commits.append({"repo_id": repo_id, "options": options, "files": {}})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(self, repo_id, operations, **options):
        for operation in operations:
            with operation.as_file() as handle:
                commits[-1]["files"][operation.path_in_repo] = handle.read()
        commits[-1]["options"] |= options

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.chdir(tmp_path)
    return commits


def weights(path) -> set[str]:
    with safe_open(path, "pt") as handle:
        return set(handle.keys())


def test_a_pushed_model_is_its_weights_its_code_and_nothing_else(uploads, tmp_path):
    for model in (tiny_model(), tiny_model().albef):
        model.push_to_hub("someone/tiny", private=True)
        (commit,) = uploads
        assert commit["repo_id"] == "someone/tiny" and commit["options"]["private"] is True
        assert set(commit["files"]) == MODEL_FILES | {"README.md"}
        assert json.loads(commit["files"]["config.json"])["auto_map"] == AUTO_MAP
        uploads.clear()


@pytest.mark.parametrize("what", ["model", "processor", "config"])
def test_saving_with_push_uploads_the_code_too(uploads, tmp_path, what, processor):
    model = tiny_model()
    thing = {"model": model, "processor": processor, "config": model.config}[what]
    thing.save_pretrained(str(tmp_path / "tiny"), push_to_hub=True, repo_id="someone/tiny")
    assert uploads[-1]["repo_id"] == "someone/tiny"
    assert set(FILES) <= set(uploads[-1]["files"])


def test_a_pushed_processor_and_model_make_one_repository_that_loads(uploads, tmp_path, processor):
    tiny_model(text_config={"vocab_size": len(processor.tokenizer)}).push_to_hub("someone/tiny")
    processor.push_to_hub("someone/tiny")
    assert set(uploads[1]["files"]) == PROCESSOR_FILES | set(FILES) | {"README.md"}
    folder = tmp_path / "clone"
    folder.mkdir()
    for commit in uploads:
        for name, content in commit["files"].items():
            (folder / name).write_bytes(content)
    AlbefForPreTraining.from_pretrained(folder)
    AlbefProcessor.from_pretrained(folder)


def test_copies_and_queues_are_not_uploaded_unless_asked_for(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "without")
    model.save_pretrained(tmp_path / "with", save_momentum=True)
    with torch.no_grad():
        for copied in model.momentum_copy.parameters():
            copied.zero_()
    model.save_pretrained(tmp_path / "zeros", save_momentum=True)
    state = ("momentum_copy.", "image_queue.", "text_queue.")
    assert not any(name.startswith(state) for name in weights(tmp_path / "without" / "model.safetensors"))
    kept = weights(tmp_path / "with" / "model.safetensors")
    assert all(any(name.startswith(prefix) for name in kept) for prefix in state)
    loaded = AlbefForPreTraining.from_pretrained(tmp_path / "zeros")
    assert all(not copied.any() for copied in loaded.momentum_copy.parameters())
    assert torch.equal(loaded.image_queue.features, model.image_queue.features)


def test_shards_load_as_one(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    loaded = AlbefForPreTraining.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        if not name.startswith(("momentum_copy.updates", "image_queue.", "text_queue.")):
            assert torch.equal(loaded.state_dict()[name], value), name


def test_a_folder_of_one_class_loads_into_another_and_the_report_says_what_is_new(tmp_path):
    whole = tiny_model()
    whole.save_pretrained(tmp_path / "whole")
    whole.albef.save_pretrained(tmp_path / "base")
    heads = {name for name in whole.state_dict() if name.startswith(("itm_head.", "cls."))}
    model, report = AlbefForPreTraining.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(report["missing_keys"]) == heads and not report["unexpected_keys"]
    assert torch.equal(model.albef.temperature, whole.albef.temperature)
    base, report = AlbefModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert set(report["unexpected_keys"]) == heads and not report["missing_keys"]
    batch = {k: tiny_batch()[k] for k in ("pixel_values", "input_ids", "attention_mask")}
    expected = whole.eval()(**batch).logits_per_image
    torch.testing.assert_close(base.eval()(**batch).logits_per_image, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.eval()(**batch).logits_per_image, expected, atol=1e-6, rtol=0)


def test_a_text_model_by_itself_is_a_folder_of_its_own(tmp_path):
    text_model = tiny_model().albef.text_model
    text_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == TEXT_AUTO_MAP
    loaded = AlbefTextModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.embeddings.word_embeddings.weight, text_model.embeddings.word_embeddings.weight)


def test_the_folder_an_encoder_came_from_is_not_saved(tmp_path):
    vision = tiny_model().config.vision_config.to_dict() | {"_name_or_path": "/home/somebody/private/vit"}
    tiny_model(vision_config=vision).save_pretrained(tmp_path)
    assert "somebody" not in (tmp_path / "config.json").read_text()


def test_the_zero_shot_pipeline_scores_as_the_processor_and_the_model_do(model_folder, capsys):
    classify = pipeline("zero-shot-image-classification", model=str(model_folder))
    picture = Image.effect_noise((50, 40), 90).convert("RGB")
    labels = ["A red car!", "green tree/bush", "snow-man"]
    found = {row["label"]: row["score"] for row in classify(picture, candidate_labels=labels)}
    processor = AlbefProcessor.from_pretrained(model_folder)
    texts = [f"This is a photo of {label}." for label in labels]
    inputs = processor(images=picture, text=texts)
    with torch.no_grad():
        logits = AlbefModel.from_pretrained(model_folder).eval()(**inputs).logits_per_image
    for label, score in zip(labels, logits.softmax(-1)[0].tolist(), strict=True):
        assert found[label] == pytest.approx(score, abs=1e-5)
    assert len(classify([picture, picture], candidate_labels=labels, batch_size=2)) == 2


def test_the_feature_pipeline_gives_tokens_and_the_projected_vector(model_folder):
    extract = pipeline("image-feature-extraction", model=str(model_folder))
    picture = Image.effect_noise((50, 40), 90).convert("RGB")
    model = AlbefModel.from_pretrained(model_folder).eval()
    pixels = AlbefProcessor.from_pretrained(model_folder)(images=picture)["pixel_values"]
    with torch.no_grad():
        expected = model.get_image_features(pixels)
    torch.testing.assert_close(extract(picture, return_tensors=True), expected.last_hidden_state)
    torch.testing.assert_close(extract(picture, pool=True, return_tensors=True), expected.pooler_output)


def test_images_alone_or_texts_alone_give_their_features():
    model, batch = tiny_model().albef.eval(), tiny_batch()
    with torch.no_grad():
        text = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        features = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    assert isinstance(text, transformers.modeling_outputs.BaseModelOutputWithPooling)
    torch.testing.assert_close(text.pooler_output, features.pooler_output)
    torch.testing.assert_close(text.last_hidden_state, features.last_hidden_state)
    assert features.pooler_output.norm(dim=-1).allclose(torch.ones(4))
    with pytest.raises(ValueError, match="pixel_values, input_ids or both"):
        model()


def test_the_saved_tokenizer_cleans_and_the_processors_own_does_not(model_folder, processor, tmp_path):
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(model_folder, config=tiny_model().config)
    text = "A <Person>, a snow-man: hot/cold?!"
    assert saved(text)["input_ids"] == processor(text=text)["input_ids"][0].tolist()
    again = AlbefProcessor.from_pretrained(model_folder)
    for each in (processor, again):
        assert each.tokenizer.tokenize("it's 1:30") == ["it", "'", "s", "1", ":", "30"]
    again.tokenize_captions(["a " * 30, "b"], max_length=5)  # a call leaves its truncation behind
    again.save_pretrained(tmp_path)  # saving and loading again adds nothing
    assert (tmp_path / "tokenizer.json").read_text() == (model_folder / "tokenizer.json").read_text()
