"""One rank of a process group: evaluations in which rank 1 alone fails, or is asked to stop."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from retrieval_helpers import WIDTH, ToyModel, make_data
from safetensors.torch import save_file
from torch import nn
from training_helpers import Full, Rows

from albef_hf import AlbefProcessor, tasks
from albef_hf.crashtest.compare import final_state
from albef_hf.data.images import BadImage
from albef_hf.evaluation import evaluate_retrieval
from albef_hf.evaluation.grounding import AlbefGrounder, Grounding
from albef_hf.evaluation.mode import failing_together
from albef_hf.tasks.batches import predict_rows
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.initialization import load_tokenizer
from albef_hf.training.loop import train
from albef_hf.training.processes import build_accelerator
from ssl_methods.pictures import Pictures


def broken(images: datasets.Dataset) -> datasets.Dataset:
    """The last picture, which is rank 1's, is none."""
    undecoded = images.cast_column("image", datasets.Image(decode=False))
    rows = [{**row, "image": {"bytes": b"broken", "path": None}} for row in undecoded.select([len(undecoded) - 1])]
    return datasets.concatenate_datasets(
        [undecoded.select(range(len(undecoded) - 1)), datasets.Dataset.from_list(rows, features=undecoded.features)]
    )


def retrieve() -> None:
    data = make_data()
    data.images = broken(data.images)
    evaluate_retrieval(ToyModel(), AlbefProcessor.from_parts(load_tokenizer("wordpiece"), image_size=32), data, k=0)


class Fails(ToyModel):
    """Rank 1 fails in a method of the model."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40_000, WIDTH)  # for the tokenizer's ids
        if dist.get_rank() == 1:
            setattr(self, name, fail)


def fail(*_, **__):
    raise OSError("broken")


def rank_again() -> None:
    model = Fails("matching_logits")
    evaluate_retrieval(model, AlbefProcessor.from_parts(load_tokenizer("wordpiece"), image_size=32), make_data(), k=3)


def encode_texts() -> None:
    model = Fails("get_text_features")
    evaluate_retrieval(model, AlbefProcessor.from_parts(load_tokenizer("wordpiece"), image_size=32), make_data(), k=0)


def ground() -> None:
    state = SimpleNamespace(process_index=dist.get_rank(), num_processes=2)
    task = SimpleNamespace(settings=SimpleNamespace(accelerator=state, evaluation_batch_size=2), processor=None)
    rows = datasets.Dataset.from_dict(
        {"image": [b""] * 4, "expression": ["left"] * 4, "box": [[0.0, 0.0, 1.0, 1.0]] * 4}
    )
    grounding = Grounding(np.zeros(4), 0.0, np.zeros((1, 1)), (2, 2))
    AlbefGrounder.ground = fail if dist.get_rank() else lambda self, samples: [grounding] * len(samples)
    tasks.Grounding.measure(task, None, rows, "boxes")


def stopped(where: str) -> None:
    """A run that one rank is asked to stop, in or before its first evaluation."""
    pids: list[int] = [0, 0]
    dist.all_gather_object(pids, os.getpid())
    rank, folder, method = dist.get_rank(), Path(sys.argv[1]) / where, Full()
    folder.mkdir(exist_ok=True)
    method.factors = [1.0] * 8
    if where == "in_the_step_before" and rank == 1:
        method.momentum_at = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # for the log, before the evaluation

    def evaluate(_):
        for number in range(2):
            with failing_together():
                if rank == 1 and number == 0 and where != "in_the_step_before":
                    os.kill(pids[int(where == "while_it_works")], signal.SIGTERM)
        return {"accuracy": 1.0}

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=8, evaluate_every=2, log_every=2, warmup_steps=0, report_to="none"
    )
    train(method, Rows(), arguments, build_accelerator(arguments), evaluate=evaluate)


def while_it_works() -> None:
    stopped("while_it_works")


def while_it_waits() -> None:
    stopped("while_it_waits")


def in_the_step_before() -> None:
    stopped("in_the_step_before")


class OwnRows(Rows):
    """Other samples on each rank, so that running statistics differ from rank to rank."""

    def batches(self, start=0):
        return super().batches(start + 1000 * dist.get_rank())


def resumed() -> None:
    """A run that stops between two saves, and goes on, against one that does not."""
    folders = []
    for name, stops in (("straight", ()), ("with_a_stop", (3, 0))):
        folder = Path(sys.argv[1]) / name
        folders.append(folder)
        folder.mkdir(exist_ok=True)
        for start, after in enumerate(stops or (0,)):
            arguments = TrainingArguments(
                output_dir=str(folder), max_steps=6, resume=start > 0, warmup_steps=0, report_to="none"
            )
            method, steps = Full(), []
            method.factors = [1.0] * 8
            move = method.update_momentum

            def moved(*of_step, move=move, steps=steps, after=after):
                move(*of_step)
                steps.append(1)
                if len(steps) == after:
                    os.kill(os.getpid(), signal.SIGTERM)

            method.update_momentum = moved
            with suppress(SystemExit):
                train(method, OwnRows(), arguments, build_accelerator(arguments))
            dist.barrier()
    raise ValueError("; ".join(final_state(*folders)))


def predict() -> None:
    def prepare(row, generator, training):
        if row["number"] == 3:
            raise BadImage("broken")
        return torch.ones(1)

    state = SimpleNamespace(process_index=dist.get_rank(), num_processes=2)
    settings = SimpleNamespace(accelerator=state, evaluation_batch_size=2, data=SimpleNamespace(workers=0))
    task = SimpleNamespace(settings=settings, prepare=prepare, collate=lambda rows, training: {"x": torch.stack(rows)})
    rows = datasets.Dataset.from_dict({"number": list(range(4))})
    predict_rows(task, nn.Linear(1, 1), rows, "test", lambda batch: batch["x"].tolist())


def probe() -> None:
    images = broken(make_data().images)
    pictures = Pictures(images.add_column("label", ["a", "b", "c"] * 3), 32, 3)
    pictures.encode(lambda pixels: pixels.flatten(1))


CASES = (retrieve, encode_texts, rank_again, predict, ground, probe)
STOPPED = (while_it_works, while_it_waits, in_the_step_before, resumed)

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    PartialState(cpu=True)
    results = {}
    for case in CASES + STOPPED:
        text = "nothing"
        try:
            case()
        except (Exception, SystemExit) as error:
            text = f"{type(error).__name__}: {error}"
        results[case.__name__] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        together = torch.ones(1)
        dist.all_reduce(together)
        results[f"{case.__name__}/together"] = together
    save_file(results, folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()
