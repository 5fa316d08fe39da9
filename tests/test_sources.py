"""What users bring: folders of any names, lists, archives, captions of every form. Rows never vanish in silence."""

import csv
import gzip
import io
import json
import tarfile
import time
import zipfile
from pathlib import Path

import datasets
import pytest
from data_helpers import first, parquet_of, picture, table_of
from PIL import Image

from albef_hf.data.arguments import DataArguments
from albef_hf.data.fields import field_of, split_field, texts_of
from albef_hf.data.files import expand_braces
from albef_hf.data.loading import build_training_data
from albef_hf.data.retrieval import build_retrieval_data
from albef_hf.data.sources import load_corpus
from albef_hf.inference.index_files import picture_dataset
from albef_hf.tasks import TASKS


def write(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def pictures_of(folder: Path, split: str = "train", **options) -> list[str]:
    rows = load_corpus(str(folder), split=split, caption_column=None, **options)
    return sorted(str(Path(path).relative_to(folder)) for path in rows["image"])


# -- names and splits -------------------------------------------------------------------------------------------------

AWKWARD = ["steam_train.jpg", "a-test.png", "validation_1.jpeg", "eval-x.webp", "test.png", "dev_2.JPG", "plain.png"]


@pytest.mark.parametrize("parent", ["", "bullet-train/", "test_set_of_tools/", "x/my-val/"])
def test_words_in_names_mean_nothing(tmp_path, parent, capsys):
    names = [parent + name for name in AWKWARD]
    assert pictures_of(write(tmp_path, *names)) == sorted(names)
    assert "7 rows of split 'train'" in capsys.readouterr().out


def test_class_folders_with_such_words_are_all_there(tmp_path):
    names = [f"{kind}/{n}.png" for kind in ("bullet-train", "bus", "my_test") for n in range(6)]
    rows = load_corpus(str(write(tmp_path, *names)), caption_column=None, label_column="label")
    assert len(rows) == 18
    assert rows.features["label"].names == ["bullet-train", "bus", "my_test"]
    for path, label in zip(rows["image"], rows["label"], strict=True):
        assert Path(path).parent.name == rows.features["label"].names[label]


def test_classes_of_one_name_in_two_folders_stay_two(tmp_path):
    rows = load_corpus(
        str(write(tmp_path, "red/small/1.png", "blue/small/1.png")), caption_column=None, label_column="label"
    )
    assert rows.features["label"].names == ["blue/small", "red/small"]


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["train/a.png", "test/b.png"], "test", ["test/b.png"]),
        (["Train/a.png", "val/b.png"], "validation", ["val/b.png"]),
        (["images/train/a.png", "images/val/b.png"], "train", ["images/train/a.png"]),
        (["train2017/a.png", "val2017/b.png"], "val2017", ["val2017/b.png"]),
        (["train2017/a.png"], "train", ["train2017/a.png"]),
        (["train/dog/a.png", "train/cat/b.png", "test/dog/c.png"], "train", ["train/cat/b.png", "train/dog/a.png"]),
        (["bus/a.png", "train/b.png"], "all", ["bus/a.png", "train/b.png"]),
    ],
)
def test_a_split_is_what_the_user_names(tmp_path, names, split, expected, capsys):
    assert pictures_of(write(tmp_path, *names), split) == expected
    left_out = len(names) - len(expected)
    assert ("pictures of other splits" in capsys.readouterr().out) == (left_out > 0)


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["bus/a.png", "train/b.png"], "train", "train/ look like splits, but not bus/.*split: all"),
        (["a.png", "test/b.png"], "train", "test/ look like splits, but not pictures beside them"),
        (["train2017/a.png", "val2017/b.png"], "train", "train2017/, val2017/ look like splits"),
        (["train/a.png", "test/b.png"], "validation", "no split 'validation'; there are: "),
        (["a.png"], "test", "no split 'test': it has none at all"),
        (["dog/a.png", "cat/b.png"], "dgo", "no split 'dgo'"),
        (["a.svg", "b.txt"], "train", r"neither pictures nor files of rows; there are 1 files \(.svg\)"),
    ],
)
def test_unclear_folders_are_refused(tmp_path, names, split, message):
    with pytest.raises(ValueError, match=message):
        pictures_of(write(tmp_path, *names), split)


def test_what_is_left_out_is_counted(tmp_path, capsys):
    write(tmp_path, "a.png", "b.png", "c.heic", ".d.png", "e.txt", "deep/f.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "one"}) + "\n")
    (tmp_path / "more.csv").write_text("x,y\n1,2\n")
    assert pictures_of(tmp_path) == ["a.png"]
    said = capsys.readouterr().out
    for part in (
        "1 rows",
        "2 pictures that no metadata lists",
        "b.png",
        "1 files (.heic)",
        "1 files (hidden)",
        "more.csv",
    ):
        assert part in said


def test_metadata_above_folders_with_such_names(tmp_path):
    write(tmp_path, "train2017/a.png", "val_test/b.png", "c.png")
    rows = [{"file_name": name, "text": name} for name in ("train2017/a.png", "val_test/b.png", "c.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = load_corpus(str(tmp_path), caption_column="text")
    assert loaded["captions"] == [row["text"] for row in rows]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_metadata_of_other_forms(tmp_path, form):
    write(tmp_path, "in/a.png", "in/b.png")
    table = {"file_name": ["a.png", "b.png"], "text": ["one, two", "NA"]}
    getattr(datasets.Dataset.from_dict(table), f"to_{form}")(tmp_path / "in" / f"metadata.{form}")
    assert load_corpus(str(tmp_path), caption_column="text")["captions"] == ["one, two", "NA"]


def test_metadata_with_one_caption_or_several(tmp_path):
    write(tmp_path, "a.png", "b.png")
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": ["two", "three"]}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_corpus(str(tmp_path), caption_column="text")["captions"] == [["one"], ["two", "three"]]
    rows[1]["text"] = 7
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 2: text is of type int, before it str"):
        load_corpus(str(tmp_path), caption_column="text")


def test_a_folder_in_a_circle_of_links_ends(tmp_path):
    write(tmp_path / "real", "a.png")
    (tmp_path / "real" / "again").symlink_to(tmp_path / "real", target_is_directory=True)
    assert pictures_of(tmp_path) == ["real/a.png"]


# -- pictures that show the same --------------------------------------------------------------------------------------


def test_rows_with_one_picture_have_one_id(tmp_path):
    write(tmp_path, "a.png", "b.png")
    rows = [{"file_name": name, "text": text} for name, text in (("a.png", "1"), ("b.png", "2"), ("a.png", "3"))]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listed = [{"image": row["file_name"], "text": row["text"]} for row in rows]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    paths = [{"bytes": None, "path": row["file_name"]} for row in rows]
    parquet = datasets.Dataset.from_dict({"image": paths, "text": ["1", "2", "3"]})
    parquet.to_parquet(tmp_path / "x.parquet")
    for dataset in (tmp_path, tmp_path / "list.json", tmp_path / "x.parquet"):
        groups = load_corpus(str(dataset), caption_column="text")["group"]
        assert groups[0] == groups[2] != groups[1], dataset
        arguments = DataArguments(evaluation_dataset=str(dataset), evaluation_split="train", caption_column="text")
        data = build_retrieval_data(arguments)
        assert len(data.images) == 2 and len(data.texts) == 3
        assert data.text_groups.count(data.image_groups[0]) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_an_id_are_alone_and_ids_of_two_sets_differ(tmp_path, streaming):
    groups = []
    for name in ("a", "b"):
        ids = [5.0, None, None, float("nan"), 5.0]
        table_of(5).add_column("id", ids).to_parquet(tmp_path / f"{name}.parquet")
        rows = load_corpus(
            str(tmp_path / f"{name}.parquet"), caption_column="text", id_column="id", streaming=streaming
        )
        groups.append([row["group"] for row in rows])
    assert all(first == last and len({first, *alone}) == 4 for first, *alone, last in groups)
    assert not set(groups[0]) & set(groups[1])


def test_ids_of_a_task_follow_the_same_rules(tmp_path):
    write(tmp_path, "a.png", "b.png")
    rows = [
        {"image": f"{name}.png", "caption": "x", "image_id": value}
        for name, value in zip("abab", [1, 1, None, None], strict=True)
    ]
    found = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        found.append(TASKS["retrieval"].load(str(tmp_path / f"{name}.json"))["image_id"][:])
    assert all(ids[0] == ids[1] and len(set(ids)) == 3 for ids in found)
    assert not set(found[0]) & set(found[1])


def test_one_column_may_serve_twice(tmp_path):
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a.png", "t": "x"}, {"image": "b.png", "t": "y"}]))
    rows = load_corpus(str(tmp_path / "list.json"), caption_column="t", id_column="image")
    assert [group.rsplit("=", 1)[1] for group in rows["group"]] == ["a.png", "b.png"] and rows["image"][0] == str(
        tmp_path / "a.png"
    )


# -- captions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("captions", "column", "expected"),
    [
        ([{"en": "a dog", "de": "ein Hund"}] * 2, "caption.en", [["a dog"]] * 2),
        ([[{"raw": "a dog"}, {"raw": "dog"}]] * 2, "caption.raw", [["a dog", "dog"]] * 2),
        ([{"x": {"y": ["a", "b"]}}] * 2, "caption.x.y", [["a", "b"]] * 2),
        (['{"en": "a dog"}', '{"en": "cat"}'], "caption.en", [["a dog"], ["cat"]]),
        ([["a dog", "dog"], ["cat"]], "caption", [["a dog", "dog"], ["cat"]]),
        (['["a dog", "dog"]', "[cat] on a mat"], "caption", ['["a dog", "dog"]', "[cat] on a mat"]),
        (["2020", "7"], "caption", ["2020", "7"]),
    ],
)
def test_captions_of_every_form(tmp_path, captions, column, expected):
    table = table_of(2).remove_columns("text").add_column("caption", captions)
    table.to_parquet(tmp_path / "x.parquet")
    assert load_corpus(str(tmp_path / "x.parquet"), caption_column=column)["captions"] == expected


@pytest.mark.parametrize(
    ("captions", "column", "message"),
    [
        ([{"en": "a dog", "de": "ein Hund"}] * 2, "caption", "mappings with the keys en, de; name one: caption.en"),
        ([{"en": "a dog"}] * 2, "caption.ne", "no field 'caption.ne'; there are: en"),
        ([[{"raw": "a dog", "n": 1}]] * 2, "caption", "mappings with the keys raw, n; name one"),
        ([3, 4], "caption", "column 'caption' holds int64, not texts"),
        ([0.5, 1.5], "caption", "holds double|holds float64"),
        ([True, False], "caption", "holds bool"),
        ([[["a"]], [["b"]]], "caption", "holds lists of lists of string"),
        ([[1], [2]], "caption", "holds lists of int64"),
        ([None, None], "caption", "is empty in every row"),
        (['{"en": "a dog"}'] * 2, "caption", "row 0: a mapping with the keys 'en'"),
        (["[1, 2]"] * 2, "caption", "row 0: a list of int"),
        ([{"a": {"b": 3}}] * 2, "caption.a.b", "row 0: int '3'"),
    ],
)
def test_what_is_no_caption_is_refused_before_training(tmp_path, captions, column, message):
    table = table_of(2).remove_columns("text").add_column("caption", captions)
    table.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=f"x.parquet.*({message})"):
        load_corpus(str(tmp_path / "x.parquet"), caption_column=column)


def test_captions_of_several_types_are_refused_by_row(tmp_path):
    rows = [{"image": "a.png", "caption": value} for value in ("x", ["y"], {"en": "z"})]
    write(tmp_path, "a.png")
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="list.jsonl, column 'caption', row 2: a mapping with the keys 'en'"):
        load_corpus(str(tmp_path / "list.jsonl"), caption_column="caption")
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    assert len(load_corpus(str(tmp_path / "list.jsonl"), caption_column="caption")) == 2


def test_json_of_a_list_is_drawn_from(tmp_path, processor):
    table = table_of(6).remove_columns("text").add_column("caption", ['["red thing", "blue thing"]'] * 6)
    table.to_parquet(tmp_path / "x.parquet")
    arguments = DataArguments(dataset=str(tmp_path / "x.parquet"), caption_column="caption", augmentation="none")
    (batch,) = first(build_training_data(arguments, processor, batch_size=6, seed=0), 1)
    decode = processor.tokenizer.decode
    assert {decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]} == {"red thing", "blue thing"}


def test_bad_captions_of_a_stream_are_refused_at_the_first_row_and_counted_later(tmp_path, processor):
    def stream(captions):
        table_of(8).remove_columns("text").add_column("caption", captions).to_parquet(tmp_path / "x.parquet")
        arguments = DataArguments(
            dataset=str(tmp_path / "x.parquet"),
            caption_column="caption",
            streaming=True,
            streaming_rows=8,
            streaming_window=8,
            augmentation="none",
        )
        return next(build_training_data(arguments, processor, batch_size=8, seed=0).batches())

    with pytest.raises(ValueError, match="column 'caption', row 0: a mapping with the keys 'en', 'de'"):
        stream([{"en": "a dog", "de": "ein Hund"}] * 8)
    rejected = stream(["a dog"] * 7 + ["[1]"])["rejected"]
    assert rejected and all("captions: a list of int" in each["reason"] and each["row"] == 7 for each in rejected)


@pytest.mark.parametrize("length", [200_000, 50_000_000])
def test_an_endless_caption_is_rejected_at_once(tmp_path, processor, length):
    write(tmp_path, "a.png", "b.png")
    rows = [{"image": "a.png", "caption": "word " * (length // 5)}, {"image": "b.png", "caption": "a dog"}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    arguments = DataArguments(dataset=str(tmp_path / "list.json"), caption_column="caption", augmentation="none")
    data = build_training_data(arguments, processor, batch_size=2, seed=0)
    began = time.process_time()
    rejected = next(data.batches())["rejected"]
    assert time.process_time() - began < 5
    assert "characters, more than 100,000" in rejected[0]["reason"]


def test_texts_and_fields():
    assert texts_of(None) == [] and texts_of([None, "a"]) == ["a"] and texts_of("[") == ["["]
    assert texts_of('["a", null]') == ["a"] and texts_of('{"a"') == ['{"a"']
    assert split_field("a.b", ["a", "a.b"]) == ("a.b", ()) and split_field("a.b", ["a"]) == ("a", ("b",))
    assert split_field("b", ["a"]) is None
    assert field_of([{"a": 1}, {"b": 2}], ["a"]) == [1, None] and field_of("text", ["a"]) is None


# -- lists of comma- or tab-separated values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "separator"), [("list.csv", ","), ("list.tsv", "\t"), ("list.csv", "\t"), ("list.csv", ";")]
)
def test_lists_of_separated_values(tmp_path, name, separator):
    write(tmp_path, "pictures/a.png", "pictures/b.png")
    with (tmp_path / name).open("w", newline="") as handle:
        lines = csv.writer(handle, delimiter=separator)
        lines.writerows([["filepath", "title"], ["pictures/a.png", "a dog, small"], ["pictures/b.png", "null"]])
    rows = load_corpus(str(tmp_path / name), image_column="filepath", caption_column="title")
    assert rows["captions"] == ["a dog, small", "null"] and rows["image"][1] == str(tmp_path / "pictures/b.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv is empty"),
        ("image,caption\na.png\n", "list.csv, line 2: 1 values, but there are 2 columns"),
        ('image,caption\na.png,"no end\nb.png,x\n', "list.csv, line 3: unexpected end of data"),
        ('image,caption\na.png,"a" b\n', "list.csv, line 2"),
        ("image,image\na.png,x\n", "line 1: two columns have one name"),
        ("image,text\na.png,x\n", "no column 'caption'; there are: image, text"),
        ("image,caption\nb.png,x\n", "none of the first 1 pictures exists.*Set image_root"),
        ("image,caption\nhttp://x/b.png,x\n", "holds addresses such as http://x/b.png; download them first"),
        ("image,caption\n", "list.csv.*has no rows"),
    ],
)
def test_a_damaged_list_is_named_with_its_line(tmp_path, text, message, processor):
    write(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text(text)
    arguments = DataArguments(dataset=str(tmp_path / "list.csv"), caption_column="caption")
    with pytest.raises(ValueError, match=message):
        build_training_data(arguments, processor, batch_size=1, seed=0)


def test_lists_without_a_line_of_names(tmp_path):
    write(tmp_path, "a.png")
    (tmp_path / "list.tsv").write_text("a dog\ta.png\n")
    rows = load_corpus(
        str(tmp_path / "list.tsv"), caption_column="caption", options={"column_names": ["caption", "image"]}
    )
    assert rows["captions"] == ["a dog"]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.parquet"])
def test_empty_files_are_named(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=f"{name} is empty"):
        load_corpus(str(tmp_path / name))


def test_a_json_list_without_rows_is_named(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="x.json has no rows"):
        load_corpus(str(tmp_path / "x.json"))


# -- archives ---------------------------------------------------------------------------------------------------------


def archive(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as made:
            for name, data in files.items():
                made.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as made:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                made.addfile(member, io.BytesIO(data))
    return path


def pairs(count: int, start: int = 0, endings=("png",)) -> dict[str, bytes]:
    files = {}
    for number in range(start, start + count):
        files[f"{number:03d}.{endings[number % len(endings)]}"] = picture(number)
        files[f"{number:03d}.txt"] = f"thing {number}".encode()
        files[f"{number:03d}.json"] = json.dumps({"caption": [f"thing {number}"], "n": number}).encode()
    return files


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.zip"])
@pytest.mark.parametrize("column", ["txt", "json.caption"])
@pytest.mark.parametrize("streaming", [False, True])
def test_archives(tmp_path, name, column, streaming):
    path = archive(tmp_path / name, pairs(6, endings=("jpg", "png", "webp")))
    options = {"image_column": "jpg;png;webp", "caption_column": column, "streaming": streaming}
    rows = list(load_corpus(str(path), **options))
    assert [texts_of(row["captions"]) for row in rows] == [[f"thing {n}"] for n in range(6)]
    assert [row["image"]["bytes"] for row in rows] == [picture(n) for n in range(6)]


def test_files_of_a_row_may_lie_apart(tmp_path):
    files = pairs(4)
    apart = dict(sorted(files.items(), key=lambda item: item[0].rsplit(".")[-1]))
    rows = load_corpus(str(archive(tmp_path / "x.tar", apart)), image_column="png", caption_column="txt")
    assert rows["captions"] == [[f"thing {n}"] for n in range(4)]


def test_names_with_dots_are_rows_of_their_own(tmp_path):
    files = {"v1.5.jpg": picture(1), "v1.5.txt": b"one", "v1.6.jpg": picture(2), "v1.6.txt": b"two"}
    files |= {"a.jpg": picture(3), "a.mask.jpg": picture(4), "a.txt": b"three"}
    rows = load_corpus(str(archive(tmp_path / "x.tar", files)), image_column="jpg", caption_column="txt")
    assert rows["captions"] == [["one"], ["two"], ["three"]]
    assert rows[2]["image"]["bytes"] == picture(3)


def test_a_changed_archive_is_read_again(tmp_path):
    path = tmp_path / "x.tar"
    for start in (0, 3):
        archive(path, pairs(2, start))
        rows = load_corpus(str(path), image_column="png", caption_column="txt")
        assert rows["captions"] == [[f"thing {start}"], [f"thing {start + 1}"]]


@pytest.mark.parametrize(
    ("files", "columns", "message"),
    [
        (pairs(2), {"image_column": "jpg", "caption_column": "txt"}, "no column 'jpg'; .*png"),
        (pairs(2), {"image_column": "png", "caption_column": "json"}, "json: its caption|mapping with the keys"),
        (pairs(2), {"image_column": "png", "caption_column": "json.n"}, "000.*: its caption is int '0'"),
        (pairs(2), {"image_column": "png", "caption_column": "json.none"}, "json.none"),
        (
            {**pairs(1), "000.txt": b"x" * 2_000_000},
            {"image_column": "png", "caption_column": "txt"},
            "2,000,000 bytes",
        ),
        ({**pairs(1), "000.txt": b"\xff\xfe"}, {"image_column": "png", "caption_column": "txt"}, "000.txt: not text"),
    ],
)
def test_an_archive_that_cannot_be_used_is_refused(tmp_path, files, columns, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(str(archive(tmp_path / "x.tar", files)), **columns)


def test_archives_that_are_streamed_are_rows_by_number(tmp_path):
    for shard in range(4):
        archive(tmp_path / f"s{shard:02d}.tar", pairs(2, 2 * shard))
    options = {"image_column": "png", "caption_column": "txt", "streaming": True}
    stream = load_corpus(str(tmp_path / "s{00..03}.tar"), **options)
    assert [stream[n]["captions"] for n in (7, 0, 5, 2)] == ["thing 7", "thing 0", "thing 5", "thing 2"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s{000..002}.tar", ["s000.tar", "s001.tar", "s002.tar"]),
        ("s{9..11}", ["s9", "s10", "s11"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("plain", ["plain"]),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names


def test_a_missing_shard_is_named(tmp_path):
    archive(tmp_path / "s00.tar", pairs(1))
    with pytest.raises(ValueError, match="no such file: .*s01.tar"):
        load_corpus(str(tmp_path / "s{00..01}.tar"), image_column="png", caption_column="txt")


# -- folders of tables ------------------------------------------------------------------------------------------------


def test_a_folder_of_parquet_shards(tmp_path):
    for shard in range(3):
        parquet_of(tmp_path / f"steam_train-{shard}.parquet", 2, 2 * shard)
    rows = load_corpus(str(tmp_path), caption_column="text")
    assert rows["captions"] == [f"thing number {n}" for n in range(6)]


def test_a_folder_of_tables_with_splits(tmp_path):
    parquet_of(tmp_path / "data" / "train-00000-of-00001.parquet", 2) if (tmp_path / "data").mkdir() is None else None
    parquet_of(tmp_path / "data" / "test-00000-of-00001.parquet", 3)
    assert len(load_corpus(str(tmp_path), caption_column="text")) == 2
    assert len(load_corpus(str(tmp_path), caption_column="text", split="test")) == 3
    with pytest.raises(ValueError, match="no split 'validation'; there are: test, train"):
        load_corpus(str(tmp_path), caption_column="text", split="validation")
    parquet_of(tmp_path / "data" / "more.parquet", 1)
    with pytest.raises(ValueError, match="more.parquet names no split, but others"):
        load_corpus(str(tmp_path), caption_column="text")


def test_pictures_as_plain_mappings_or_bytes(tmp_path):
    plain = {"image": [{"bytes": picture(n), "path": "x"} for n in range(2)], "text": ["a", "b"]}
    datasets.Dataset.from_dict(plain).to_parquet(tmp_path / "x.parquet")
    datasets.Dataset.from_dict({**plain, "image": [picture(n) for n in range(2)]}).to_parquet(tmp_path / "y.parquet")
    for name in ("x.parquet", "y.parquet"):
        rows = load_corpus(str(tmp_path / name), caption_column="text")
        assert [row["image"]["bytes"] for row in rows] == [picture(0), picture(1)]
        assert rows["group"][0] != rows["group"][1]


@pytest.mark.parametrize("values", [[1, 2], [[0.5], [1.5]], [None, None]])
def test_an_image_column_of_the_wrong_type_is_refused(tmp_path, values):
    datasets.Dataset.from_dict({"image": values, "text": ["a", "b"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="x.parquet, column 'image' holds .*, not pictures or their paths"):
        load_corpus(str(tmp_path / "x.parquet"), caption_column="text")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("nowhere.csv", "no such file: nowhere.csv"),
        ("data/nowhere.parquet", "no such file"),
        ("nowhere/", "no such folder"),
        ("nowhere", "no such folder"),
        ("a/b/c", "no such folder"),
        ("tests/nowhere", "no such folder: tests/nowhere"),
        ("nowhere/x{0..3}.tar", "no such file"),
        ("nowhere/*.parquet", "no such file"),
        ("list.xlsx", "no such file"),
    ],
)
def test_a_path_that_is_not_there_is_never_looked_up_on_the_hub(dataset, message, monkeypatch, tmp_path):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(ValueError, match=message):
        load_corpus(dataset)


def test_a_file_of_another_kind_is_refused_with_those_that_are_read(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"x.h5: files ending in '.h5' are not supported; .parquet, .*.zip are"):
        load_corpus(str(tmp_path / "x.h5"))


def test_a_folder_may_be_streamed(tmp_path):
    write(tmp_path, *(f"{n}.png" for n in range(6)))
    rows = list(load_corpus(str(tmp_path), caption_column=None, streaming=True))
    assert [row["image"] for row in rows] == [str(tmp_path / f"{n}.png") for n in range(6)]
    assert rows[0]["group"].endswith("0.png")


def test_arrays_beside_pictures_are_left_out_and_counted(tmp_path, capsys):
    write(tmp_path, "a.png")
    (tmp_path / "a.npy").write_bytes(b"features")
    assert pictures_of(tmp_path) == ["a.png"]
    assert "left out: 1 files (.npy)" in capsys.readouterr().out


def test_metadata_that_is_not_utf_8_is_named_with_its_line(tmp_path):
    write(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "caf\xe9"}\n')
    with pytest.raises(ValueError, match="metadata.jsonl, line 1: not JSON .*codec can't decode"):
        load_corpus(str(tmp_path), caption_column="text")


def test_a_folder_to_search_has_the_same_pictures_as_one_to_train_on(tmp_path):
    names = [*AWKWARD, "a.jfif", "linked/b.mpo"]
    write(tmp_path / "x", *names)
    (tmp_path / "linked").mkdir()
    write(tmp_path / "linked", "c.png")
    (tmp_path / "x" / "link").symlink_to(tmp_path / "linked", target_is_directory=True)
    (tmp_path / "x" / "d.heic").write_bytes(b"x")
    (tmp_path / "x" / ".DS_Store").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"10 pictures; not indexed: 1 files \(.heic\)"):
        rows = picture_dataset(tmp_path / "x", "image")
    assert sorted(rows["file"]) == sorted([*names, "link/c.png"]) == pictures_of(tmp_path / "x")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.arrow"])
def test_compressed_and_arrow_files(tmp_path, name):
    write(tmp_path, "a.png")
    row = {"image": "a.png", "captions": "a dog"}
    if name.endswith(".arrow"):
        datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "saved")
        next((tmp_path / "saved").glob("*.arrow")).rename(tmp_path / name)
    else:
        text = json.dumps(row) if "json" in name else "image,captions\na.png,a dog\n"
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert load_corpus(str(tmp_path / name))["captions"] == ["a dog"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("written", ["pictures", "./pictures", "here/../pictures"])
def test_a_folder_may_be_relative(written, streaming, tmp_path, monkeypatch):
    """By class folders and by metadata alike."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / name)

    def rows(**options):
        loaded = load_corpus(written, streaming=streaming, **options)
        return [row["image"] for row in loaded]

    wanted = [(tmp_path / "pictures" / name).resolve() for name in ("cat/1.png", "dog/2.png")]
    assert [Path(path).resolve() for path in rows(caption_column=None, label_column="label")] == wanted
    lines = [{"file_name": name, "text": "a drawing"} for name in ("cat/1.png", "dog/2.png")]
    (tmp_path / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [Path(path).resolve() for path in rows(caption_column="text")] == wanted
