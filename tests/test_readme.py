"""What README shows runs as printed."""

import re
from pathlib import Path

from helpers import tiny_model
from transformers import BertTokenizer

from albef_hf import AlbefProcessor

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROOT = Path(__file__).parent.parent


def test_the_first_example_runs_on_a_trained_folder(tmp_path, monkeypatch, capsys):
    from albef_hf.training.initialization import load_tokenizer

    tokenizer = load_tokenizer("wordpiece")
    assert isinstance(tokenizer, BertTokenizer)
    model = tiny_model(text_config={"vocab_size": len(tokenizer)})
    model.save_pretrained(tmp_path / "runs" / "quickstart" / "model")
    AlbefProcessor.from_parts(tokenizer, image_size=32).save_pretrained(tmp_path / "runs" / "quickstart" / "model")
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(snippet, "README.md", "exec"), {})
    scores = [float(number) for number in re.findall(r"0\.\d+", capsys.readouterr().out)]
    assert len(scores) == 2 and abs(sum(scores) - 1) < 1e-3


def test_the_commands_name_files_and_extras_that_exist():
    for path in re.findall(r"(?:scripts|configs|docs|tests|albef_hf)/[\w./]+\.\w+", README):
        assert (ROOT / path).is_file(), path
    extras = (ROOT / "setup.cfg").read_text(encoding="utf-8").split("[options.extras_require]")[1]
    for extra in re.findall(r"\.\[(\w+)\]", README):
        assert f"\n{extra} =" in extras, extra
