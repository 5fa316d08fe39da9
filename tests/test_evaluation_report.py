"""What a run writes for its readers: log, curves, report."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import datasets
import numpy as np
import pytest
from PIL import Image

from albef_hf.data.retrieval import RetrievalData
from albef_hf.evaluation import RetrievalResult
from albef_hf.reporting.curves import draw_curves, plot_curves
from albef_hf.reporting.log import RunLog, read_log
from albef_hf.reporting.report import write_report
from albef_hf.tasks.classification import classification_result, confusion_section

EVIL = '<script>alert(1)</script><img src="http://evil.example/x.png">'
RUN = {
    "kind": "run",
    "method": "albef",
    "parameters": 1234567,
    "total_steps": 40,
    "chance": {"loss_itc": 4.0, "loss_itm": 0.6},
}


def train_row(step: int, **changes) -> dict:
    row = {"kind": "train", "step": step, "epoch": step / 10, "loss": 5.0, "loss_itc": 3.0, "loss_itm": 0.5}
    return {**row, "learning_rate": 1e-4, "samples_per_second": 20.0, "seconds": 2.0 * step, **changes}


def write_log(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_result(size: int = 15, k: int = 3) -> RetrievalResult:
    """Image 0 ranks its text first; each other image ranks its neighbor's text first."""
    order = [[(row + (row > 0) + column) % size for column in range(min(10, size))] for row in range(size)]
    ranks = np.array([0] + [size - 1] * (size - 1))
    names = [f"{way}_r{cutoff}" for way in ("image_to_text", "text_to_image") for cutoff in (1, 5, 10)]
    metrics = {**dict.fromkeys(names, 1 / size), "mean_recall": 1 / size}
    metrics |= {f"reranked_{name}": 0.5 for name in metrics} if k else {}
    return RetrievalResult(
        name=EVIL,
        images=size,
        texts=size,
        k=k,
        metrics=metrics,
        chance=dict.fromkeys(metrics, 1 / size),
        image_to_text=np.array(order),
        text_to_image=np.array(order),
        image_to_text_scores=np.zeros((size, 10), dtype=np.float32),
        text_to_image_scores=np.zeros((size, 10), dtype=np.float32),
        image_ranks=ranks,
        text_ranks=ranks,
    )


def make_data(size: int = 15) -> RetrievalData:
    pictures = [Image.new("RGB", (300, 200), (10 * row, 90, 160)) for row in range(size)]
    return RetrievalData(
        images=datasets.Dataset.from_dict(
            {"image": pictures, "group": list(range(size))},
            features=datasets.Features({"image": datasets.Image(), "group": datasets.Value("int64")}),
        ),
        texts=[f"{EVIL} number {row}" for row in range(size)],
        image_groups=list(range(size)),
        text_groups=list(range(size)),
        name=EVIL,
    )


@pytest.fixture
def run_folder(tmp_path):
    evaluation = {"kind": "evaluation", "step": 40, "name": EVIL, "metrics": {"image_to_text_r10": 0.4}}
    write_log(tmp_path / "log.jsonl", [RUN, *(train_row(step) for step in range(1, 41)), evaluation])
    (tmp_path / "config.yaml").write_text(f"dataset: '{EVIL}'\nseed: 3\n", encoding="utf-8")
    (tmp_path / "versions.json").write_text('{"torch": "2.15.0"}', encoding="utf-8")
    rejected = [{"row": 1, "source": EVIL, "reason": f"unreadable {EVIL}"}] * 3
    write_log(tmp_path / "rejected.jsonl", [*rejected, {"row": 9, "source": "b", "reason": "empty caption"}])
    return tmp_path


class Page(HTMLParser):
    """Tags, addresses and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.words.append(data)

    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_report_opens_without_a_network_and_runs_nothing(run_folder):
    path = write_report(run_folder, make_result(), make_data())
    page = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    addresses = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    style = path.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    for address in addresses:
        kind, content = address.split(";base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert picture.format.lower() == kind.removeprefix("data:image/")


def test_whatever_comes_from_outside_is_shown_as_text(run_folder):
    page = Page(write_report(run_folder, make_result(), make_data()).read_text(encoding="utf-8"))
    # Name in lead and heading, configuration twice, rejected source and reason, and every caption of the gallery.
    assert page.text().count(EVIL) == 2 + 2 + 2 + 12 * 5 + 12
    assert "number 14" in page.text()


def test_the_report_says_what_the_files_say(run_folder):
    text = Page(write_report(run_folder, make_result(), make_data()).read_text(encoding="utf-8")).text()
    for words in (
        "1.235 M trainable parameters",
        "40 of 40 optimizer steps",
        "1 min 20 s training time",
        "Image-text contrast 3.000 3.000 4.000 75%",
        "Total loss 5.000 5.000 4.600 109%",
        "15 images, 15 texts, measured at step 40",
        "Image → text R@1 6.7% 1.0 50.0% 7.5 6.67%",
        "not chosen by their outcome",
        "4 times a sample could not be used",
        "1 empty caption b",
        '"torch": "2.15.0"',
        "seed: 3",
    ):
        assert words in text, words


def test_right_and_wrong_are_told_apart_by_more_than_color(run_folder):
    page = write_report(run_folder, make_result(), make_data()).read_text(encoding="utf-8")
    # Only row 0 has its right candidate first; the others have it at rank 15, which is not shown.
    text = Page(page).text()
    shown_right = text.count("first right answer in place 1 of 15")
    assert text.count("first right answer in place 15 of 15") == 24 - shown_right
    marks = page.split("<h3>Image → text</h3>")[1]
    assert marks.count("✓") == marks.count('aria-label="right"') == shown_right
    assert marks.count("✗") == marks.count('aria-label="wrong"') == 24 * 5 - shown_right
    assert ".row figure.wrong { border-style: dotted" in page


def test_the_gallery_is_drawn_by_a_fixed_seed_and_not_by_outcome(run_folder):
    good, bad = make_result(), make_result()
    bad.image_ranks, bad.text_ranks = bad.image_ranks[::-1].copy(), bad.text_ranks[::-1].copy()
    pages = [write_report(run_folder, result, make_data()).read_text(encoding="utf-8") for result in (good, bad)]
    queries = [[line for line in page.split("alt=") if line.startswith('"query image')] for page in pages]
    assert [each.split('"')[1] for each in queries[0]] == [each.split('"')[1] for each in queries[1]]
    assert len(queries[0]) == 12


@pytest.mark.parametrize("k", [0, 3])
def test_a_report_of_what_there_is(tmp_path, k):
    empty = write_report(tmp_path, None, None).read_text(encoding="utf-8")
    assert "Losses" not in empty and "Retrieval" not in empty and "Gallery" not in empty
    small = write_report(tmp_path, make_result(size=15, k=k), None).read_text(encoding="utf-8")
    assert "Contrastive" in small and ("re-ranked" in small) == (k > 0) and "Gallery" not in small


def test_curves_of_a_log_with_one_row(tmp_path):
    write_log(tmp_path / "log.jsonl", [train_row(1)])
    path = plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 1000
        assert len(picture.convert("RGB").getcolors(maxcolors=1_000_000)) > 10


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{**RUN, "chance": {}}],
        [train_row(1, loss=float("nan"), loss_itc=None), train_row(2, loss_brand_new=1.5, gradient_norm=float("inf"))],
        [RUN, {"kind": "evaluation", "step": 0, "name": "x", "metrics": {}}, {"kind": "of another version"}],
    ],
    ids=["empty", "no training", "unknown loss, no numbers", "no recall"],
)
def test_curves_of_odd_logs(tmp_path, rows):
    write_log(tmp_path / "log.jsonl", rows)
    assert plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png").stat().st_size > 1000
    assert write_report(tmp_path, None, None).exists()


def test_each_loss_is_drawn_with_its_chance_level(tmp_path):
    run = {**RUN, "chance": {"loss_itc": 4.0, "loss_itm": 0.6, "loss_redundancy": 2.5}}
    rows = [train_row(step, loss_redundancy=2.0) for step in (1, 2)]
    evaluation = {"kind": "evaluation", "step": 2, "name": "toys", "metrics": {"image_to_text_r10": 0.5}}
    write_log(tmp_path / "log.jsonl", [run, *rows, {**evaluation, "chance": {"image_to_text_r10": 0.1}}])
    drawn = {}
    for axes in draw_curves(read_log(tmp_path / "log.jsonl")).axes:
        levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        labels = [text.get_text() for text in axes.texts if text.get_text().startswith("chance")]
        assert len(levels) == len(labels) <= 1
        if levels:
            drawn[axes.get_title("left")] = (levels[0], labels[0])
    assert drawn == {
        "Total loss": (pytest.approx(7.1), "chance 7.1"),
        "Image-text contrast": (4.0, "chance 4"),
        "Image-text matching": (0.6, "chance 0.6"),
        "redundancy": (2.5, "chance 2.5"),
        "Retrieval R@10: toys": (0.1, "chance 10.00%"),
    }


@pytest.mark.parametrize(("peak", "scale"), [(90.0, "log"), (20.0, "linear")])
def test_gradient_norms_far_above_the_usual_one_are_drawn_on_a_log_scale(tmp_path, peak, scale):
    rows = [train_row(step, gradient_norm=peak if step == 3 else 1.0) for step in range(1, 12)]
    write_log(tmp_path / "log.jsonl", [RUN, *rows])
    (axes,) = (
        axes for axes in draw_curves(read_log(tmp_path / "log.jsonl")).axes if "norm" in axes.get_title("left").lower()
    )
    assert axes.get_yscale() == scale


def test_the_confusion_matrix_has_shares_by_row_and_none_where_there_are_no_rows():
    result = classification_result("toys", [0, 1, 1, 1], [0, 0, 1, 1], ["cat", "dog", "fox"], [])
    cells = re.findall(r"<td[^>]*>(.*?)</td>", confusion_section(result))
    assert cells == ["1", "1", "0", "50.0%", "0", "2", "0", "100.0%", "0", "0", "0", "no rows"]


def test_a_total_that_is_no_sum_of_parts_has_no_chance_level():
    row = {"step": 1, "loss": 29.0, "loss_per_token": 11.0}
    assert RunLog(run={"chance": {"loss_per_token": 10.3}}, train=[row]).chance("loss") is None
    two = {**row, "loss_other": 1.0}
    assert RunLog(run={"chance": {"loss_per_token": 10.3, "loss_other": 2.0}}, train=[two]).chance("loss") == 12.3


def test_chance_of_an_evaluation_is_found_beside_the_log(tmp_path):
    row = {"kind": "evaluation", "step": 20, "name": EVIL, "metrics": {}}
    write_log(tmp_path / "log.jsonl", [row, {**row, "name": "other"}, {**row, "chance": {"mean_recall": 0.5}}])
    (tmp_path / "evaluations").mkdir()
    result = make_result(size=10)
    (tmp_path / "evaluations" / "step-00000020.json").write_text(result.to_json(), encoding="utf-8")
    chances = [row["chance"] for row in read_log(tmp_path / "log.jsonl").evaluations]
    assert chances == [result.chance, {}, {"mean_recall": 0.5}]


def test_a_run_that_resumed_from_an_earlier_step_is_shown_once(tmp_path):
    evaluation = {"kind": "evaluation", "step": 2, "name": "x", "metrics": {}}
    rows = [RUN, *(train_row(step, loss=9.0) for step in (1, 2)), evaluation, train_row(3, loss=9.0)]
    rows += [{**evaluation, "step": 3}, {**RUN, "parameters": 7}, train_row(3, loss=1.0), train_row(4, loss=1.0)]
    write_log(tmp_path / "log.jsonl", rows)
    log = read_log(tmp_path / "log.jsonl")
    assert [(row["step"], row["loss"]) for row in log.train] == [(1, 9.0), (2, 9.0), (3, 1.0), (4, 1.0)]
    assert [row["step"] for row in log.evaluations] == [2]
    assert log.run["parameters"] == 7


def test_a_cut_last_line_is_left_out_and_a_broken_one_before_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(train_row(1)) + '\n{"kind": "train", "st', encoding="utf-8")
    assert len(read_log(path).train) == 1
    path.write_text('{"kind": \n' + json.dumps(train_row(1)) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"log.jsonl, line 1 is not JSON"):
        read_log(path)
