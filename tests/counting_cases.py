"""Methods whose traffic is counted, in small, and a step of each as the loop makes it."""

from types import SimpleNamespace

import torch
from helpers import shallow_model, tiny_batch
from ssl_helpers import tiny_method, views_of

from albef_hf.gathering import mean_over_ranks
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.loop import StepGuard
from albef_hf.training.optimization import build_optimizer
from ssl_methods import METHODS

ARGUMENTS = TrainingArguments(batch_size=4)
CASES = ["albef", "albef_gathered", *METHODS]


def method_of(case):
    if case in METHODS:
        return tiny_method(case).train()
    model = shallow_model()
    model.config.gather_negatives = case == "albef_gathered"
    return model.train()


def training_batch(case):
    if case not in METHODS:
        return tiny_batch()
    views, draws = views_of(0, batch=4)
    return {"views": views.float(), "shuffle_draws": draws.float()}


def build(method, arguments):
    """Optimizer and guard of a run on the CPU."""
    optimizer = build_optimizer(method, arguments)
    accelerator = SimpleNamespace(device=torch.device("cpu"), reduce=lambda value, how: mean_over_ranks(value))
    return optimizer, StepGuard(method, optimizer, accelerator, arguments.spike_deviations)


def take_step(method, batch, built=None):
    optimizer, guard = built or build(method, ARGUMENTS)
    guard.begin()
    output = method(**{name: value.clone() for name, value in batch.items()})
    output.loss.backward()
    method.enqueue(output)
    guard.add(output)
    guard.judge(torch.nn.utils.clip_grad_norm_(method.parameters(), float("inf")))
    optimizer.step()
    optimizer.zero_grad()
    method.update_momentum(0, 2)
