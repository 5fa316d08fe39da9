"""One rank of a process group: evaluations in which rank 1 alone meets a picture that cannot be read."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import torch
import torch.distributed as dist
from accelerate import PartialState
from retrieval_helpers import ToyModel, make_data
from safetensors.torch import save_file
from torch import nn

from albef_hf import AlbefProcessor
from albef_hf.data.images import BadImage
from albef_hf.evaluation import evaluate_retrieval
from albef_hf.tasks.batches import predict_rows
from albef_hf.training.initialization import load_tokenizer
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


CASES = (retrieve, predict, probe)

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    PartialState()
    results = {}
    for case in CASES:
        text = "nothing"
        try:
            case()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        results[case.__name__] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        together = torch.ones(1)
        dist.all_reduce(together)
        results[f"{case.__name__}/together"] = together
    save_file(results, folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()
