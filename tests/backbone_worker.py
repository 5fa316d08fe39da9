"""One of two processes that train image encoders together. Arguments: folder, rank, number of ranks."""

import sys
from datetime import timedelta

import torch
from backbone_cases import build, pictures
from safetensors.torch import save_file
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

TOGETHER = ["convnext", "clip_vision_model", "vit_mae"]

if __name__ == "__main__":
    folder, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    gradients = {}
    for name in TOGETHER:
        model = DistributedDataParallel(build(name))
        for step in range(2):  # the second step would wait for gradients that the first did not bring
            model.zero_grad()
            model(pictures(2) + rank + step).pooled.square().sum().backward()
        gradients |= {f"{name} {k}": p.grad for k, p in model.module.named_parameters() if p.requires_grad}
    save_file(gradients, f"{folder}/rank{rank}.safetensors")
    distributed.destroy_process_group()
