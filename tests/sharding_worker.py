"""One rank of a process group: FOLDER RANK RANKS STEPS CASE... trains methods, without sharding and with it.

Into FOLDER/rankRANK.safetensors go the state of each method and optimizer after the last step, and all losses.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import send_to_device
from helpers import tiny_batch, tiny_config, tiny_model, to_double
from model_cases import task_batch
from safetensors.torch import save_file
from ssl_helpers import RECIPES, tiny_method, views_of

from albef_hf import AlbefForQuestionAnswering, AlbefForVisualReasoning
from albef_hf.data.lines import read_lines
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.loop import train
from albef_hf.training.parts import KINDS, Saved
from albef_hf.training.processes import build_accelerator
from ssl_methods import METHODS

ALBEF = {"weight_decay": 0.02, "learning_rate": 1e-3, "max_gradient_norm": 1.0}
TASKS = {"question_answering": AlbefForQuestionAnswering, "visual_reasoning": AlbefForVisualReasoning}


class Steps:
    """Batches of 8 samples of a case, of which this rank gets its share."""

    steps_per_epoch = 1000

    def __init__(self, case: str, rank: int, ranks: int) -> None:
        self.case, self.rank, self.batch_size, self.rows = case, rank, 8 // ranks, 8000

    def batches(self, start=0):
        for number in range(start, 10_000):
            yield {**self.batch(number), "rejected": []}

    def batch(self, number):
        rows = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        if self.case in METHODS:
            views, draws = views_of(number, batch=8)
            return {"views": views[rows], "shuffle_draws": draws[rows]}
        if self.case == "albef":
            batch = to_double(tiny_batch(size=8, seed=number))
            batch["image_ids"] = torch.tensor([0, 0, 1, 2, 3, 0, 4, 5]) + 100 * number
            mine = {key: value[rows] for key, value in batch.items() if key != "mlm_positions"}
            return mine | {"mlm_positions": (mine["mlm_labels"].flatten() != -100).nonzero().squeeze(1)}
        halves = [to_double(task_batch(TASKS[self.case], 2 * number + half)) for half in range(2)]
        batch = {key: torch.cat([half[key] for half in halves]) for key in halves[0]}
        owner = torch.arange(8)
        if "answers_per_question" in batch:
            owner = owner.repeat_interleave(batch["answers_per_question"])
        mine = (owner >= rows.start) & (owner < rows.stop)
        return {key: value[mine if len(value) == len(owner) else rows] for key, value in batch.items()}

    def to_device(self, batch, device):
        return send_to_device(batch, device)


def method_of(case):
    if case in METHODS:
        kind = "vit" if case == "moco_v3" else "resnet"
        # Without normalization over a device's batch, the ranks' batches make one.
        return tiny_method(case, kind="vit" if case.startswith("moco") else kind).double()
    if case == "albef":
        return tiny_model(gather_negatives=True, same_image="mask", queue_size=11).double()
    torch.manual_seed(0)
    text = {"images_per_text": 2, "num_hidden_layers": 6} if case == "visual_reasoning" else {}
    return TASKS[case](tiny_config(text_config=text)).double()


def trained(case, folder, rank, ranks, steps, **changes):
    """The method after some steps, and what its last checkpoint and its log hold."""
    recipe = RECIPES.get(case, ALBEF)
    fixed = {"warmup_steps": 0, "report_to": "none", "save_every": 1000, "log_every": 1, "spike_deviations": 0.0}
    folder.mkdir(exist_ok=True)
    arguments = TrainingArguments(output_dir=str(folder), max_steps=steps, **{**fixed, **recipe, **changes})
    method = train(method_of(case), Steps(case, rank, ranks), arguments, build_accelerator(arguments))
    results = {f"whole/{name}": tensor for name, tensor in method.state_dict().items()}
    checkpoint = folder / "checkpoints" / f"step-{steps:08d}"
    for kind in KINDS:
        with Saved(checkpoint, kind) as saved:
            results |= {f"{kind}/{name}": saved.whole(name) for name in saved.shapes}
    rows = [row for row in read_lines(folder / "log.jsonl") if row["kind"] == "train"]
    for name in ("loss", "gradient_norm", "momentum_drift"):
        values = [row[name] for row in rows if name in row]
        results |= {f"log/{name}": torch.tensor(values, dtype=torch.float64)} if values else {}
    return results


def start(folder, rank, ranks):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # read by some code; the ranks meet through a file
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=ranks)
    PartialState(cpu=True)


if __name__ == "__main__":
    folder, rank, ranks, steps = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    if ranks > 1:
        start(folder, rank, ranks)
    results = {}
    for case in sys.argv[5:]:
        for sharding in (None, "fsdp2") if ranks > 1 else (None,):
            name = f"{case}-{sharding}-{ranks}"
            found = trained(case, folder / name, rank, ranks, steps, sharding=sharding)
            results |= {f"{case}/{sharding}/{key}": value for key, value in found.items()}
    save_file(
        {k: v.detach().contiguous().clone() for k, v in results.items()}, folder / f"rank{rank}-{ranks}.safetensors"
    )
