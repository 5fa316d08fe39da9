"""One rank of a process group: FOLDER RANK RANKS. Trains methods with sharding, and writes what became of them.

For each case of `CASES`, FOLDER/rankRANK.safetensors has the whole method after the last step, what its last
checkpoint holds, and values of the log. FOLDER/CASE is the folder of the run.
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

from albef_hf import AlbefForVisualReasoning
from albef_hf.data.lines import read_lines
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.loop import train
from albef_hf.training.parts import KINDS, Saved
from albef_hf.training.processes import build_accelerator
from albef_hf.training.sharded_checkpoints import together
from ssl_methods import METHODS

STEPS, GLOBAL_BATCH, BAD = 3, 8, 1
# AdamW with clipping, gathered weights in the middle of a layer; layers that share parameters; SGD; LARS.
CASES = ("albef", "visual_reasoning", "moco_v2", "byol")
RECIPE = {"weight_decay": 0.02, "learning_rate": 1e-3, "max_gradient_norm": 1.0, "accumulation": 1}


class Batches:
    """Batches of 8 samples in float64, of which this rank gets its share. One has a bad last picture."""

    steps_per_epoch = 1000

    def __init__(self, case, rank, ranks):
        self.case, self.rank, self.batch_size, self.rows = case, rank, GLOBAL_BATCH // ranks, 8000

    def batches(self, start=0):
        for number in range(start, 10_000):
            batch = self.whole(number)
            if number == BAD:
                batch["views" if "views" in batch else "pixel_values"][-1] = float("nan")
            mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            batch = {key: value[mine] for key, value in batch.items()}
            if "mlm_labels" in batch:
                batch["mlm_positions"] = (batch["mlm_labels"].flatten() != -100).nonzero().squeeze(1)
            yield {**batch, "rejected": []}

    def whole(self, number):
        if self.case in METHODS:
            return dict(zip(("views", "shuffle_draws"), views_of(number, batch=GLOBAL_BATCH), strict=True))
        if self.case == "albef":
            batch = to_double(tiny_batch(size=GLOBAL_BATCH, seed=number))
            del batch["mlm_positions"]
            return batch | {"image_ids": torch.tensor([0, 0, 1, 2, 3, 0, 4, 5]) + 100 * number}
        halves = [to_double(task_batch(AlbefForVisualReasoning, 2 * number + half)) for half in range(2)]
        return {key: torch.cat([half[key] for half in halves]) for key in halves[0]}

    def to_device(self, batch, device):
        return send_to_device(batch, device)


def method_of(case):
    if case in METHODS:  # without batch normalization of each rank by itself, the ranks equal one process
        return tiny_method(case, kind="vit" if case == "moco_v2" else "resnet").double()
    if case == "albef":
        return tiny_model(gather_negatives=True, same_image="mask", queue_size=11).double()
    torch.manual_seed(0)
    return AlbefForVisualReasoning(tiny_config(text_config={"images_per_text": 2})).double()


def trained(case, folder, rank, ranks, **changes):
    """What a run leaves: the method, what its last checkpoint holds, and values of the log."""
    folder.mkdir(exist_ok=True)
    fixed = {"warmup_steps": 0, "report_to": "none", "save_every": 100, "evaluate_every": 2, "log_every": 1}
    given = {**fixed, **RECIPES.get(case, RECIPE), "max_steps": STEPS, **changes}
    arguments = TrainingArguments(output_dir=str(folder), **given)

    def evaluate(model):
        assert type(model) is type(method_of(case))
        checkpoints = len(list((folder / "checkpoints").glob("step-*"))) if arguments.sharding else 0
        return {"sum": sum(p.detach().double().sum().item() for p in model.parameters()), "checkpoints": checkpoints}

    def evaluated(model, step, metrics):
        if rank == 0 and case == "albef":
            model.save_pretrained(folder / "model")

    options = {"evaluate": evaluate, "evaluated": evaluated} if case == "albef" else {}
    method = train(method_of(case), Batches(case, rank, ranks), arguments, build_accelerator(arguments), **options)
    results = {f"whole/{name}": tensor for name, tensor in method.state_dict().items()}
    for kind in KINDS:
        with Saved(folder / "checkpoints" / f"step-{arguments.max_steps:08d}", kind) as saved:
            results |= {f"{kind}/{name}": saved.whole(name) for name in saved.shapes}
    rows = read_lines(folder / "log.jsonl")
    for name in ("loss", "gradient_norm", "momentum_drift", "skipped_steps"):
        values = [row[name] or 0.0 for row in rows if name in row]
        results |= {f"log/{name}": torch.tensor(values, dtype=torch.float64)} if values else {}
    for name in ("sum", "checkpoints"):
        values = [row["metrics"][name] for row in rows if row["kind"] == "evaluation"]
        results |= {f"evaluation/{name}": torch.tensor(values, dtype=torch.float64)} if values else {}
    return results


def fail(rank):
    if rank == 1:
        raise OSError("the disk is full")


def told(rank):
    """What ranks are told when one of them cannot write."""
    try:
        together(lambda: fail(rank))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # read by some code; the ranks meet through a file
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=ranks)
    PartialState(cpu=True)
    results = {"told": torch.tensor(list(told(rank).encode()))}
    for case in CASES:
        found = trained(case, folder / case, rank, ranks, sharding="fsdp2")
        results |= {f"{case}/{key}": value for key, value in found.items()}
    # On from the checkpoint that one process wrote there.
    found = trained("albef", folder / "begun", rank, ranks, sharding="fsdp2", resume=True)
    results |= {f"begun/{key}": value for key, value in found.items()}
    tensors = {name: value.detach().contiguous().clone() for name, value in results.items()}
    save_file(tensors, folder / f"rank{rank}.safetensors")
