"""One rank of a process group that `torchrun` restarts: rank 1 dies once, after all ranks have met.

Writes `rank-R-restart-N` into the folder of its argument when a sum over both ranks is right.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from albef_hf.training.processes import start_processes

accelerator = start_processes()
restart = os.environ["TORCHELASTIC_RESTART_COUNT"]
group = dist.new_group(backend="gloo")
total = torch.ones(1)
dist.all_reduce(total, group=group)
dist.all_reduce(total)
if restart == "0":
    if accelerator.process_index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
assert total.item() == 4
(Path(sys.argv[1]) / f"rank-{accelerator.process_index}-restart-{restart}").touch()
