"""The weights that validation chose so far, kept in the `model` folder of a run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD = "chosen.json"


class Chosen:
    """Keeps the best of the weights that are offered after each evaluation; of equally good ones, the first.

    The folder is complete or absent, and records the step and the metric of its weights, from which a resumed run
    knows the best so far. If that step is later than the checkpoint, the run reaches it again with an equal metric.

    Args:
        folder: of the run.
        metric: the metric that chooses; higher is better.
        resumed: the run is resumed. Otherwise weights in the folder are of an earlier run and are ignored.
        files: further files to save with the weights, name -> text.
    """

    def __init__(self, folder: Path, metric: str, resumed: bool, files: Mapping[str, str] | None = None) -> None:
        self.folder, self.metric, self.files = folder / "model", metric, dict(files or {})
        self.kept = -1  # the step of the weights kept last, by this object
        self.old = self.folder.with_name(f".{self.folder.name}.removed")
        if resumed and self.old.exists() and not self.folder.exists():  # killed between the two renames of `_save`
            self.old.rename(self.folder)
        record = self.folder / RECORD
        self.best: dict[str, Any] | None = json.loads(record.read_text()) if resumed and record.is_file() else None

    def offer(self, model: Any, processor: Any, step: int, metrics: dict[str, float], writes: bool) -> None:
        """Keep these weights if they are better than all before, or if `metrics` is empty. Called on all ranks.

        Args:
            writes: this rank saves them.

        Raises:
            ValueError: the metric that chooses is not among the metrics.
        """
        if metrics and self.metric not in metrics:
            raise ValueError(f"chosen_by {self.metric!r} is none of the metrics: {', '.join(metrics)}")
        value = metrics.get(self.metric)
        before = None if self.best is None else self.best["value"]  # None, too, for weights that could not be measured
        if value is not None and before is not None and value <= before:
            return
        self.best = {"step": step, "metric": self.metric, "value": value}
        self.kept = step
        if writes:
            self._save(model, processor)

    def _save(self, model: Any, processor: Any) -> None:
        """Write a temporary folder, then put it in the place of the old one, which is renamed first."""
        scratch = self.folder.with_name(f".{self.folder.name}.incomplete")
        shutil.rmtree(scratch, ignore_errors=True)
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        for name, text in {RECORD: json.dumps(self.best), **self.files}.items():
            (scratch / name).write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(self.old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(self.old)
        scratch.rename(self.folder)
        shutil.rmtree(self.old, ignore_errors=True)
