"""A training script of a small method with every kind of state, which the crash test tries in its test."""

import dataclasses

import datasets
import torch
from torch import nn
from transformers.utils import ModelOutput

from albef_hf.data.batches import Collator, Samples, TrainingData
from albef_hf.data.corpora import Corpora
from albef_hf.gathering import gather_rows
from albef_hf.momentum import FeatureQueue, MomentumCopy
from albef_hf.trainable import Trainable
from albef_hf.training.arguments import parse_arguments
from albef_hf.training.launch import Run, launch


@dataclasses.dataclass
class Output(ModelOutput):
    loss: torch.Tensor | None = None
    keys: torch.Tensor | None = None


class Small(Trainable):
    """Rows are unlike those in the queue, whose keys a momentum copy made."""

    name = "small"

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.copy = MomentumCopy({"online": self.online})
        self.queue = FeatureQueue(5, 4)

    def forward(self, rows: torch.Tensor) -> Output:
        keys = self.copy.online(rows)
        return Output(loss=((self.online(rows) - self.queue.features.mean(0)) ** 2).mean(), keys=keys.detach())

    def enqueue(self, output: Output) -> None:
        self.queue.enqueue(gather_rows(output.keys))

    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None:
        self.copy.update({"online": self.online}, 0.9)


class Rows(Samples):
    def prepare(self, row, generator):
        return {"rows": torch.tensor(row["numbers"]) + torch.from_numpy(generator.random(4)).float()}


class Stack(Collator):
    def __call__(self, samples):
        return {"rows": torch.stack([sample["rows"] for sample in samples]), "rejected": []}


class SmallRun(Run):
    evaluation_name = "rows"

    def __init__(self, model_arguments, data_arguments, arguments, accelerator) -> None:
        table = datasets.Dataset.from_dict({"numbers": [[float(n), 1.0, 2.0, 3.0] for n in range(20)]})
        self.method, self.accelerator = Small(), accelerator
        self.data = TrainingData(
            Rows(Corpora([table], ["rows"]), data_arguments, arguments.seed),
            Stack(),
            arguments.batch_size,
            arguments.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            workers=data_arguments.workers,
            accumulation=arguments.accumulation,
        )

    def evaluate(self, method) -> dict[str, float]:
        return {"mean": float(method.online[0].weight.detach().mean())}

    def finish(self, method, folder, step) -> None:
        if self.accelerator.is_main_process:
            (folder / "result.txt").write_text(str(method.online[0].weight.tolist()))


if __name__ == "__main__":
    launch(SmallRun, *parse_arguments(), name="small")
