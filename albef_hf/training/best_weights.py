"""The weights that validation chose, kept in the `model` folder of a run while it goes on."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD = "chosen.json"


class Chosen:
    """Offered the weights of each evaluation, keeps the best; the first of equals.

    A folder is complete or absent, and says itself which step it holds. A resumed run knows the best so far from
    there: where it holds a later step than the one the run goes on from, that step is reached again and found equal.

    Args:
        folder: of the run.
        metric: that chooses; the larger, the better.
        goes_on: the run is resumed; otherwise what the folder holds is of another run.
        files: further files of the folder, name -> text.
    """

    def __init__(self, folder: Path, metric: str, goes_on: bool, files: Mapping[str, str] | None = None) -> None:
        self.folder, self.metric, self.files = folder / "model", metric, dict(files or {})
        self.kept = -1  # the step that was kept last, since this object was made
        record = self.folder / RECORD
        self.best: dict[str, Any] | None = json.loads(record.read_text()) if goes_on and record.is_file() else None

    def offer(self, model: Any, processor: Any, step: int, metrics: dict[str, float], writes: bool) -> None:
        """Keep these weights if they are better than all before, or if nothing was measured. On all ranks, of which
        one writes.

        Raises:
            ValueError: the metric that chooses is not among the metrics.
        """
        if metrics and self.metric not in metrics:
            raise ValueError(f"chosen_by {self.metric!r} is none of the metrics: {', '.join(metrics)}")
        value = metrics.get(self.metric)
        if value is not None and self.best is not None and value <= self.best["value"]:
            return
        self.best = {"step": step, "metric": self.metric, "value": value}
        self.kept = step
        if writes:
            self._save(model, processor)

    def _save(self, model: Any, processor: Any) -> None:
        """Write the folder beside its place, then put it there."""
        scratch = self.folder.with_name(f".{self.folder.name}.incomplete")
        shutil.rmtree(scratch, ignore_errors=True)
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        for name, text in {RECORD: json.dumps(self.best), **self.files}.items():
            (scratch / name).write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        scratch.rename(self.folder)
