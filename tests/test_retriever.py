"""The retriever agrees with the evaluation, and a loaded index with the saved one."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers import tiny_model
from PIL import Image

from albef_hf import AlbefForPreTraining, AlbefModel, AlbefProcessor, AlbefRetriever
from albef_hf.data.arguments import DataArguments
from albef_hf.data.retrieval import build_retrieval_data
from albef_hf.evaluation import evaluate_retrieval
from albef_hf.evaluation.recall import best_ranks, group_codes, recall_from_ranks
from albef_hf.inference.exact_search import nearest
from albef_hf.inference.index_files import fingerprint


@pytest.fixture(scope="module")
def data():
    """The first eighty drawings of the built-in corpus, and their texts."""
    whole = build_retrieval_data(
        DataArguments(evaluation_dataset="emoji", evaluation_dataset_options={"designs": ["twitter"]})
    )
    whole.images = whole.images.select(range(80))
    whole.image_groups = whole.image_groups[:80]
    kept = [index for index, group in enumerate(whole.text_groups) if group in set(whole.image_groups)]
    whole.texts = [whole.texts[index] for index in kept]
    whole.text_groups = [whole.text_groups[index] for index in kept]
    return whole


@pytest.fixture(scope="module")
def retriever(model_folder, data):
    return AlbefRetriever.from_pretrained(model_folder, search="exact").index(data.images)


@pytest.fixture
def folder(data, tmp_path):
    """Ten of the drawings as files in two folders, and four files that are not pictures."""
    for number in range(10):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.images[number]["image"]["bytes"])
    whole = (tmp_path / "pictures" / "a" / "0.png").read_bytes()
    (tmp_path / "pictures" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pictures" / "empty.jpg").touch()
    (tmp_path / "pictures" / "a" / "page.jpeg").write_text("<html></html>")
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    return tmp_path / "pictures"


def recalls(found, data) -> dict[str, float]:
    """Text-to-image recalls of search results. Pictures that are not among the first ten rank behind them."""
    images, texts = group_codes(data.image_groups, data.text_groups)
    rows, scores = torch.from_numpy(found.rows), torch.from_numpy(found.scores)
    ranks = best_ranks(scores, images[rows] == texts[:, None])
    ranks = ranks.masked_fill(ranks < 0, rows.shape[1])
    return {f"text_to_image_r{cutoff}": recall_from_ranks(ranks, cutoff) for cutoff in (1, 5, 10)}


@pytest.mark.parametrize("search", ["exact", "faiss"])
@pytest.mark.parametrize("rerank", [0, 16])
def test_recall_is_exactly_that_of_the_evaluation(retriever, data, rerank, search, monkeypatch):
    if search == "faiss":
        pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")
    monkeypatch.setattr(retriever, "how", search)
    result = evaluate_retrieval(retriever.model, retriever.processor, data, k=rerank)
    found = retriever.search(data.texts, k=10, rerank=rerank)
    prefix = "reranked_" if rerank else ""
    expected = {name: result.metrics[prefix + name] for name in recalls(found, data)}
    assert recalls(found, data) == expected
    assert 0 < expected["text_to_image_r10"] < 1  # neither nothing nor everything is found
    np.testing.assert_array_equal(found.rows, result.text_to_image)
    np.testing.assert_allclose(found.scores, result.text_to_image_scores, atol=1e-5)


def test_half_precision_halves_memory_and_finds_nearly_the_same(retriever, data):
    half = AlbefRetriever(retriever.model, retriever.processor).index(data.images, dtype="float16")
    assert half.features.dtype == torch.float16 and half.features.nbytes * 2 == retriever.features.nbytes
    torch.testing.assert_close(half.features.float(), retriever.features, atol=1e-3, rtol=0)
    found, expected = half.search(data.texts[:20], k=5), retriever.search(data.texts[:20], k=5)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)


def test_a_picture_finds_itself_first(retriever, data):
    pictures = [data.images[row]["image"] for row in (3, 7)]
    found = retriever.search(pictures, k=4)
    assert found.rows[:, 0].tolist() == [3, 7]
    np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-5)
    assert retriever.search(pictures[0], k=500).rows.shape == (1, 80)


def test_pictures_that_cannot_be_read_are_left_out_and_listed(retriever, folder):
    with pytest.warns(UserWarning, match="3 of 13 pictures left out"):
        mine = AlbefRetriever(retriever.model, retriever.processor, batch_size=3).index(folder)
    files = mine.images["file"]
    assert {files[row] for row, _ in mine.skipped} == {"cut.png", "empty.jpg", "a/page.jpeg"}
    assert "cannot identify image file" in {files[row]: reason for row, reason in mine.skipped}["empty.jpg"]
    found = mine.search(folder / "b" / "7.png", k=1)
    assert files[int(found.rows[0, 0])] == "b/7.png"
    # Features are those of the same pictures in a data set, in spite of the gaps.
    rows = [int(Path(files[row]).stem) for row in mine.rows.tolist()]
    torch.testing.assert_close(mine.features, retriever.features[rows], atol=1e-5, rtol=0)


def test_saved_and_loaded_it_gives_the_same_answers(retriever, data, model_folder, folder, tmp_path):
    texts = data.texts[:6]
    retriever.save(tmp_path / "index")
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"features.safetensors", "retriever.json"}
    loaded = AlbefRetriever.load(tmp_path / "index", images=data.images, search="exact")  # the model by its id
    for rerank in (0, 5):
        before, after = (each.search(texts, rerank=rerank) for each in (retriever, loaded))
        np.testing.assert_array_equal(before.rows, after.rows)
        np.testing.assert_allclose(before.scores, after.scores, atol=1e-6)
    with pytest.raises(ValueError, match="images="):
        AlbefRetriever.load(tmp_path / "index").search(texts, rerank=5)
    with pytest.raises(ValueError, match="at least 80 pictures, not of 70"):
        AlbefRetriever.load(tmp_path / "index", images=data.images.select(range(70)))
    with pytest.warns(UserWarning):
        of_folder = AlbefRetriever(retriever.model, retriever.processor).index(folder)
    of_folder.save(tmp_path / "of_folder")
    again = AlbefRetriever.load(tmp_path / "of_folder", retriever.model, retriever.processor)
    assert again.skipped == of_folder.skipped
    np.testing.assert_array_equal(again.search(texts, rerank=4).rows, of_folder.search(texts, rerank=4).rows)


def test_another_model_is_an_error(retriever, data, tmp_path):
    retriever.save(tmp_path)
    other = tiny_model(seed=1, text_config={"vocab_size": len(retriever.processor.tokenizer)})
    with pytest.raises(ValueError, match="other weights"):
        AlbefRetriever.load(tmp_path, other, retriever.processor)
    # The same weights under another class, or in bfloat16, are the same model.
    assert fingerprint(retriever.model.albef) == fingerprint(retriever.model)
    AlbefRetriever.load(tmp_path, retriever.model.albef, retriever.processor)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "pickle", "json", "swapped"])
def test_a_damaged_index_is_an_error_that_names_the_file(retriever, damage, tmp_path):
    retriever.save(tmp_path)
    features = tmp_path / "features.safetensors"
    content = features.read_bytes()
    name = "features.safetensors"
    if damage == "cut":
        features.write_bytes(content[:-10])
    elif damage == "flipped":
        features.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    elif damage == "missing":
        features.unlink()
    elif damage == "pickle":
        torch.save({"features": retriever.features, "rows": retriever.rows}, features)
    elif damage == "json":
        (tmp_path / "retriever.json").write_text("[1, 2")
        name = "retriever.json"
    else:
        shutil.copyfile(tmp_path / "retriever.json", features)
    with pytest.raises(ValueError, match=name):
        AlbefRetriever.load(tmp_path, retriever.model, retriever.processor)


def test_what_cannot_be_searched_says_why(retriever, model_folder, data, tmp_path):
    model, processor = retriever.model, retriever.processor
    with pytest.raises(ValueError, match="call index"):
        AlbefRetriever(model, processor).search("a car")
    with pytest.raises(ValueError, match="pathlib.Path"):
        retriever.search(["a car", Image.new("RGB", (8, 8))])
    with pytest.raises(ValueError, match="rerank must be 0"):
        retriever.search(Image.new("RGB", (8, 8)), rerank=4)
    with pytest.raises(ValueError, match="k at least 1"):
        retriever.search("a car", k=0)
    with pytest.raises(ValueError, match="no such folder"):
        AlbefRetriever(model, processor).index(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no pictures"):
        AlbefRetriever(model, processor).index(tmp_path)
    with pytest.raises(ValueError, match="no column 'picture'; there are: image, group"):
        AlbefRetriever(model, processor).index(data.images, image_column="picture")
    with pytest.raises(ValueError, match="none of 2 pictures"):
        AlbefRetriever(model, processor).index(datasets.Dataset.from_dict({"image": [b"", b"x"]}))
    towers = AlbefRetriever(AlbefModel.from_pretrained(model_folder), processor).index(data.images.select(range(3)))
    with pytest.raises(ValueError, match="no matching head"):
        towers.search("a car", rerank=2)


def test_exact_search_in_blocks_equals_one_product(monkeypatch):
    from albef_hf.inference import exact_search as module

    monkeypatch.setattr(module, "SIMILARITIES_AT_ONCE", 16 * 7)
    generator = torch.Generator().manual_seed(0)
    queries, features = (torch.randn(count, 5, generator=generator) for count in (9, 40))
    scores, positions = nearest(queries, features, 12)
    expected = (queries @ features.T).topk(12, dim=1)
    torch.testing.assert_close(scores, expected.values)
    assert torch.equal(positions, expected.indices)


def test_the_description_is_json_that_names_the_model(retriever, model_folder, tmp_path):
    retriever.save(tmp_path)
    description = json.loads((tmp_path / "retriever.json").read_text())
    assert description["model"] == str(model_folder) and description["revision"] is None
    assert isinstance(retriever.model, AlbefForPreTraining) and isinstance(retriever.processor, AlbefProcessor)
