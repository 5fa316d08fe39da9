"""One rank of a process group that fine-tunes retrieval with the script and the configuration folder/run.yaml."""

import os
import runpy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

if __name__ == "__main__":
    folder, rank, ranks = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }  # some code reads these; the ranks meet through the file
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=int(rank), world_size=int(ranks))
    scripts = Path(__file__).parent.parent / "scripts"
    sys.argv = ["finetune_retrieval.py", str(folder / "run.yaml"), "--output_dir", str(folder / "run")]
    runpy.run_path(str(scripts / "finetune_retrieval.py"), run_name="__main__")
    save_file({"done": torch.ones(1)}, folder / f"rank{rank}.safetensors")
