"""Mixtures of data sets, and streams of rows that are never loaded whole."""

import itertools

import datasets
import pytest
import torch
from data_helpers import parquet_of, picture

from albef_hf.data.arguments import DataArguments
from albef_hf.data.loading import build_training_data

pytestmark = pytest.mark.usefixtures("no_pauses")


def mixture_of(tmp_path, **weights) -> dict:
    sizes = {"a": 12, "b": 4}
    entries = [
        {"dataset": parquet_of(tmp_path / f"{name}.parquet", size, 100 * index), "caption_column": "text"}
        for index, (name, size) in enumerate(sizes.items())
    ]
    for entry, weight in zip(entries, weights.values(), strict=False):
        entry["weight"] = weight
    return {"mixture": entries, "augmentation": "none"}


def rows_of_epochs(data, epochs: int) -> list[list[int]]:
    keys = data.keys(0)
    return [[k.row for _ in range(data.steps_per_epoch) for k in next(keys)] for _ in range(epochs)]


def test_a_mixture_keeps_its_weights_and_repeats_no_row_early(tmp_path, processor):
    plain = build_training_data(DataArguments(**mixture_of(tmp_path)), processor, batch_size=4, seed=0)
    assert sorted(rows_of_epochs(plain, 1)[0]) == list(range(16))
    weighted = DataArguments(**mixture_of(tmp_path, a=1.0, b=3.0))
    data = build_training_data(weighted, processor, batch_size=4, seed=0)
    epochs = rows_of_epochs(data, 3)
    for rows in epochs:
        assert sum(row >= 12 for row in rows) == 12  # three quarters of 16
        assert sorted(rows.count(row) for row in range(12, 16)) == [3, 3, 3, 3]
    assert sorted(row for rows in epochs for row in rows if row < 12) == list(range(12))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"weihgt": 1}, "mixture: unknown key 'weihgt'; did you mean 'weight'"),
        ({"weight": -1}, "weights must be positive"),
    ],
)
def test_a_wrong_mixture_is_named(tmp_path, processor, entry, message):
    arguments = DataArguments(**mixture_of(tmp_path, a=1.0, b=1.0))
    arguments.mixture[0] |= entry
    with pytest.raises(ValueError, match=message):
        build_training_data(arguments, processor, batch_size=4, seed=0)


def test_a_mixture_needs_all_weights_or_none(tmp_path, processor):
    with pytest.raises(ValueError, match="every data set a weight, or none"):
        build_training_data(DataArguments(**mixture_of(tmp_path, a=1.0)), processor, batch_size=4, seed=0)


def streamed(tmp_path, processor, rank=0, world_size=1, **changes):
    for shard in range(2):
        parquet_of(tmp_path / f"s{shard}.parquet", 16, 16 * shard)
    fields = {
        "dataset": str(tmp_path / "s*.parquet"),
        "caption_column": "text",
        "streaming": True,
        "streaming_rows": 32,
        "streaming_window": 8,
        "augmentation": "none",
        "max_caption_tokens": 8,
        **changes,
    }
    arguments = DataArguments(**fields)
    return build_training_data(arguments, processor, batch_size=4, seed=3, rank=rank, world_size=world_size)


def captions_of(data, start: int, count: int) -> list[list[str]]:
    decode = data.collate.processor.tokenizer.decode
    batches = itertools.islice(data.batches(start), count)
    return [[decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]] for batch in batches]


def test_a_stream_visits_every_row_once_an_epoch_in_a_new_order(tmp_path, processor):
    batches = captions_of(streamed(tmp_path, processor), 0, 16)
    first, second = sum(batches[:8], []), sum(batches[8:], [])
    assert sorted(first) == sorted(second) == sorted(f"thing number {i}" for i in range(32))
    assert first != second


@pytest.mark.parametrize("start", [1, 2, 5, 8, 11])
def test_a_stream_resumes_with_the_rows_that_remain(tmp_path, processor, start):
    data = streamed(tmp_path, processor)
    whole = list(itertools.islice(data.batches(), 14))
    for one, other in zip(whole[start:], data.batches(start), strict=False):
        for name in ("pixel_values", "mlm_input_ids", "negative_draws"):
            assert torch.equal(one[name], other[name])


def test_ranks_share_a_stream(tmp_path, processor):
    parts = [sum(captions_of(streamed(tmp_path, processor, rank, 2), 0, 4), []) for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(f"thing number {i}" for i in range(32))


def test_a_mixture_of_streams_is_drawn_anew_in_each_epoch_and_on_each_rank(tmp_path, processor):
    entries = [
        {"dataset": parquet_of(tmp_path / f"{name}.parquet", 8), "caption_column": "text", "weight": weight}
        for name, weight in (("a", 1.0), ("b", 3.0))
    ]

    def sources(rank):
        arguments = DataArguments(mixture=entries, streaming=True, streaming_rows=400, augmentation="none")
        data = build_training_data(arguments, processor, batch_size=2, seed=0, rank=rank, world_size=2)
        rows = [
            [row["group"].rsplit(".parquet")[0][-1] for row in itertools.islice(data._rows(e), 200)] for e in (0, 1)
        ]
        return ["".join(each) for each in rows]

    found = [*sources(0), *sources(1)]
    assert len(set(found)) == 4
    assert all(abs(each.count("b") / 200 - 0.75) < 0.1 for each in found)
    assert sources(0) == found[:2]


def test_a_stream_that_ends_begins_again_and_says_so_once(tmp_path, processor, capsys):
    seen = sum(captions_of(streamed(tmp_path, processor, streaming_rows=64), 0, 33), [])
    assert {seen[:64].count(f"thing number {i}") for i in range(32)} == {2}
    said = capsys.readouterr().out
    assert said.count("note: all 32 rows of ") == said.count("come again in this epoch (an epoch has 64 samples)") == 1
    captions_of(streamed(tmp_path, processor), 0, 17)
    assert "come again" not in capsys.readouterr().out


def test_ranks_say_that_uneven_shards_leave_rows_out(tmp_path, processor, capsys):
    parquet_of(tmp_path / "s0.parquet", 24)
    parquet_of(tmp_path / "s1.parquet", 8, 24)
    arguments = DataArguments(
        dataset=str(tmp_path / "s*.parquet"), caption_column="text", streaming=True, streaming_rows=32,
        augmentation="none", max_caption_tokens=8,
    )  # fmt: skip
    seen = []
    for rank in range(2):
        data = build_training_data(arguments, processor, batch_size=4, seed=3, rank=rank, world_size=2)
        seen += sum(captions_of(data, 0, 4), [])
    assert len(set(seen)) == 24
    said = capsys.readouterr().out
    assert said.count("note: the 8 rows of") == said.count("some of their rows are not seen in this epoch") == 1


def test_bad_rows_of_a_stream_are_replaced_from_their_batch(tmp_path, processor):
    table = {
        "image": [{"bytes": picture(i) if i != 5 else b"no picture", "path": None} for i in range(8)],
        "text": [f"thing number {i}" for i in range(8)],
    }
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (tmp_path / "bad").mkdir()
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "bad" / "x.parquet")
    path = str(tmp_path / "bad" / "x.parquet")
    data = streamed(tmp_path, processor, dataset=path, streaming_rows=8)
    batches = list(itertools.islice(data.batches(), 2))
    rejected = sum((batch["rejected"] for batch in batches), [])
    assert [(entry["row"] is not None, entry["source"]) for entry in rejected] == [(True, path)] * len(rejected)
    assert len(rejected) >= 1 and all(len(batch["input_ids"]) == 4 for batch in batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streaming_rows": 0}, "streaming needs streaming_rows"),
        ({"caption_column": "txet"}, "has no column 'txet'; did you mean 'text'"),
    ],
)
def test_a_wrong_stream_is_named(tmp_path, processor, changes, message):
    with pytest.raises(ValueError, match=message):
        next(streamed(tmp_path, processor, **changes).batches())
