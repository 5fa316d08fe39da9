"""Text encoders of other families: exact, with their own vocabulary, or refused by name with what serves instead."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import SentencePieceUnigramTokenizer, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertTokenizer,
    CamembertTokenizer,
    DistilBertConfig,
    PreTrainedTokenizer,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from albef_hf import AlbefForVisualEntailment, AlbefProcessor
from albef_hf.training.arguments import ModelArguments
from albef_hf.training.initialization import build_albef, build_task_model
from albef_hf.training.text_weights import choose_tokenizer, load_tokenizer, text_config

TEXTS = ["a red car on the road", "Zwei Hunde spielen im Schnee", "un chat noir", "the cat, and a dog; it's 7 km away"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {"model_type": "vit", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "patch_size": 16}
FAMILIES = ["bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "electra"]


def word_pieces(lower: bool = False) -> BertTokenizer:
    letters = [chr(i) for i in (*range(97, 123), *range(65, 91), *range(48, 58))]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "red",
        "car",
        "Hunde",
        *letters,
        *(f"##{i}" for i in letters),
    ]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, do_lower_case=lower)


def byte_pairs() -> RobertaTokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def pieces(tokenizer_class) -> XLMRobertaTokenizer | CamembertTokenizer:
    tokenizer = SentencePieceUnigramTokenizer()
    tokenizer.train_from_iterator(
        TEXTS * 3, vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    learned = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["vocab"] if pair[0] != "<unk>"]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    return tokenizer_class(vocab=[*((word, 0.0) for word in special), *learned, ("<mask>", 0.0)])


TOKENIZERS = {
    "bert": word_pieces,
    "roberta": byte_pairs,
    "xlm-roberta": lambda: pieces(XLMRobertaTokenizer),
    "camembert": lambda: pieces(CamembertTokenizer),
    "data2vec-text": byte_pairs,
    "electra": lambda: word_pieces(lower=True),
}


def save(folder, kind: str, head: bool = True, **changes):
    """A random model with its tokenizer in a folder."""
    tokenizer = TOKENIZERS[kind]()
    fields = {**SIZES, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "type_vocab_size": 1}
    if kind == "electra":
        fields["embedding_size"] = 16
    config = AutoConfig.for_model(kind, **{**fields, "max_position_embeddings": 34, **changes})
    torch.manual_seed(0)
    model = (AutoModelForMaskedLM if head else AutoModel).from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def arguments(**changes) -> ModelArguments:
    return ModelArguments(vision_config=VIT, image_size=32, projection_dim=8, queue_size=4, **changes)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    theirs, tokenizer = save(folder, request.param)
    return theirs, tokenizer, *build_albef(arguments(text_model=str(folder)))


def test_states_and_words_of_a_family_are_its_own(family):
    theirs, tokenizer, ours, processor = family
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    mask = batch["attention_mask"]
    assert mask.sum() < mask.numel()
    with torch.no_grad():
        expected = theirs(**batch, output_hidden_states=True)
        text_model = ours.eval().albef.text_model
        lower = text_model.encode_text(batch["input_ids"], mask)
        upper = text_model._run(text_model.fusion_layers, lower, mask, [None] * 2, None)  # without an image
        words = ours.cls(upper, text_model.embeddings.word_embeddings.weight)
    seen = mask.bool()
    for own, other in (
        (lower, expected.hidden_states[2]),
        (upper, expected.hidden_states[4]),
        (words, expected.logits),
    ):
        torch.testing.assert_close(own[seen], other[seen], atol=1e-5, rtol=1e-4)
    assert "text encoder from" in ours.loading_report and "every weight" in ours.loading_report


def test_the_vocabulary_is_the_text_models_and_survives_saving(family, tmp_path):
    _, tokenizer, ours, processor = family
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()
    captions = [text.lower().replace(",", "").replace(";", "").replace("'", "") for text in TEXTS]
    ids = processor(text=TEXTS, return_tensors=None)["input_ids"]
    plain = tokenizer(captions, add_special_tokens=False)["input_ids"]
    longest = max(len(row) for row in ids)
    for row, other in zip(ids, plain, strict=True):
        padding = [tokenizer.pad_token_id] * (longest - 1 - len(other))
        assert row == ([tokenizer.cls_token_id, *other, *padding])[:30]
    for part in (ours, processor):
        part.save_pretrained(tmp_path)
    again = AlbefProcessor.from_pretrained(tmp_path)
    assert again(text=TEXTS, return_tensors=None)["input_ids"] == ids
    pipeline_ids = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True)["input_ids"]
    assert pipeline_ids == ids
    special = ours.config.text_config
    assert (special.pad_token_id, special.bos_token_id, special.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    )


def test_positions_of_padding_are_left_out(family):
    theirs, _, ours, _ = family
    rows = 34 if theirs.config.model_type in ("bert", "electra") else 34 - theirs.config.pad_token_id - 1
    assert ours.config.text_config.max_position_embeddings == rows


@pytest.mark.parametrize("kind", ["roberta", "bert", "electra"])
def test_without_vocabulary_head_the_report_says_so(tmp_path, kind):
    theirs, _ = save(tmp_path, kind, head=False)
    model, _ = build_albef(arguments(text_model=str(tmp_path)))
    assert "new, random: the vocabulary head" in model.loading_report
    assert model.cls.predictions.bias.abs().max() == 0
    name = "encoder.layer.3.attention.self.query.weight"
    assert torch.equal(model.albef.text_model.state_dict()[name], theirs.state_dict()[name])
    task, _ = build_task_model(AlbefForVisualEntailment, arguments(text_model=str(tmp_path)))
    assert "new, random: the vocabulary head" in task.loading_report and "classifier" in task.loading_report


def without(folder, part: str) -> None:
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if part not in k}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("layer.2.output.dense.weight", {}, "1 parts are missing .*layer.2.output.dense.weight"),
        ("lm_head.dense", {}, "2 parts are missing .*lm_head.dense"),
        (None, {"tie_word_embeddings": False}, "output weights other than the word embeddings"),
        (None, {"hidden_act": "relu"}, "gelu in the vocabulary head beside relu"),
    ],
)
def test_what_cannot_be_loaded_in_full_is_named(tmp_path, part, fields, message):
    save(tmp_path, "roberta", **fields)
    if part is not None:
        without(tmp_path, part)
    with pytest.raises(ValueError, match=message):
        build_albef(arguments(text_model=str(tmp_path)))
    model, _ = build_albef(arguments(text_model=str(tmp_path), allow_missing_weights=True))
    assert "new, random" in model.loading_report


def test_layers_beyond_the_configuration_are_named(tmp_path):
    save(tmp_path, "roberta")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="missing or have no place here: .*encoder.layer.3"):
        build_albef(arguments(text_model=str(tmp_path)))
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 4, "hidden_size": 18}))
    with pytest.raises(ValueError, match="do not fit its config.json"):
        build_albef(arguments(text_model=str(tmp_path)))


def test_half_precision_weights_become_single_ones(tmp_path):
    theirs, _ = save(tmp_path, "roberta")
    theirs.half().save_pretrained(tmp_path)
    model, _ = build_albef(arguments(text_model=str(tmp_path)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    own = model.albef.text_model.embeddings.word_embeddings.weight
    assert torch.equal(own, theirs.get_input_embeddings().weight.float())


# -- families that do not serve ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("distilbert", "has no segment embeddings"),
        ("mpnet", "adds relative positions"),
        ("modernbert", "rotary positions .*xlm-roberta-base"),
        ("albert", "shares one layer"),
        ("deberta-v2", "adds relative positions .*xlm-roberta-base"),
        ("t5", "is an encoder and a decoder"),
        ("xlm-roberta-xl", "normalizes before .*xlm-roberta-large"),
        ("splinter", "is not known to compute what BERT does"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path, kind, reason):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"type '{kind}', which .*{reason}") as error:
        build_albef(arguments(text_model=str(tmp_path)))
    for served in FAMILIES:
        assert served in str(error.value)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("bert", {"is_decoder": True}, "is a decoder"),
        ("bert", {"position_embedding_type": "relative_key"}, "positions are of type 'relative_key'"),
        ("electra", {"embedding_size": 8, "hidden_size": 16}, "embeddings have 8 numbers and its layers 16"),
    ],
)
def test_a_variant_that_computes_something_else_is_refused(tmp_path, kind, fields, message):
    AutoConfig.for_model(kind, **fields).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"cannot serve: .*{message}.*google-bert/bert-base-uncased"):
        text_config(str(tmp_path))


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="text_model .* is neither a model folder of transformers nor found on the Hub"
    ):
        text_config(str(tmp_path))


# -- vocabularies -----------------------------------------------------------------------------------------------------


def test_a_named_tokenizer_must_be_the_text_models(tmp_path):
    save(tmp_path / "roberta", "roberta", vocab_size=30600)
    save(tmp_path / "bert", "bert")
    named = {"text_model": str(tmp_path / "roberta")}
    with pytest.raises(ValueError, match=r"'wordpiece' is not that of text_model .*: 30\d\d\d of its 30522 words"):
        build_albef(arguments(tokenizer="wordpiece", **named))
    with pytest.raises(ValueError, match="Leave tokenizer out"):
        build_albef(arguments(tokenizer=str(tmp_path / "bert"), **named))
    for name in (str(tmp_path / "roberta"), None):
        assert choose_tokenizer(name, named["text_model"]).get_vocab() == byte_pairs().get_vocab()
    word_pieces().save_pretrained(tmp_path / "the same")
    assert len(choose_tokenizer(str(tmp_path / "the same"), str(tmp_path / "bert"))) == len(word_pieces())


@pytest.mark.parametrize(("size", "fits"), [(30521, False), (30522, True), (30649, True), (30650, False)])
def test_without_a_tokenizer_beside_it_the_size_decides(tmp_path, size, fits):
    AutoConfig.for_model("bert", vocab_size=size).save_pretrained(tmp_path)
    if fits:
        assert len(choose_tokenizer("wordpiece", str(tmp_path))) == 30522
    else:
        with pytest.raises(ValueError, match=f"has 30522 words, text_model .* has {size}"):
            choose_tokenizer("wordpiece", str(tmp_path))
    if size == 30522:
        assert len(choose_tokenizer(None, str(tmp_path))) == 30522
    else:
        with pytest.raises(ValueError, match="has no tokenizer beside it"):
            choose_tokenizer(None, str(tmp_path))


def test_a_tokenizer_of_ones_own_decides_the_sizes_of_a_new_model(tmp_path):
    tokenizer = byte_pairs()
    tokenizer.save_pretrained(tmp_path)
    model, _ = build_albef(arguments(tokenizer=str(tmp_path), text_config={**SIZES, "fusion_layer": 2}))
    config = model.config.text_config
    assert (config.vocab_size, config.pad_token_id) == (len(tokenizer), tokenizer.pad_token_id)
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    with pytest.raises(ValueError, match="the text model only 100 embeddings"):
        build_albef(arguments(tokenizer=str(tmp_path), text_config={**SIZES, "fusion_layer": 2, "vocab_size": 100}))


def test_texts_are_padded_on_the_right_whatever_the_tokenizer_says(tmp_path):
    word_pieces().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"
    ids = AlbefProcessor.from_parts(load_tokenizer(str(tmp_path)), 32)(text=["a", "a b c"])["input_ids"]
    assert ids[0].tolist() == [2, ids[0, 1].item(), 0, 0]


def test_a_tokenizer_that_is_missing_or_slow_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no tokenizer can be loaded from .*nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))

    class Slow(PreTrainedTokenizer):
        vocab_size = 3

        def get_vocab(self):
            return {}

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: Slow())
    DistilBertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is Slow, which has no fast form"):
        load_tokenizer(str(tmp_path))
    AutoConfig.for_model("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is Slow, which has no fast form"):
        choose_tokenizer(None, str(tmp_path))
