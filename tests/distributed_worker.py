"""One rank of a process group: run training steps on its share of a global batch and save the results."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import tiny_batch, tiny_model, to_double
from safetensors.torch import save_file

from albef_hf.gathering import RowExchange

STEPS = 3
GLOBAL_BATCH = 8


def run_steps(rank: int, ranks: int, gather_negatives: bool) -> dict[str, torch.Tensor]:
    """Losses, gradients of the last step and state after three SGD steps, as in data-parallel training."""
    model = tiny_model(gather_negatives=gather_negatives, same_image="mask", queue_size=11).double().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    share = GLOBAL_BATCH // ranks
    results: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        batch = to_double(tiny_batch(size=GLOBAL_BATCH, seed=step))
        batch["image_ids"] = torch.tensor([0, 0, 1, 2, 3, 0, 4, 5])
        mine = {k: v[rank * share : (rank + 1) * share] for k, v in batch.items() if k != "mlm_positions"}
        mine["mlm_positions"] = (mine["mlm_labels"].flatten() != -100).nonzero().squeeze(1)
        output = model(**mine)
        optimizer.zero_grad()
        output.loss.backward()
        losses = torch.stack([output.loss_itc, output.loss_itm, output.loss_mlm]).detach()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        if ranks > 1:
            for tensor in [losses, *gradients]:
                dist.all_reduce(tensor)
                tensor /= ranks
        model.enqueue(output)
        optimizer.step()
        model.update_momentum()
        results[f"losses.{step}"] = losses
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            results[f"gradient.{name}"] = parameter.grad
    results.update({f"state.{name}": tensor for name, tensor in model.state_dict().items()})
    return results


# The rows that each of two ranks with four rows needs: none of its own, one twice, in any order; then one alone.
NEEDED = [[[6, 4, 6, 7, 5], [0, 7, 3, 3, 4]], [[5], [6]]]


def exchange_rows(rank: int) -> dict[str, torch.Tensor]:
    """The rows fetched, and the gradients that flow back; and how many rows of this rank were sent to each."""
    results = {}
    for case, needed in enumerate(NEEDED):
        rows = torch.arange(24.0, dtype=torch.float64).view(8, 3)[rank * 4 : rank * 4 + 4].requires_grad_()
        exchange = RowExchange(torch.tensor(needed[rank]), 4)
        fetched = exchange.fetch(rows)
        (fetched * torch.arange(1.0, len(fetched) + 1)[:, None] * (rank + 1)).sum().backward()
        results[f"fetched.{case}"], results[f"gradient.{case}"] = fetched.detach(), rows.grad
        results[f"sent.{case}"] = torch.tensor(exchange.asked)
    return results


if __name__ == "__main__":
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=ranks)
    results = run_steps(rank, ranks, gather_negatives=True)
    results |= {f"exchange.{name}": value for name, value in exchange_rows(rank).items()}
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()
