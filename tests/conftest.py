"""Tests run without a network, and with one thread in each process."""

import os
import socket

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def not_deterministic_by_accident():
    """`deterministic` of a run holds for its process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def processor():
    """A processor with BERT's English vocabulary, for pictures of 32 pixels."""
    from albef_hf import AlbefProcessor
    from albef_hf.training.initialization import load_tokenizer

    return AlbefProcessor.from_parts(load_tokenizer("wordpiece"), image_size=32)


@pytest.fixture(scope="session")
def model_folder(processor, tmp_path_factory):
    """A folder with a small untrained model and its processor. Tests must not change it."""
    from helpers import tiny_model

    folder = tmp_path_factory.mktemp("model")
    text = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 32}
    tiny_model(text_config=text).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to connect fails the test."""

    def refuse(*arguments):
        raise AssertionError(f"a connection was tried: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
