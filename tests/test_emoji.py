"""The built-in corpus."""

import pytest

from albef_hf.data.builtin.emoji import FOLDERS, load_emoji_corpus
from albef_hf.data.images import decode_image


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = str(tmp_path_factory.mktemp("cache"))
    yield
    datasets.config.HF_DATASETS_CACHE = before


def test_the_permissive_designs_by_default():
    corpus = load_emoji_corpus()
    assert set(corpus["design"]) == {"google", "twitter"}
    assert len(corpus) == 3618 and len(set(corpus["group"])) == 1809
    assert corpus.column_names == ["image", "name", "group", "design", "captions"]
    tomato = next(row for row in corpus if row["name"] == "tomato")
    assert tomato["captions"][0] == "tomato" and tomato["group"] == "\U0001f345"
    red, green, blue = decode_image(tomato["image"]).getpixel((36, 45))
    assert red > green and red > blue
    assert decode_image(tomato["image"]).getpixel((0, 0)) == (255, 255, 255)


def test_parts_share_no_emoji_and_no_design_is_favored():
    train, test = load_emoji_corpus(part="train"), load_emoji_corpus(part="test")
    assert not set(train["group"]) & set(test["group"])
    assert len(set(test["group"])) == 181 and len(train) + len(test) == 3618


def test_all_designs_and_skin_tones():
    with pytest.warns(UserWarning, match="windows: proprietary"):
        windows = load_emoji_corpus(designs=["windows"])
    assert 1400 < len(windows) < 1500
    with pytest.warns(UserWarning, match="apple, facebook, joypixels, samsung, windows: proprietary"):
        assert len(load_emoji_corpus(designs=list(FOLDERS), skin_tones=True)) > 21_000


def test_wrong_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown design 'goggle'; known: google"):
        load_emoji_corpus(designs=["goggle"])
    with pytest.raises(ValueError, match="part must be"):
        load_emoji_corpus(part="dev")


def test_a_missing_package_names_the_extra(monkeypatch):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"albef-hf\[quickstart\]"):
        load_emoji_corpus()
