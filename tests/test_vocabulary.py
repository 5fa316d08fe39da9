"""Words that the vocabulary does not know are counted before training."""

import json

import pytest
from data_helpers import parquet_of, picture, table_of

from albef_hf.data.arguments import DataArguments
from albef_hf.data.loading import build_training_data
from albef_hf.data.vocabulary import check_vocabulary, sampled_captions
from albef_hf.tasks import TASKS
from albef_hf.tasks.batches import sampled_texts

UNKNOWN = "\U0001f9ff"


def test_the_share_of_unknown_words(processor):
    unknown = UNKNOWN
    (line,) = check_vocabulary(["a dog", "the dog"] * 10, processor, "x")
    assert line == "x: 0.0% of the tokens of 20 texts are unknown to the vocabulary"
    (line,) = check_vocabulary(["a dog"] * 20 + [f"a {unknown}"], processor, "x")
    assert line.startswith("x: 2.4% of the tokens of 21 texts")
    line, warning = check_vocabulary(["a dog"] * 8 + [f"a {unknown}"], processor, "x")
    assert warning.startswith(f"warning: x: many words are unknown, such as in 'a {unknown}'")
    with pytest.raises(ValueError, match=f"x: the vocabulary knows none of the words in 3 texts, such as '{unknown}'"):
        check_vocabulary([unknown] * 3, processor, "x")
    with pytest.raises(ValueError, match=f"such as '({unknown}){{80}}';"):
        check_vocabulary([unknown * 100], processor, "x")
    assert check_vocabulary([], processor, "x") == check_vocabulary(["?!"], processor, "x") == []


@pytest.mark.parametrize("streaming", [False, True])
def test_each_data_set_is_looked_at_by_itself(tmp_path, processor, streaming):
    parquet_of(tmp_path / "a.parquet", 8)
    foreign = table_of(8).remove_columns("text").add_column("text", [UNKNOWN] * 8)
    foreign.to_parquet(tmp_path / "b.parquet")
    entries = [{"dataset": str(tmp_path / f"{name}.parquet"), "caption_column": "text"} for name in "ab"]
    arguments = DataArguments(mixture=entries, streaming=streaming, streaming_rows=8, augmentation="none")
    found = dict(sampled_captions(build_training_data(arguments, processor, batch_size=4, seed=0)))
    assert sorted(found[entries[0]["dataset"]]) == [f"thing number {n}" for n in range(8)]
    assert found[entries[1]["dataset"]] == [UNKNOWN] * 8


def test_texts_of_a_task_are_those_of_its_samples(tmp_path, processor):
    (tmp_path / "a.png").write_bytes(picture(0))
    rows = [{"image": "a.png", "sentence": f"row {n}", "label": "neutral"} for n in range(130)]
    rows[0]["image"] = "missing.png"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    kind = TASKS["visual_entailment"]
    texts = sampled_texts(kind(processor), kind.load(str(tmp_path / "rows.json")))
    assert texts == [f"row {n}" for n in range(2, 130, 2)]
