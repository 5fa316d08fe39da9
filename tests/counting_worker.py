"""Ranks of process groups of 4 and 2: bytes that a rank sends in a step beside gradients, counted as they are sent."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from counting_cases import CASES, method_of, take_step, training_batch

from albef_hf.training.counting import StepCounter

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    sent = {}
    for ranks in (4, 2):
        if rank < ranks:
            store = dist.FileStore(str(folder / f"store{ranks}"), ranks)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
            for case in CASES:
                method, counter = method_of(case), StepCounter(ranks)
                with counter:
                    take_step(method, training_batch(case))
                sent[f"{case} {ranks}"] = dict(counter.sent)
            dist.barrier()
            dist.destroy_process_group()
    (folder / f"rank{rank}.json").write_text(json.dumps(sent))
