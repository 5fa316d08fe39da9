"""Classes are matched by their names, and names of classes become captions."""

import warnings

import datasets
import pytest
from data_helpers import first, parquet_of, picture, table_of
from PIL import Image

from albef_hf.data.arguments import DataArguments
from albef_hf.data.labels import class_names, ordered_classes
from albef_hf.data.loading import build_training_data
from albef_hf.data.sources import load_corpus
from albef_hf.evaluation.probes import knn_accuracy
from ssl_methods.pictures import load_pictures

COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def folder_of(folder, **classes: int):
    """Pictures of one color for each class, in a folder of its name."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), COLORS[name]).save(folder / name / f"{number}.png")


def accuracy(arguments) -> float:
    train, test = load_pictures(arguments, 8, 3)
    features = [part.encode(lambda pixels: pixels.flatten(1)) for part in (train, test)]
    return knn_accuracy(features[0], train.labels, features[1], test.labels, (1,))[1]


def arguments_of(tmp_path, **changes) -> DataArguments:
    fields = {"dataset": str(tmp_path), "label_column": "label", "evaluation_split": "test", **changes}
    return DataArguments(**fields)


def test_a_test_folder_may_lack_a_class(tmp_path):
    folder_of(tmp_path / "train", blue=2, green=2, red=2)
    folder_of(tmp_path / "test", blue=2, red=2)
    assert accuracy(arguments_of(tmp_path)) == 1


def test_words_and_numbers_in_any_order_are_labels(tmp_path):
    rows = [("blue", "b"), ("green", "g"), ("red", "r")]

    def write(name, rows, feature=None):
        table = {
            "image": [{"bytes": None, "path": str(tmp_path / f"{color}.png")} for color, _ in rows],
            "label": [label for _, label in rows],
        }
        made = datasets.Dataset.from_dict(table)
        made = made if feature is None else made.cast_column("label", feature)
        made.to_parquet(tmp_path / name)

    for color, value in COLORS.items():
        Image.new("RGB", (8, 8), value).save(tmp_path / f"{color}.png")
    files = {"dataset": str(tmp_path / "a.parquet"), "evaluation_dataset": str(tmp_path / "b.parquet")}
    write("a.parquet", rows)
    write("b.parquet", rows[::-1])
    assert accuracy(arguments_of(tmp_path, **files)) == 1
    # The same classes with other numbers.
    write("a.parquet", [("blue", 0), ("green", 1), ("red", 2)], datasets.ClassLabel(names=["b", "g", "r"]))
    write("b.parquet", [("blue", 1), ("red", 0)], datasets.ClassLabel(names=["r", "b"]))
    assert accuracy(arguments_of(tmp_path, **files)) == 1
    # Names against plain numbers cannot be matched.
    write("b.parquet", [("blue", 0), ("red", 2)])
    with pytest.raises(ValueError, match="label: one part has class names and the other numbers"):
        load_pictures(arguments_of(tmp_path, **files), 8, 3)
    write("a.parquet", [("blue", 10), ("green", 9), ("red", 2)])
    write("b.parquet", [("blue", 10), ("red", 2)])
    assert accuracy(arguments_of(tmp_path, **files)) == 1


def test_a_class_that_training_lacks_is_said_and_counted_as_wrong(tmp_path):
    folder_of(tmp_path / "train", blue=2, red=2)
    folder_of(tmp_path / "test", blue=2, green=2)
    with pytest.warns(UserWarning, match="1 classes of the test pictures are not in the training pictures.*green"):
        assert accuracy(arguments_of(tmp_path)) == 0.5
    folder_of(tmp_path / "train", green=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*classes of the test pictures")
        assert accuracy(arguments_of(tmp_path)) == 1


def test_a_picture_without_a_label_is_named(tmp_path):
    table_of(3).remove_columns("text").add_column("label", ["a", None, "b"]).to_parquet(tmp_path / "x.parquet")
    arguments = arguments_of(tmp_path, dataset=str(tmp_path / "x.parquet"), evaluation_split="train")
    with pytest.raises(ValueError, match="row 1 has no label"):
        load_pictures(arguments, 8, 3)


def test_classes_keep_their_numbers_in_both_parts(tmp_path):
    folder_of(tmp_path / "train", blue=1, green=1, red=1)
    folder_of(tmp_path / "test", red=1)
    train, test = load_pictures(arguments_of(tmp_path), 8, 3)
    assert train.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [2]
    assert test.names == ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({"red": 3}, {"red": 1}, "all pictures are of class 'red', so that a probe has nothing to tell apart"),
        (
            {"red": 1, "blue": 1},
            {"green": 2},
            "no class of .* .green. is one of .* .blue, red., which a probe learns from",
        ),
    ],
)
def test_classes_that_say_nothing_are_refused(tmp_path, train, test, message):
    folder_of(tmp_path / "train", **train)
    folder_of(tmp_path / "test", **test)
    with pytest.raises(ValueError, match=message):
        load_pictures(arguments_of(tmp_path), 8, 3)


def test_an_empty_part_and_a_mixture_are_refused(tmp_path):
    folder_of(tmp_path / "train", blue=1, red=1)
    (tmp_path / "none.csv").write_text("image,label\n")
    with pytest.raises(ValueError, match="none.csv has no rows"):
        load_pictures(arguments_of(tmp_path, evaluation_dataset=str(tmp_path / "none.csv")), 8, 3)
    with pytest.raises(ValueError, match="label_column: .* `mixture` takes its place"):
        load_pictures(arguments_of(tmp_path, mixture=[{"dataset": str(tmp_path)}]), 8, 3)


def test_a_picture_that_cannot_be_read_is_named_with_its_row(tmp_path):
    folder_of(tmp_path / "train", blue=2, red=2)
    folder_of(tmp_path / "test", blue=2, red=1)
    (tmp_path / "test" / "red" / "0.png").write_bytes(b"broken")
    test = load_pictures(arguments_of(tmp_path), 8, 3)[1]
    with pytest.raises(ValueError, match=r"row 2 cannot be measured: unreadable.*mend or remove it"):
        test.encode(lambda pixels: pixels.flatten(1))
    train = load_pictures(arguments_of(tmp_path, max_image_pixels=63), 8, 3)[0]
    with pytest.raises(ValueError, match=r"row 0 cannot be measured: 8 x 8 pixels are more than 63"):
        train.encode(lambda pixels: pixels.flatten(1))


def test_too_few_pictures_for_the_neighbors_are_said(tmp_path):
    folder_of(tmp_path / "train", blue=2, red=2)
    folder_of(tmp_path / "test", blue=1)
    with pytest.warns(UserWarning, match="has 4 pictures: nearest neighbors with a larger k .up to 200. take all"):
        load_pictures(arguments_of(tmp_path), 8, 3)


def test_the_revision_is_of_the_data_set_that_is_trained_on(monkeypatch):
    asked = []

    def load(name, **options):
        asked.append((name, options["split"], options["revision"]))
        return table_of(2).remove_columns("text").add_column("label", ["a", "b"])

    monkeypatch.setattr("ssl_methods.pictures.load_corpus", load)
    fields = {"dataset": "one", "label_column": "label", "revision": "v1"}
    load_pictures(DataArguments(**fields), 8, 3)
    load_pictures(DataArguments(**fields, evaluation_dataset="other"), 8, 3)
    assert asked == [("one", "train", "v1"), ("one", "test", "v1"), ("one", "train", "v1"), ("other", "test", None)]


def test_names_of_labels():
    named = datasets.ClassLabel(names=["x", "y"])
    assert class_names([0, 1, -1, None], named) == ["x", "y", None, None]
    assert class_names(["1", "x", " y ", 2.0], names=["x", "y", "z"]) == ["y", "x", "y", "z"]
    assert class_names([True, "a", 3, ""]) == ["True", "a", "3", None]
    assert ordered_classes(["10", "9", None, "b", "a"]) == ["9", "10", "a", "b"]
    assert ordered_classes(["y"], named) == ["x", "y"]
    with pytest.raises(ValueError, match="row 1: label 2, but there are 2 class names: x, y"):
        class_names([0, 2], named)
    with pytest.raises(ValueError, match="row 0: float 0.5 is no label"):
        class_names([0.5])


# -- names of classes as captions -------------------------------------------------------------------------------------


def captions_drawn(processor, **fields) -> set[str]:
    arguments = DataArguments(augmentation="none", max_caption_tokens=12, **fields)
    (batch,) = first(build_training_data(arguments, processor, batch_size=4, seed=0), 1)
    assert batch["rejected"] == []
    return {processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]}


@pytest.mark.parametrize("streaming", [False, True])
def test_class_names_become_captions(tmp_path, processor, streaming):
    for name in ("red_bus", "dog"):
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.png").write_bytes(picture(number))
    more = {"streaming": True, "streaming_rows": 4} if streaming else {}
    drawn = captions_drawn(
        processor, dataset=str(tmp_path), caption_column="label", caption_template="a photo of a {}", **more
    )
    assert drawn == {"a photo of a red bus", "a photo of a dog"}


def test_words_become_captions_too_but_numbers_do_not(tmp_path, processor):
    path = parquet_of(tmp_path / "x.parquet", 4)
    assert "see thing number 1" in captions_drawn(
        processor, dataset=path, caption_column="text", caption_template="see {}"
    )
    table_of(2).remove_columns("text").add_column("label", [0, 1]).to_parquet(tmp_path / "y.parquet")
    with pytest.raises(ValueError, match="caption_template needs names of classes, but its column holds int64"):
        load_corpus(str(tmp_path / "y.parquet"), caption_column="label", caption_template="a {}")
    with pytest.raises(ValueError, match=r"caption_template needs \{\} once"):
        load_corpus(path, caption_column="text", caption_template="a photo")
    (tmp_path / "z" / "dog").mkdir(parents=True)
    (tmp_path / "z" / "dog" / "1.png").write_bytes(picture(1))
    with pytest.raises(ValueError, match="holds class numbers, not texts; caption_template makes captions"):
        load_corpus(str(tmp_path / "z"), caption_column="label")
