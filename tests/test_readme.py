"""What README and docs show runs as printed, each document from top to bottom."""

import functools
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import shallow_model
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# A block that begins with this is compiled but not run.
NOT_RUN = "# needs the Hub"
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if "```python" in path.read_text("utf-8")
]
# What blocks of the documents import beyond the package's own requirements.
OPTIONAL = ("peft", "onnx", "onnxscript")


def blocks(path: Path) -> list[str]:
    """Python blocks, with as many empty lines before them as the document has, so that errors show its lines."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"```python\n(.*?)```", text, re.S):
        found.append("\n" * text.count("\n", 0, match.start(1)) + match.group(1))
    return found


@pytest.fixture
def after_quickstart(processor, tmp_path, monkeypatch):
    """A working folder as after the quickstart, with a small untrained model in it and some pictures."""
    folder = tmp_path / "runs" / "quickstart" / "model"
    shallow_model(vocab_size=len(processor.tokenizer), max_position_embeddings=32).save_pretrained(folder)
    processor.save_pretrained(folder)
    (tmp_path / "pictures").mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (40, 40), name).save(tmp_path / "pictures" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    # Compile without the C++ compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_examples_of_a_document_run_in_order(document, after_quickstart, capsys):
    namespace: dict = {"__name__": "example"}
    for block in blocks(document):
        code = compile(block, str(document), "exec")
        missing = [name for name in OPTIONAL if name in block and importlib.util.find_spec(name) is None]
        if block.lstrip().startswith(NOT_RUN):
            continue
        if missing:
            pytest.skip(f"{document.name}: {', '.join(missing)} not installed; run as far as there")
        exec(code, namespace)
    assert "torch" in sys.modules
    if document.name == "README.md":
        scores = [float(number) for number in re.findall(r"0\.\d+", capsys.readouterr().out)]
        assert len(scores) == 2 and abs(sum(scores) - 1) < 1e-3


def test_documents_are_found_and_few_blocks_are_left_unrun():
    assert {"README.md", "using.md"} <= {path.name for path in DOCUMENTS}
    unrun = [block for path in DOCUMENTS for block in blocks(path) if block.lstrip().startswith(NOT_RUN)]
    assert len(unrun) <= 2
    assert all("NAME/" in block for block in unrun)  # nothing else may be left out


def test_the_commands_name_files_and_extras_that_exist():
    texts = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]
    for text in texts:
        for path in re.findall(r"(?:scripts|configs|docs|tests|albef_hf)/[\w./]+\.(?:py|yaml|md)\b", text):
            assert (ROOT / path).is_file() or path == "configs/NAME.yaml", path
        extras = (ROOT / "setup.cfg").read_text(encoding="utf-8").split("[options.extras_require]")[1]
        for extra in re.findall(r"\.\[(\w+)\]", text):
            assert f"\n{extra} =" in extras, extra
