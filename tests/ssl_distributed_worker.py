"""One rank of a process group: three steps of every image-only method on its share of a global batch."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from ssl_helpers import tiny_method, views_of
from torch.nn.parallel import DistributedDataParallel

from ssl_methods import METHODS

STEPS, GLOBAL_BATCH = 3, 8
# Batch normalization on each of two ranks equals one process that normalizes two parts.
CASES = {name: (name, {}) for name in METHODS}
CASES["barlow_twins_published"] = ("barlow_twins", {"published_gradient": True})


def run_steps(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Losses, first gradients and final state of all methods, in data-parallel training where there are ranks."""
    results = {}
    share = GLOBAL_BATCH // ranks
    for case, (name, options) in CASES.items():
        if ranks == 1 and name in ("moco_v1", "moco_v2"):
            options = {**options, "batch_norm_splits": 2}
        method = tiny_method(name, **options).double().train()
        model = DistributedDataParallel(method, broadcast_buffers=False) if ranks > 1 else method
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
        for step in range(STEPS):
            views, draws = views_of(step, batch=GLOBAL_BATCH)
            mine = slice(rank * share, (rank + 1) * share)
            output = model(views[mine], draws[mine])
            optimizer.zero_grad()
            output.loss.backward()
            loss = output.loss.detach().clone()
            if ranks > 1:
                dist.all_reduce(loss)
                loss /= ranks
            if step == 0:
                gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
                results |= {f"{case}/gradient/{n}": g for n, g in gradients.items()}
            results[f"{case}/loss/{step}"] = loss
            method.enqueue(output)
            optimizer.step()
            method.update_momentum(step, STEPS)
        # Without synchronization, each rank has its own running statistics.
        own = ("running_", "num_batches")
        state = {n: t for n, t in method.state_dict().items() if not any(part in n for part in own)}
        results |= {f"{case}/state/{n}": t for n, t in state.items()}
    return results


if __name__ == "__main__":
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=ranks)
    results = run_steps(rank, ranks)
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()
