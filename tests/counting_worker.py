"""Process groups of 4 and 2 ranks: bytes that each sends in a step beside gradients, counted as they are sent."""

import json
import multiprocessing
import sys
from pathlib import Path

import torch.distributed as dist
from counting_cases import CASES, method_of, take_step, training_batch

from albef_hf.training.counting import StepCounter


def count(folder: Path, rank: int) -> None:
    """Count as one rank of both groups."""
    sent = {}
    for ranks in (4, 2):
        if rank < ranks:
            store = dist.FileStore(str(folder / f"store{ranks}"), ranks)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
            for case in CASES:
                method = method_of(case)
                with StepCounter(ranks) as counter:
                    take_step(method, training_batch(case))
                sent[f"{case} {ranks}"] = dict(counter.sent)
            dist.barrier()
            dist.destroy_process_group()
    (folder / f"rank{rank}.json").write_text(json.dumps(sent))


if __name__ == "__main__":
    forked = multiprocessing.get_context("fork")  # the imports are made once
    workers = [forked.Process(target=count, args=(Path(sys.argv[1]), rank)) for rank in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
