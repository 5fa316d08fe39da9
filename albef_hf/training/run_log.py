"""The rows of a run's log, its progress bar and its trackers."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..data.batches import TrainingData
from ..reporting.log import LogWriter
from ..trainable import Trainable
from .arguments import TrainingArguments
from .checkpoints import naming_a_full_disk
from .position import Position


def device_name(device: torch.device) -> str:
    """The name of a device in the log."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


class TrainingLog:
    """The rows of a run's log, its progress bar and its trackers. Scalars stay on the device between rows.

    Args:
        path: of log.jsonl, which only the main process writes.
        method, data, arguments, accelerator: as in `train`.
        position: of the run at its start.
        facts: to add to the first row.
    """

    def __init__(
        self,
        path: Path,
        method: Trainable,
        data: TrainingData,
        arguments: TrainingArguments,
        accelerator: Accelerator,
        position: Position,
        facts: Mapping[str, Any],
    ) -> None:
        self.path, self.method, self.data, self.arguments, self.accelerator = (
            path,
            method,
            data,
            arguments,
            accelerator,
        )
        self.length = position.length
        self.main = accelerator.is_main_process
        self.writer = LogWriter(path, position.step) if self.main else None
        self._describe(position.step, facts)
        self.bar = tqdm(
            total=self.length.total_steps - position.shift,
            initial=position.step,
            disable=not self.main,
            desc="training",
            unit="step",
        )
        self.since, self.started, self.row = time.monotonic(), time.monotonic(), position.step

    def write(self, row: dict[str, Any]) -> None:
        """Write a row of any kind."""
        if self.writer is not None:
            with naming_a_full_disk(self.path, "the checkpoints are good"):
                self.writer.write(row)

    def warn(self, step: int, text: str, **others: Any) -> None:
        """Print a warning and write it as a row. others: of the row."""
        self.accelerator.print(f"warning: {text}")
        self.write({"kind": "warning", "step": step, "text": text, **others})

    def _describe(self, start: int, facts: Mapping[str, Any]) -> None:
        """Write the first row, and the method's warnings about the settings of the run."""
        method, batch_size = self.method, self.data.batch_size
        parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
        row: dict[str, Any] = {"kind": "run", "method": method.name, "chance": method.chance_losses(batch_size)}
        row |= {"levels": method.levels(batch_size), "parameters": parameters, "start": start}
        row |= {"devices": self.accelerator.num_processes, "device": device_name(self.accelerator.device)}
        self.write(row | vars(self.length) | dict(facts))
        known = {"rows": self.data.rows, "batch_size": batch_size, "total_steps": self.length.total_steps}
        logged = [row.get("text") for row in self.writer.kept] if self.writer is not None else []
        for text in method.warnings(**known, optimizer=self.arguments.optimizer):
            if text in logged:  # at an earlier start of the run
                self.accelerator.print(f"warning: {text}")
            else:
                self.warn(start, text)

    def write_means(
        self, position: Position, sums: dict[str, torch.Tensor], output: Any, scheduled: Mapping[str, float]
    ) -> dict[str, float]:
        """Write the means of the sums since the last row. This reads from the device once.

        Args:
            sums: over the steps that counted, of losses and metrics of micro-batches and of `gradient_norm`; numbers
                of `skipped_steps` and `spikes`; `worst`: the most steps skipped one after the other.
            output: of the last micro-batch.

        Returns: the values of the row.
        """
        step, scheduled_step = position.step, position.step + position.shift
        steps, health = step - self.row, self.method.health(output)
        read = self.accelerator.reduce(torch.stack([*sums.values(), *(v.float() for v in health.values())]), "mean")
        values = dict(zip((*sums, *health), read.tolist(), strict=True))
        counts = {name: round(values[name]) for name in ("skipped_steps", "spikes", "worst")}
        counted = steps - counts["skipped_steps"]
        micro_batches = steps * self.arguments.accumulation
        for name in set(sums) - set(counts):  # where no step counted, there is no mean
            divisor = counted if name == "gradient_norm" else counted * self.arguments.accumulation
            values[name] = values[name] / divisor if counted else math.nan
        values |= counts
        worst = values.pop("worst")
        seconds = time.monotonic() - self.since
        self.row, self.since = step, time.monotonic()
        self.bar.set_postfix(loss=f"{values['loss']:.3f}")
        self._track(values, step)
        row = {"kind": "train", "step": step, "epoch": scheduled_step / self.length.steps_per_epoch}
        momentum = self.method.momentum_at(scheduled_step - 1, self.length.total_steps)
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()} | {**scheduled}
        row |= {} if momentum is None else {"momentum": momentum}
        samples = micro_batches * self.data.batch_size * self.accelerator.num_processes
        row |= {"samples_per_second": samples / seconds, "seconds": time.monotonic() - self.started}
        self.write(row)
        text = self.method.alarm(values)
        if text is not None:
            self.bar.write(f"warning, step {step}: {text}")
            self.write({"kind": "warning", "step": step, "text": text})
        return values | {"worst": worst, "steps": steps}

    def _track(self, values: dict[str, Any], step: int) -> None:
        """Give the values to the tracker. One that fails is not asked again."""
        try:
            self.accelerator.log(values, step=step)
        except Exception as error:
            self.accelerator.trackers = []
            self.warn(step, f"the tracker failed and is not used further: {type(error).__name__}: {error}")

    def write_evaluation(self, step: int, name: str, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation."""
        self.write({"kind": "evaluation", "step": step, "name": name, "metrics": metrics})

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation after a step is written. Known by the main process only."""
        return self.writer is not None and self.writer.has("evaluation", step)

    def state(self, sums: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What a resumed run needs to write its next row, as JSON. Called on all ranks.

        sums: of losses and metrics since the last row. They are kept rank by rank.
        """
        names = list(sums)
        if not names:
            return {"row": self.row, "sums": {}}
        ranks = self.accelerator.gather(torch.stack([sums[name] for name in names])[None]).tolist()
        return {"row": self.row, "sums": dict(zip(names, zip(*ranks, strict=True), strict=True))}

    def load_state(self, sums: dict[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; nothing of an empty mapping."""
        self.row = state.get("row", self.row)
        for name, ranks in state.get("sums", {}).items():
            same = len(ranks) == self.accelerator.num_processes
            value = ranks[self.accelerator.process_index] if same else sum(ranks) / len(ranks)
            sums[name] += value

    def go_back(self, step: int) -> None:
        """Drop the rows after a step, from which the run goes on."""
        if self.writer is not None:
            self.writer = LogWriter(self.path, step)
        self.row = self.bar.n = step
