"""Small methods with every kind of state, their batches, and runs and checkpoints of them."""

import dataclasses

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers.utils import ModelOutput

from albef_hf.data.lines import read_lines
from albef_hf.momentum import FeatureQueue, MomentumCopy
from albef_hf.trainable import Trainable
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.checkpoints import save_checkpoint
from albef_hf.training.loop import train
from albef_hf.training.optimization import build_optimizer
from albef_hf.training.processes import build_accelerator


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


def saved(folder, step, value=None, **options):
    model = Small()
    with torch.no_grad():
        model.weight.fill_(step if value is None else value)
    optimizer = build_optimizer(model, TrainingArguments(optimizer="sgd"))
    return save_checkpoint(folder, model, optimizer, {"step": step}, **{"keep": 2, **options})


class Full(Trainable):
    """A method with every kind of state: a momentum copy, a queue, running statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.online = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.copy = MomentumCopy({"online": self.online})
        self.queue = FeatureQueue(5, 4, 1)
        self.factors: list[float] = []
        self.seen: list[dict[str, torch.Tensor]] = []

    def forward(self, pixel_values: torch.Tensor) -> "Output":
        self.seen.append({name: value.clone() for name, value in self.state_dict().items()})
        keys = self.online(pixel_values)
        return Output(loss=(keys**2).mean() * self.factors[len(self.seen) - 1], keys=keys.detach())

    def enqueue(self, output: "Output") -> None:
        self.queue.enqueue(output.keys, torch.ones(len(output.keys), 1, dtype=torch.int64, device=output.keys.device))

    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None:
        self.copy.update({"online": self.online}, 0.9)


@dataclasses.dataclass
class Output(ModelOutput):
    loss: torch.Tensor | None = None
    keys: torch.Tensor | None = None


class Rows:
    batch_size, steps_per_epoch, rows = 3, 100, 300

    def __init__(self, bad_pixel: int = -1) -> None:
        self.bad_pixel, self.starts = bad_pixel, []

    def batches(self, start=0):
        self.starts.append(start)
        for number in range(start, 10_000):
            pixels = torch.randn(3, 4, generator=torch.Generator().manual_seed(number))
            if number == self.bad_pixel:
                pixels[0, 0] = float("nan")
            yield {"pixel_values": pixels, "rejected": []}

    def to_device(self, batch, device):
        return send_to_device(batch, device)


def trained(folder, factors, data=None, **changes):
    folder.mkdir(exist_ok=True)
    method = Full()
    method.factors = factors
    defaults = {"max_steps": len(factors), "log_every": 50, "warmup_steps": 0, "report_to": "none", "save_every": 100}
    arguments = TrainingArguments(output_dir=str(folder), **{**defaults, **changes})
    train(method, data or Rows(), arguments, build_accelerator(arguments))
    return method, [row for row in read_lines(folder / "log.jsonl") if row["kind"] == "train"]
