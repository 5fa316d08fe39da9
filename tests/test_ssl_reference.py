"""Twenty steps of each method in float64 against a reference written from the papers."""

import copy

import pytest
import torch
from ssl_helpers import BATCH, RECIPES, tiny_method, views_of
from ssl_reference import Reference, optimizer_step, warm_cosine

from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.optimization import build_optimizer, learning_rate, scaled_rates
from ssl_methods import METHODS

STEPS = 20
# The reference shuffles no keys.
CHANGES = {"moco_v1": {"shuffle_keys": False}, "moco_v2": {"shuffle_keys": False}}


@pytest.mark.parametrize("kind", ["resnet", "vit"])
@pytest.mark.parametrize("name", list(METHODS))
def test_twenty_steps_equal_the_reference(name, kind):
    recipe = {
        "minimum_learning_rate": RECIPES[name]["learning_rate"] / 1000, "warmup_learning_rate": 0.0,
        "warmup_epochs": 2.0, "warmup_every": 1, "schedule": "cosine_per_step", **RECIPES[name],
    }  # fmt: skip
    arguments = scaled_rates(TrainingArguments(**recipe), BATCH, steps_per_epoch=2)
    method = tiny_method(name, kind, **CHANGES.get(name, {})).double().train()
    optimizer = build_optimizer(method, arguments)
    mine = copy.deepcopy(method)
    reference = Reference(name, mine, STEPS)
    named = [(n, p) for n, p in mine.named_parameters() if p.requires_grad]
    buffers = {}
    for step in range(STEPS):
        views, draws = views_of(step)
        output = method(views, draws)
        optimizer.zero_grad()
        output.loss.backward()
        expected = reference.loss(views[:, 0], views[:, 1])
        mine.zero_grad()
        expected.backward()
        torch.testing.assert_close(output.loss, expected, atol=1e-9, rtol=1e-9)
        own = dict(method.named_parameters())
        for n, p in named:
            where = f"step {step}, {n}"
            torch.testing.assert_close(own[n].grad, p.grad, atol=1e-9, rtol=1e-7, msg=lambda t, w=where: f"{w}: {t}")
        method.enqueue(output)
        reference.after_backward()
        rate = learning_rate(arguments, step, 2, STEPS)
        assert rate == pytest.approx(
            warm_cosine(step, STEPS, 4, recipe["learning_rate"], recipe["minimum_learning_rate"]), rel=1e-12
        )
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        optimizer.step()
        optimizer_step(recipe, named, buffers, rate, step)
        method.update_momentum(step, STEPS)
        reference.after_step()
    for n, p in named:
        # A key's bias moves no softmax, and a bias before batch normalization moves nothing: their gradients are
        # rounding noise, which AdamW scales up.
        atol = 1e-7 if n.endswith(("k_proj.bias", "backbone.layernorm.bias")) else 1e-9
        torch.testing.assert_close(own[n], p, atol=atol, rtol=1e-7, msg=lambda t, n=n: f"{n} {t}")
    if method.momentum_copy is not None:
        reference.move_copies()  # with which the next step would begin
        copies = [method.momentum_copy.backbone, method.momentum_copy.projector]
        for one, other in zip(copies, reference.copy, strict=True):
            for a, b in zip(one.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-7)
    if reference.queue is not None:
        torch.testing.assert_close(method.queue.features, reference.queue, atol=1e-9, rtol=0)
        assert int(method.queue.cursor) == reference.pointer
