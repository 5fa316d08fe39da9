"""How many words of the training texts the vocabulary does not know. A model learns nothing from [UNK]."""

from collections.abc import Iterator, Sequence
from typing import Any

from .batches import TrainingData
from .fields import NotText, texts_of
from .streaming import CorpusStream

LOOKED_AT = 1000  # rows of a data set
MANY = 0.05  # from this share on the user is warned


def check_vocabulary(texts: Sequence[str], processor: Any, name: str) -> list[str]:
    """What to print about the words that the vocabulary does not know.

    Args:
        texts: of a data set, as they are.
        processor: an `AlbefProcessor`.
        name: of the data set.

    Returns: a line with the share of unknown words, and a warning if they are many; nothing without texts.

    Raises:
        ValueError: the vocabulary knows none of the words.
    """
    tokenizer = processor.tokenizer
    cleaned = [processor.clean_caption(text) for text in texts]
    rows = tokenizer([text for text in cleaned if text], add_special_tokens=False)["input_ids"] if any(cleaned) else []
    tokens = sum(len(row) for row in rows)
    if not tokens:
        return []
    unknown = sum(row.count(tokenizer.unk_token_id) for row in rows)
    examples = [text for text, row in zip(filter(None, cleaned), rows, strict=True) if tokenizer.unk_token_id in row]
    if unknown == tokens:
        raise ValueError(
            f"{name}: the vocabulary knows none of the words in {len(rows):,} texts, such as {examples[0][:80]!r}; "
            "choose a tokenizer (and a text_model) of their language"
        )
    lines = [f"{name}: {unknown / tokens:.1%} of the tokens of {len(rows):,} texts are unknown to the vocabulary"]
    if unknown > MANY * tokens:
        seen = f"such as in {examples[0][:80]!r}"
        lines.append(f"warning: {name}: many words are unknown, {seen}; is the tokenizer of another language?")
    return lines


def sampled_captions(data: TrainingData) -> Iterator[tuple[str, list[str]]]:
    """Captions of rows spread over each data set, or of the first rows of each stream, with its name. They are the
    same on all ranks."""
    for part, name in zip(data.samples.corpus.parts, data.samples.corpus.names, strict=True):
        if isinstance(part, CorpusStream):
            yield name, _captions(part[row]["captions"] for row in range(min(LOOKED_AT, len(part))))
            continue
        step = max(1, len(part) // LOOKED_AT)
        yield name, _captions(part.select(range(0, len(part), step))["captions"])


def _captions(values: Any) -> list[str]:
    found: list[str] = []
    for value in values:
        try:
            found += texts_of(value)[:1]
        except NotText:  # the row is rejected when it is drawn
            continue
    return found
