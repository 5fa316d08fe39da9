"""Mixtures of data sets, and streams of rows that are never loaded whole."""

import io
import itertools
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.distributed as dist
from data_helpers import parquet_of, picture, table_of

from albef_hf.data.arguments import DataArguments
from albef_hf.data.corpora import ORDER
from albef_hf.data.fingerprint import data_fingerprint
from albef_hf.data.loading import build_training_data
from albef_hf.data.shards import Kept, rows_of_files
from albef_hf.data.streaming import WindowedOrder


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


def test_a_mixture_of_streams_has_its_weights_and_repeats_no_row_early(tmp_path, processor):
    arguments = DataArguments(**mixture_of(tmp_path, a=1.0, b=3.0), streaming=True, streaming_window=8)
    data = build_training_data(arguments, processor, batch_size=4, seed=0)
    assert [part.window for part in data.samples.corpus.parts] == [2, 6]
    epochs = rows_of_epochs(data, 3)
    for rows in epochs:
        assert sorted(rows.count(row) for row in range(12, 16)) == [3, 3, 3, 3]
    assert sorted(row for rows in epochs for row in rows if row < 12) == list(range(12))
    assert epochs[0] != epochs[1]


def test_an_epoch_that_is_longer_than_the_data_is_said(tmp_path, processor, capsys):
    seen = sum(captions_of(streamed(tmp_path, processor, streaming_rows=64), 0, 16), [])
    assert {seen.count(f"thing number {i}") for i in range(32)} == {2}
    assert "note: streaming_rows makes an epoch of 64 samples from 32 rows" in capsys.readouterr().out
    streamed(tmp_path, processor)
    assert "note" not in capsys.readouterr().out


# -- 1,000 rows of uneven shards -------------------------------------------------------------------------------------


def tar_of(path, count: int, start: int) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as shard:
        for number in range(start, start + count):
            for name, data in ((f"{number}.png", picture(0)), (f"{number}.txt", f"thing number {number}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))


GROUP = 40  # rows of a row group


def shards_of(folder, form: str, sizes=(700, 90, 210), group=GROUP) -> dict:
    """Files of some numbers of rows, and the arguments that stream them."""
    start = 0
    for number, size in enumerate(sizes):
        path = folder / f"s{number}.{form}"
        if form == "parquet":
            table_of(size, start).to_parquet(path, batch_size=group)
        else:
            tar_of(path, size, start)
        start += size
    columns = {"image_column": "png", "caption_column": "txt"} if form != "parquet" else {"caption_column": "text"}
    return {"dataset": str(folder / f"s*.{form}"), "streaming": True, "augmentation": "none", **columns}


def data_of(processor, arguments: dict, batch_size: int, rank=0, ranks=1, workers=0):
    fields = {"streaming_window": 256, "max_caption_tokens": 8, "workers": workers, **arguments}
    return build_training_data(
        DataArguments(**fields), processor, batch_size=batch_size, seed=3, rank=rank, world_size=ranks
    )


def numbers_of(data, start: int, count: int, skipped: int = 0) -> list[list[int]]:
    """The numbers in the captions of some batches."""
    decode = data.collate.processor.tokenizer.decode
    batches = itertools.islice(data.batches(start, skipped), count)
    return [[int(decode(ids).split()[3]) for ids in batch["input_ids"]] for batch in batches]


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_a_stream_that_stops_and_goes_on_elsewhere_loses_and_repeats_nothing(tmp_path, processor, form):
    """1,000 rows in three uneven shards: 1 rank, then 2, then 4, more than there are shards, with 0, 3, 0 workers."""
    arguments = shards_of(tmp_path, form)
    whole = sum(numbers_of(data_of(processor, arguments, 8), 0, 125), [])
    assert sorted(whole) == list(range(1000)) and whole != sorted(whole)
    seen = sum(numbers_of(data_of(processor, arguments, 8), 0, 31), [])
    for ranks, batches, workers in ((2, 47, 3), (4, 47, 0)):
        start = len(seen) // 8
        parts = [
            numbers_of(data_of(processor, arguments, 8 // ranks, rank, ranks, workers), start, batches)
            for rank in range(ranks)
        ]
        seen += [number for step in zip(*parts, strict=True) for part in step for number in part]
    assert seen == whole


def test_a_stream_goes_on_within_an_epoch_with_three_ranks(tmp_path, processor):
    arguments = shards_of(tmp_path, "parquet")
    whole = sum(numbers_of(data_of(processor, arguments, 8), 0, 125), [])
    parts = [numbers_of(data_of(processor, arguments, 5, rank, 3), 0, 20, skipped=400) for rank in range(3)]
    assert [number for step in zip(*parts, strict=True) for part in step for number in part] == whole[400:700]


@pytest.mark.parametrize("sizes", [(1000,), (1, 2, 997), tuple(range(1, 45)), (5, 0, 995)])
def test_every_row_of_any_shards_comes_once_in_each_epoch(tmp_path, processor, sizes):
    arguments = shards_of(tmp_path, "parquet", sizes)
    count = sum(sizes)
    data = data_of(processor, arguments, 1)
    first, second = (data.samples.corpus.rows_at(3, epoch, range(count)) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(count))
    assert (first == second).sum() < count // 10


@pytest.mark.parametrize("window", [1, 64, 100, 256, 4096, 10**9])
def test_windows_are_as_large_as_they_are_called(window):
    chunks = np.full(300, 50)
    order = WindowedOrder(chunks, window)
    rows = order.rows(np.arange(15_000), 1, 2)
    assert sorted(rows) == list(range(15_000))
    assert order.lanes * order.block <= window and (window > 10_000 or order.lanes * order.block > window - 64)
    if window >= 64:
        assert len(set(rows[: 4 * order.lanes] // 50)) >= order.lanes - 1  # a round meets every lane's own chunk


@pytest.mark.parametrize("start", [1, 45, 77, 124])
def test_going_on_reads_no_more_than_the_row_groups_of_the_batch(tmp_path, processor, start):
    """Of a row group, the rows before those that come next are passed over. The window has four places, each of which
    may lie in two row groups."""
    arguments = shards_of(tmp_path, "parquet")
    data = data_of(processor, arguments, 8)
    corpus = data.samples.corpus
    shards, rows = corpus.parts[0].shards, corpus.rows_at(3, 0, np.arange(start * 8, start * 8 + 8))
    groups = {shards.place_of(row)[0] for row in rows}
    before = shards.rows_read
    next(data.batches(start))
    assert len(groups) <= 2 * 4 and 8 <= shards.rows_read - before <= len(groups) * GROUP
    one = data_of(processor, arguments | {"streaming_window": 32}, 8)
    before = one.samples.corpus.parts[0].shards.rows_read
    next(one.batches(start))
    assert one.samples.corpus.parts[0].shards.rows_read - before <= 2 * GROUP  # a block may lie in two row groups


def test_an_epoch_reads_every_row_once(tmp_path, processor):
    data = data_of(processor, shards_of(tmp_path, "parquet"), 8)
    shards = data.samples.corpus.parts[0].shards
    before = shards.rows_read
    for _ in itertools.islice(data.batches(), 125):
        pass
    assert 1000 <= shards.rows_read - before <= 1000 + 4 * GROUP  # where a lane ends, two read of one row group


def test_what_orders_the_rows_is_part_of_what_a_run_remembers(tmp_path, processor):
    arguments = shards_of(tmp_path, "parquet", (60, 20))
    before = data_fingerprint(data_of(processor, arguments, 8))
    assert before == data_fingerprint(data_of(processor, arguments, 4, 1, 2)) and before["order"] == [ORDER, 256]
    for path in tmp_path.glob("*.parquet"):
        path.rename(path.with_name(f"moved-{path.name}"))
    moved = arguments | {"dataset": str(tmp_path / "moved-*.parquet")}
    assert before == data_fingerprint(data_of(processor, moved, 8))
    for changed in ({"streaming_window": 64}, {"streaming": False}, {"streaming_rows": 79}):
        assert before != data_fingerprint(data_of(processor, moved | changed, 8))
    arguments = shards_of(tmp_path, "parquet", (40, 40))
    assert before != data_fingerprint(data_of(processor, arguments, 8))


def test_no_row_group_is_begun_again(tmp_path, processor):
    """Where each lane is a row group, and a block lies in several pieces of it."""
    data = data_of(processor, shards_of(tmp_path, "parquet", (1000,), group=250), 8)
    shards = data.samples.corpus.parts[0].shards
    before = shards.rows_read
    for _ in itertools.islice(data.batches(), 125):
        pass
    assert shards.rows_read - before <= 1000


def test_what_another_process_opened_is_not_used(monkeypatch):
    kept = Kept(2)
    assert [kept.get("a", lambda: 1), kept.get("a", lambda: 2)] == [1, 1]
    monkeypatch.setattr("albef_hf.data.shards.os.getpid", lambda: -1)
    assert list(kept) == [] and [kept.get("a", lambda: 3), kept.get("b", lambda: 4), kept.get("c", lambda: 5)]
    assert list(kept) == ["b", "c"] and list(pickle.loads(pickle.dumps(kept))) == []


def test_workers_read_and_the_main_process_does_not(tmp_path, processor):
    data = data_of(processor, shards_of(tmp_path, "parquet"), 8, workers=2)
    shards = data.samples.corpus.parts[0].shards
    before = shards.rows_read
    assert len(numbers_of(data, 0, 20)) == 20 and shards.rows_read == before


def test_ranks_whose_batches_fit_into_a_round_read_their_own_rows(tmp_path, processor):
    arguments = shards_of(tmp_path, "parquet", (400,) * 4)
    read = 0
    for rank in range(4):  # 4 lanes of 4 samples
        data = data_of(processor, arguments, 4, rank, 4)
        shards = data.samples.corpus.parts[0].shards
        before = shards.rows_read
        numbers_of(data, 0, 100)
        read += shards.rows_read - before
    assert read <= 1600 + 4 * 2 * GROUP


# -- how many rows files have ----------------------------------------------------------------------------------------


def test_rows_are_counted_once_and_again_where_a_file_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = [str(tmp_path / name) for name in ("a", "b")]
    for name in names:
        Path(name).write_text(name)
    counted = []

    def count(name):
        counted.append(name)
        return [len(Path(name).read_text()), 1]

    first = rows_of_files(names, "texts", count)
    assert rows_of_files(names, "texts", count) == first and sorted(counted) == names
    Path(names[1]).write_text("longer than before")
    assert rows_of_files(names, "texts", count) == [first[0], [18, 1]] and len(counted) == 3
    (record,) = (tmp_path / "cache" / "rows_of_files").iterdir()
    record.write_text("{")
    assert rows_of_files(names, "texts", count)[1] == [18, 1] and len(counted) == 5


def ranks_count(rank: int, folder: str) -> None:
    """Two ranks count four files, of which one is damaged in the second round; each writes what it was told."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    datasets.config.HF_DATASETS_CACHE = Path(folder) / f"cache-{rank}"
    names = [f"{folder}/{name}" for name in "abcd"]
    counted = []

    def count(name):
        if Path(name).read_text() == "damaged":
            raise ValueError(f"{name} is damaged")
        counted.append(name[-1])
        return [len(Path(name).read_text())]

    told = [str(rows_of_files(names, "texts", count))]
    dist.barrier()
    Path(folder, "b").write_text("damaged")
    dist.barrier()
    for files in (names, names if rank == 0 else names[:3]):
        try:
            rows_of_files(files, "texts", count)
        except ValueError as error:
            told.append(str(error))
        Path(folder, "b").write_text("bb")
        dist.barrier()
    Path(folder, f"told-{rank}").write_text("\n".join([*told, "".join(sorted(counted[:2]))]))


def test_ranks_count_rows_together_and_all_hear_of_a_damaged_file(tmp_path):
    for number, name in enumerate("abcd"):
        (tmp_path / name).write_text("x" * number + "x")
    torch.multiprocessing.start_processes(ranks_count, (str(tmp_path),), nprocs=2, start_method="fork")
    one, other = [(tmp_path / f"told-{rank}").read_text().splitlines() for rank in range(2)]
    assert one[0] == other[0] == "[[1], [2], [3], [4]]"
    assert one[1] == other[1] == f"{tmp_path}/b is damaged"
    assert one[2] == other[2] and one[2].startswith("rank 1 sees other files than rank 0: 3, not 4")
    assert (one[3], other[3]) == ("ac", "bd")


def test_a_zipped_archive_is_streamed(tmp_path, processor):
    seen = sum(numbers_of(data_of(processor, shards_of(tmp_path, "tar.gz", (20, 12)), 8), 0, 4), [])
    assert sorted(seen) == list(range(32)) and seen != sorted(seen)


def repository_of(folder: Path, ending: str) -> dict:
    """A folder that says as a repository of the Hub does which files belong to which split."""
    text = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '*.{ending}'\n---\n"
    (folder / "README.md").write_text(text)
    return {"dataset": str(folder), "caption_column": "text", "streaming": True, "augmentation": "none"}


def test_a_repository_of_parquet_files_is_streamed_and_others_are_refused_by_name(tmp_path, processor):
    parquet_of(tmp_path / "x.parquet", 32)
    seen = sum(numbers_of(data_of(processor, repository_of(tmp_path, "parquet"), 8), 0, 4), [])
    assert sorted(seen) == list(range(32))
    with pytest.raises(ValueError, match="no split 'trian'; did you mean 'train'"):
        data_of(processor, repository_of(tmp_path, "parquet") | {"split": "trian"}, 8)
    (tmp_path / "x.jsonl").write_text('{"image": "x.png", "text": "a dog"}\n')
    with pytest.raises(ValueError, match="cannot be streamed from the Hub: it is not made of Parquet files"):
        data_of(processor, repository_of(tmp_path, "jsonl"), 8)


def test_bad_rows_of_a_stream_are_replaced(tmp_path, processor):
    table = {
        "image": [{"bytes": picture(i) if i != 5 else b"no picture", "path": None} for i in range(8)],
        "text": [f"thing number {i}" for i in range(8)],
    }
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (tmp_path / "bad").mkdir()
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "bad" / "x.parquet")
    path = str(tmp_path / "bad" / "x.parquet")
    data = streamed(tmp_path, processor, dataset=path, streaming_rows=0)
    batches = list(itertools.islice(data.batches(), 2))
    rejected = sum((batch["rejected"] for batch in batches), [])
    assert [(entry["row"] is not None, entry["source"]) for entry in rejected] == [(True, path)] * len(rejected)
    assert len(rejected) >= 1 and all(len(batch["input_ids"]) == 4 for batch in batches)
    other = streamed(tmp_path, processor, dataset=path, streaming_rows=0, rank=1, world_size=2)
    assert torch.equal(next(other.batches())["pixel_values"], batches[1]["pixel_values"])


def test_a_wrong_column_of_a_stream_is_named(tmp_path, processor):
    with pytest.raises(ValueError, match="has no column 'txet'; did you mean 'text'"):
        streamed(tmp_path, processor, caption_column="txet")
