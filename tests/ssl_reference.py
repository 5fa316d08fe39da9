"""Every image-only method once more, written from the papers and their coding conventions alone: plain loops, dense
formulas, one process. What `ssl_methods` is compared with. Nothing here imports it."""

import copy
import math

import torch
from torch import nn


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def cross_entropy_row(logits, index):
    return -(logits[index] - torch.log(torch.exp(logits).sum()))


def moco_loss(q, k, queue, temperature):
    losses = []
    for i in range(len(q)):
        scores = [q[i] @ k[i]] + [q[i] @ row for row in queue]
        losses.append(cross_entropy_row(torch.stack(scores) / temperature, 0))
    return torch.stack(losses).mean()


def moco_v3_loss(q, k, temperature):
    rows = []
    for i in range(len(q)):
        rows.append(cross_entropy_row(torch.stack([q[i] @ k[j] for j in range(len(k))]) / temperature, i))
    return torch.stack(rows).mean() * 2 * temperature


def byol_distance(p, z):
    return torch.stack([((unit(p[i : i + 1]) - unit(z[i : i + 1])) ** 2).sum() for i in range(len(p))]).mean()


def barlow_loss(z1, z2, weight):
    def standard(z):
        return (z - z.mean(0)) / torch.sqrt(((z - z.mean(0)) ** 2).mean(0) + 1e-5)

    a, b = standard(z1), standard(z2)
    total = torch.zeros((), dtype=z1.dtype)
    for i in range(z1.shape[1]):
        for j in range(z1.shape[1]):
            c = (a[:, i] * b[:, j]).sum() / len(z1)
            total = total + ((c - 1) ** 2 if i == j else weight * c**2)
    return total


class Reference:
    """A method step by step. Its loss is a function of `LOSSES`, the momentum of its copies one of `MOMENTUM`.

    The order in time is the published one: what moves the copies before a step's keys are made, with the weights the
    last step left, is `move_copies`. MoCo v1 to v3 do so; BYOL's move at the end of a step is the same place.

    Args:
        name: of the method.
        method: has the online modules `backbone`, `projector` and, for some, `predictor`, its options as attributes,
            and where there is a queue the keys it begins with.
        total: steps of the run.
    """

    def __init__(self, name, method, total):
        self.name, self.method, self.total = name, method, total
        self.online = nn.ModuleList([method.backbone, method.projector])
        self.copy = copy.deepcopy(self.online)
        self.queue = method.queue.features.clone() if hasattr(method, "queue") else None
        self.pointer, self.step = 0, 0

    def project(self, modules, view):
        """Projections of a view by the online modules or their copies."""
        return modules[1](modules[0](view).pooled)

    def cosine(self, k):
        return 1 - (1 - self.method.momentum) * 0.5 * (1 + math.cos(math.pi * k / self.total))

    def move_copies(self):
        """Move the copies before step `step`, where the method has any."""
        if self.name in MOMENTUM:
            m = MOMENTUM[self.name](self)
            with torch.no_grad():
                for old, new in zip(self.copy.parameters(), self.online.parameters(), strict=True):
                    old.copy_(m * old + (1 - m) * new)

    def loss(self, view1, view2):
        if self.step:  # the copies of step 0 are equal to the weights, whatever the momentum
            self.move_copies()
        return LOSSES[self.name](self, view1, view2)

    def after_backward(self):
        if self.queue is not None:
            for row in self.keys:
                self.queue[self.pointer] = row
                self.pointer = (self.pointer + 1) % len(self.queue)

    def after_step(self):
        self.step += 1


def moco(reference, view1, view2):
    q = unit(reference.project(reference.online, view1))
    with torch.no_grad():
        reference.keys = unit(reference.project(reference.copy, view2))
    return moco_loss(q, reference.keys, reference.queue, reference.method.temperature)


def moco_v3(reference, view1, view2):
    temperature = reference.method.temperature
    q1, q2 = (unit(reference.method.predictor(reference.project(reference.online, view))) for view in (view1, view2))
    with torch.no_grad():
        k1, k2 = (unit(reference.project(reference.copy, view)) for view in (view1, view2))
    return moco_v3_loss(q1, k2, temperature) + moco_v3_loss(q2, k1, temperature)


def byol(reference, view1, view2):
    p1, p2 = (reference.method.predictor(reference.project(reference.online, view)) for view in (view1, view2))
    with torch.no_grad():
        z1, z2 = (reference.project(reference.copy, view) for view in (view1, view2))
    return byol_distance(p1, z2) + byol_distance(p2, z1)


def barlow_twins(reference, view1, view2):
    z1, z2 = (reference.project(reference.online, view) for view in (view1, view2))
    return barlow_loss(z1, z2, reference.method.redundancy_weight)


# The loss of a method: its reference and both views -> scalar.
LOSSES = {"moco_v1": moco, "moco_v2": moco, "moco_v3": moco_v3, "byol": byol, "barlow_twins": barlow_twins}
# The momentum of the move before step `step`, of the methods that have copies.
MOMENTUM = {
    "moco_v1": lambda reference: reference.method.momentum,
    "moco_v2": lambda reference: reference.method.momentum,
    "moco_v3": lambda reference: reference.cosine(reference.step),
    "byol": lambda reference: reference.cosine(reference.step - 1),  # of the step that ends
}


def sgd_step(named, buffers, rate, momentum, decay, vector_decay):
    for name, p in named:
        d = p.grad + (decay if p.dim() > 1 or vector_decay else 0.0) * p.data
        buffers[name] = d.clone() if name not in buffers else momentum * buffers[name] + d
        p.data -= rate * buffers[name]


def lars_step(named, buffers, rate, vector_rate, momentum, decay, trust):
    for name, p in named:
        d = p.grad.clone()
        if p.dim() > 1:
            d = d + decay * p.data
            p_norm, d_norm = math.sqrt((p.data**2).sum()), math.sqrt((d**2).sum())
            if p_norm > 0 and d_norm > 0:
                d = d * (trust * p_norm / d_norm)
        buffers[name] = momentum * buffers.get(name, torch.zeros_like(d)) + d
        p.data -= (rate if p.dim() > 1 else vector_rate) * buffers[name]


def adamw_step(named, buffers, rate, decay, step, vector_decay):
    for name, p in named:
        m, v = buffers.get(name, (torch.zeros_like(p), torch.zeros_like(p)))
        m, v = 0.9 * m + 0.1 * p.grad, 0.999 * v + 0.001 * p.grad**2
        buffers[name] = (m, v)
        p.data *= 1 - rate * (decay if p.dim() > 1 or vector_decay else 0.0)
        p.data -= rate * (m / (1 - 0.9 ** (step + 1))) / (torch.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)


def warm_cosine(step, total, warm, high, low):
    """Linear from 0 over the warm-up, then half a cosine down to `low`."""
    if step < warm:
        return high * step / warm
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


def optimizer_step(recipe, named, buffers, rate, step):
    """One step of the optimizer that a recipe names. rate: of this step. buffers: the optimizer's, by parameter."""
    decay, vector_decay = recipe["weight_decay"], recipe.get("decay_vectors", False)
    if recipe["optimizer"] == "sgd":
        sgd_step(named, buffers, rate, 0.9, decay, vector_decay)
    elif recipe["optimizer"] == "adamw":
        adamw_step(named, buffers, rate, decay, step, vector_decay)
    else:
        ratio = recipe.get("bias_learning_rate", recipe["learning_rate"]) / recipe["learning_rate"]
        lars_step(named, buffers, rate, rate * ratio, 0.9, decay, 0.001)
