"""Fine-tuning retrieval on two ranks is fine-tuning it on one, measured by both together."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from helpers import run_two_ranks, tiny_model
from PIL import Image

from albef_hf import AlbefProcessor
from albef_hf.training.initialization import load_tokenizer

WORKER = Path(__file__).parent / "finetune_worker.py"
ROOT = Path(__file__).parent.parent


def prepared(folder: Path, batch_size: int) -> Path:
    folder.mkdir()
    tokenizer = load_tokenizer("wordpiece")
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 40}
    tiny_model(text_config=text).save_pretrained(folder / "start")
    AlbefProcessor.from_parts(tokenizer, image_size=32).save_pretrained(folder / "start")
    rows = []
    for number in range(20):
        Image.new("RGB", (32, 32), (12 * number, 255 - 12 * number, 90)).save(folder / f"{number}.png")
        rows.append(
            {"image": f"{number}.png", "caption": [f"picture {number}", f"number {number}"], "image_id": number // 2}
        )
    (folder / "list.json").write_text(json.dumps(rows))
    values = {
        "task": "retrieval",
        "model_path": str(folder / "start"),
        "dataset": str(folder / "list.json"),
        "validation": {"split": "train"},
        "tests": {"test": {"split": "train"}},
        "image_size": 32,
        "queue_size": 24,
        "gather_negatives": True,
        "batch_size": batch_size,
        "max_steps": 3,
        "evaluate_every": 2,
        "log_every": 1,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "rerank": 4,
        "report_to": "none",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_two_ranks_train_and_measure_as_one(tmp_path, monkeypatch):
    two, one = prepared(tmp_path / "two", 4), prepared(tmp_path / "one", 8)
    run_two_ranks(WORKER, two)
    monkeypatch.setattr(sys, "argv", ["x", str(one / "run.yaml"), "--output_dir", str(one / "run")])
    runpy.run_path(str(ROOT / "scripts" / "finetune_retrieval.py"), run_name="__main__")
    logs = [
        [
            row
            for row in map(json.loads, (folder / "run" / "log.jsonl").read_text().splitlines())
            if row["kind"] == "train"
        ]
        for folder in (one, two)
    ]
    assert [len(log) for log in logs] == [3, 3]
    for alone, together in zip(*logs, strict=True):
        for name in ("loss", "loss_itc", "loss_itm", "gradient_norm"):
            assert alone[name] == pytest.approx(together[name], rel=1e-4), name
    results = [json.loads((folder / "run" / "results.json").read_text()) for folder in (one, two)]
    assert results[0]["chosen"]["step"] == results[1]["chosen"]["step"]
    assert results[0]["tests"]["test"]["last"] == pytest.approx(results[1]["tests"]["test"]["last"])
