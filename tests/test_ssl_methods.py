"""Closed forms, heads, schedules, gradients in chunks, health and warnings of the image-only methods."""

import copy
import math

import pytest
import torch
from ssl_helpers import tiny_backbone, tiny_method, views_of
from torch import nn

from albef_hf.losses import unit_vectors
from albef_hf.training.optimization import Lars
from ssl_methods import METHODS, BarlowTwins, Byol, MoCoV1, MoCoV2, MoCoV3
from ssl_methods.health import effective_rank, pair_statistics, projection_spread, uniformity
from ssl_methods.losses import barlow_twins_loss, batch_contrastive_loss, byol_loss, queue_contrastive_loss
from ssl_methods.normalization import SplitBatchNorm, SyncBatchNorm
from ssl_methods.vit import patch_projection, sine_cosine_positions


def step(method, seed=0, **options):
    views, draws = views_of(seed, **options)
    return method(views.to(next(method.parameters()).dtype), draws)


# -- losses -----------------------------------------------------------------------------------------------------------


def test_contrastive_losses_of_equal_similarities_are_their_chance_levels():
    same = torch.ones(6, 4) / 2
    assert queue_contrastive_loss(same, same, same.repeat(2, 1)[:11], 0.2).item() == pytest.approx(math.log(12))
    assert batch_contrastive_loss(same, same, 0.2).item() == pytest.approx(2 * 0.2 * math.log(6))


def test_a_perfect_query_is_not_among_its_own_negatives():
    """A queue that held the keys of this batch would leave a floor of ln 2 (a fault of published libraries)."""
    keys = torch.eye(8)[:4]
    assert queue_contrastive_loss(keys, keys, torch.eye(8)[4:], 0.02).item() < 1e-6
    assert queue_contrastive_loss(keys, keys, keys, 0.02).item() == pytest.approx(math.log(2), rel=1e-3)


def test_keys_enter_the_queue_after_the_loss():
    method = tiny_method("moco_v2", shuffle_keys=False).train()
    before = method.queue.features.clone()
    output = step(method)
    assert torch.equal(method.queue.features, before)
    method.enqueue(output)
    assert torch.equal(method.queue.features[: len(output.targets)], output.targets)
    again = queue_contrastive_loss(output.queries, output.targets, before, method.temperature)
    assert output.loss.item() == pytest.approx(again.item(), rel=1e-5)


def test_byol_loss_closed_forms():
    rows = torch.eye(4)
    assert byol_loss(rows, 3 * rows).item() == pytest.approx(0)
    assert byol_loss(rows, rows.roll(1, 0)).item() == pytest.approx(2)
    assert byol_loss(rows, -rows).item() == pytest.approx(4)


def test_byol_with_a_quarter_of_the_loss_is_the_mean_of_one_minus_the_cosine():
    views = torch.rand(6, 2, 3, 16, 16)
    whole = tiny_method("byol")
    quarter = tiny_method("byol", loss_scale=0.25)
    quarter.load_state_dict(whole.state_dict())
    losses = [method(views).loss for method in (whole, quarter)]
    assert losses[1].item() == pytest.approx(losses[0].item() / 4, rel=1e-5)
    assert quarter.chance_losses(6)["loss"] == 1.0


def test_byol_sums_both_directions():
    method = tiny_method("byol").double().train()
    views, draws = views_of(0)
    whole = method(views, draws)
    swapped = method(views.flip(1), draws)
    one = byol_loss(whole.queries, whole.targets) + byol_loss(swapped.queries, swapped.targets)
    torch.testing.assert_close(whole.loss, one)


def test_barlow_twins_closed_forms():
    assert barlow_twins_loss(torch.eye(5), 0.1).item() == 0
    assert barlow_twins_loss(torch.zeros(5, 5), 0.1).item() == 5
    assert barlow_twins_loss(torch.ones(5, 5), 0.1).item() == pytest.approx(0.1 * 20)


def test_constant_projections_cost_the_width():
    method = tiny_method("barlow_twins").double().train()
    nn.init.zeros_(method.projector[-1].weight)
    assert step(method).loss.item() == pytest.approx(7.0)


# Each loss of two feature tensors and a queue.
LOSSES = {
    "queue_contrastive": lambda a, b, queue: queue_contrastive_loss(
        unit_vectors(a), unit_vectors(b), unit_vectors(queue), 0.3
    ),
    "batch_contrastive": lambda a, b, _: batch_contrastive_loss(unit_vectors(a), unit_vectors(b), 0.3),
    "byol": lambda a, b, _: byol_loss(a, b),
    "barlow_twins": lambda a, b, _: barlow_twins_loss(a.T @ b / 5, 0.01),
}


@pytest.mark.parametrize("loss", list(LOSSES.values()), ids=list(LOSSES))
def test_gradients_of_the_losses(loss):
    generator = torch.Generator().manual_seed(0)
    a, b, queue = (torch.randn(n, 4, generator=generator, dtype=torch.float64, requires_grad=True) for n in (5, 5, 7))
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, queue), (a, b))


# -- heads and backbones as published ---------------------------------------------------------------------------------


def layers(head):
    """(kind, width out, bias or affine) of each layer."""
    found = []
    for part in [head] if isinstance(head, nn.Linear) else head:
        if isinstance(part, nn.Linear):
            found.append(("linear", part.out_features, part.bias is not None))
        elif isinstance(part, nn.ReLU):
            found.append("relu")
        else:
            assert isinstance(part, SyncBatchNorm)
            found.append(("norm", part.num_features, part.affine))
    return found


def test_heads_are_the_published_ones():
    def hidden(width, bias):
        return [("linear", width, bias), ("norm", width, True), "relu"]

    resnet, vit = tiny_backbone("resnet"), tiny_backbone("vit")
    assert layers(MoCoV1(copy.deepcopy(resnet)).projector) == [("linear", 128, True)]
    moco = layers(MoCoV2(copy.deepcopy(resnet)).projector)
    assert moco == [("linear", 8, True), "relu", ("linear", 128, True)]
    third = MoCoV3(copy.deepcopy(resnet))
    last = [("linear", 256, False), ("norm", 256, False)]
    assert layers(third.projector) == [*hidden(4096, False), *last]
    assert layers(third.predictor) == [*hidden(4096, False), ("linear", 256, False)]
    assert third.temperature == 1.0
    third = MoCoV3(vit)
    assert layers(third.projector) == [*hidden(4096, False), *hidden(4096, False), *last]
    assert layers(third.predictor) == [*hidden(4096, False), *last]
    assert third.temperature == 0.2
    byol = Byol(copy.deepcopy(resnet))
    for head in (byol.projector, byol.predictor):
        assert layers(head) == [*hidden(4096, True), ("linear", 256, False)]
    twins = BarlowTwins(copy.deepcopy(resnet))
    assert layers(twins.projector) == [*hidden(8192, False), *hidden(8192, False), ("linear", 8192, False)]
    assert isinstance(twins.standardize, SyncBatchNorm) and not twins.standardize.affine


def test_batch_norm_stays_on_a_device_where_published():
    published = {MoCoV1: True, MoCoV2: True, MoCoV3: False, Byol: False, BarlowTwins: False}
    assert {method: method.per_device_batch_norm for method in published} == published


@pytest.mark.parametrize("name", list(METHODS))
def test_batch_norm_is_synchronized_where_it_does_not_stay_on_a_device(name):
    modules = tiny_method(name).backbone.modules()
    kinds = {type(m) for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == ({nn.BatchNorm2d} if METHODS[name].per_device_batch_norm else {SyncBatchNorm})


def test_moco_v3_prepares_a_vit():
    method = tiny_method("moco_v3", "vit")
    model = method.backbone.backbone
    table = model.embeddings.position_embeddings
    assert not table.requires_grad and torch.equal(table[0, 0], torch.zeros(16))
    assert torch.equal(table[0, 1:], sine_cosine_positions(2, 2, 16))
    assert model.embeddings.cls_token.abs().max() < 1e-5
    assert [p.requires_grad for p in patch_projection(method.backbone)] == [False, False]
    bound = math.sqrt(6 / (16 + 16))
    assert 0.9 * bound < model.layers[0].attention.q_proj.weight.abs().max() <= bound
    assert torch.equal(method.momentum_copy.backbone.backbone.embeddings.position_embeddings, table)
    with pytest.raises(ValueError, match="not a plain|no position table|prepares plain"):
        from ssl_methods.vit import initialize_vit

        initialize_vit(tiny_backbone("resnet"))


def test_timm_vits_are_prepared_too():
    from transformers import TimmWrapperConfig

    from albef_hf.vision_backbone import VisionBackbone

    backbone = VisionBackbone(TimmWrapperConfig(architecture="vit_tiny_patch16_224", do_pooling=False), "cls")
    method = MoCoV3(backbone, hidden_dim=8, dim=4)
    model = backbone.backbone.timm_model
    assert not model.pos_embed.requires_grad and not model.patch_embed.proj.weight.requires_grad
    bound = math.sqrt(6 / (192 + 192))  # of queries, keys and values each, not of the layer that holds all three
    assert model.blocks[0].attn.qkv.weight.abs().max() <= bound < 1.5 * model.blocks[0].attn.qkv.weight.abs().max()
    with torch.no_grad():
        assert method.eval()(torch.randn(2, 2, 3, 224, 224)).loss.isfinite()


# -- momentum ---------------------------------------------------------------------------------------------------------


def test_momentum_copies_cover_backbone_and_projector_and_only_their_parameters():
    for name in ("moco_v1", "moco_v2", "moco_v3", "byol"):
        method = tiny_method(name).train()
        copied = {n.split(".")[0] for n, _ in method.momentum_copy.named_parameters()}
        assert copied == {"backbone", "projector"}
        assert not any(p.requires_grad for p in method.momentum_copy.parameters())
        step(method)
        statistics = method.momentum_copy.backbone.state_dict()
        name_of = next(n for n in statistics if n.endswith("running_mean"))
        own = statistics[name_of].clone()
        method.update_momentum(0, 10)
        assert torch.equal(method.momentum_copy.backbone.state_dict()[name_of], own)


def test_momentum_schedules():
    byol, third = tiny_method("byol", momentum=0.9), tiny_method("moco_v3", momentum=0.9)
    assert byol.momentum_at(0, 100) == pytest.approx(0.9) and byol.momentum_at(50, 100) == pytest.approx(0.95)
    assert third.momentum_at(49, 100) == pytest.approx(0.95) and third.momentum_at(99, 100) == pytest.approx(1.0)
    assert tiny_method("moco_v2").momentum_at(77, 100) == 0.9
    with pytest.raises(ValueError, match="momentum must lie in 0 .. 1, not 1.5"):
        tiny_method("byol", momentum=1.5)


def test_fixed_random_target_and_no_target():
    fixed = tiny_method("byol", momentum=1.0).train()
    start = [p.clone() for p in fixed.momentum_copy.parameters()]
    none = tiny_method("byol", momentum=0.0, momentum_schedule="constant").train()
    for method in (fixed, none):
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
        step(method).loss.backward()
        optimizer.step()
        method.update_momentum(0, 10)
    assert all(torch.equal(a, b) for a, b in zip(start, fixed.momentum_copy.parameters(), strict=True))
    online = [*none.backbone.parameters(), *none.projector.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(none.momentum_copy.parameters(), online, strict=True))


@pytest.mark.parametrize("name", list(METHODS))
def test_forward_changes_no_state_but_running_statistics(name):
    method = tiny_method(name).train()
    before = copy.deepcopy(method.state_dict())
    step(method)
    changed = [n for n, t in method.state_dict().items() if not torch.equal(t, before[n])]
    assert all("running_" in n or "num_batches" in n for n in changed)


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_chunks_give_the_gradients_of_the_whole_batch(name):
    """On a backbone without batch normalization. The heads normalize over the whole batch all the same."""
    whole = tiny_method(name, "vit").double().train()
    parts = copy.deepcopy(whole)
    parts.chunk_size = 4
    one, other = step(whole), step(parts)
    torch.testing.assert_close(one.loss, other.loss, atol=1e-12, rtol=1e-12)
    one.loss.backward()
    other.loss.backward()
    for (n, p), (_, q) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        if p.requires_grad and p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-12, rtol=1e-9, msg=lambda t, n=n: f"{n} {t}")


def test_chunks_do_not_keep_activations_nor_count_statistics_twice():
    method = tiny_method("moco_v3").train()
    method.chunk_size = 3
    norm = next(m for m in method.backbone.modules() if isinstance(m, SyncBatchNorm))
    step(method).loss.backward()
    assert int(norm.num_batches_tracked) == 4  # two views, two chunks each, none again in the backward pass
    assert norm.momentum == 0.1

    def kept(chunk):
        seen = {}
        method = tiny_method("barlow_twins", "vit").train()
        method.chunk_size = chunk

        def pack(tensor):
            seen[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step(method, batch=16)
        return sum(t.numel() for t in seen.values())

    assert kept(4) < 0.5 * kept(0)


def test_views_go_through_the_network_separately():
    method = tiny_method("barlow_twins").train()
    calls = []
    method.backbone.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    step(method)
    assert calls == [6, 6]


def test_split_batch_norm_is_batch_norm_of_each_part():
    torch.manual_seed(0)
    split, plain = SplitBatchNorm(3).double().train(), nn.BatchNorm2d(3).double().train()
    split.splits = 2
    pixels = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(split(pixels), torch.cat([plain(half) for half in pixels.chunk(2)]))
    with pytest.raises(ValueError, match="a batch of 7 does not divide"):
        split(pixels[:7])


def test_shuffling_changes_the_order_of_normalization_only():
    """Keys come back in their own order, and without batch normalization shuffling does nothing."""
    still = tiny_method("moco_v2", shuffle_keys=False, batch_norm_splits=1).double().train()
    moved = tiny_method("moco_v2", shuffle_keys=True, batch_norm_splits=1).double().train()
    torch.testing.assert_close(step(still).targets, step(moved).targets)  # one part: the statistics are the same
    halves = tiny_method("moco_v2", shuffle_keys=True, batch_norm_splits=2).double().train()
    assert not torch.allclose(step(still).targets, step(halves).targets)
    assert tiny_method("moco_v2", "vit").shuffle_keys is False


# -- LARS -------------------------------------------------------------------------------------------------------------


def test_lars_skips_a_step_that_is_not_finite():
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = Lars([{"params": [matrix]}, {"params": [vector], "adapt": False}], lr=0.1, weight_decay=0.1)
    for gradient, found in ((1.0, 0.0), (float("nan"), 1.0)):
        matrix.grad, vector.grad = torch.full((2, 2), gradient), torch.full((2,), gradient)
        optimizer.found_inf = torch.tensor(found)
        before = matrix.clone(), vector.clone(), optimizer.state[matrix].get("momentum", torch.zeros(1)).clone()
        optimizer.step()
        moved = not torch.equal(before[0], matrix), not torch.equal(before[1], vector)
        assert moved == ((True, True) if found == 0 else (False, False))
    assert torch.equal(optimizer.state[matrix]["momentum"], before[2])
    # A zero norm leaves the gradient as it is.
    still = nn.Parameter(torch.zeros(2, 2))
    still.grad = torch.ones(2, 2)
    Lars([still], lr=0.5).step()
    torch.testing.assert_close(still.detach(), torch.full((2, 2), -0.5))


# -- health -----------------------------------------------------------------------------------------------------------


def test_health_tells_spread_from_collapse():
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(512, 32, generator=generator)
    collapsed = torch.ones(512, 32) + 1e-3 * torch.randn(512, 32, generator=generator)
    assert projection_spread(healthy).item() == pytest.approx(1.0, abs=0.05)
    assert projection_spread(collapsed).item() < 0.01
    assert effective_rank(torch.eye(6)).item() == pytest.approx(6, rel=1e-3)
    assert effective_rank(torch.ones(6, 6)).item() == pytest.approx(1, rel=1e-3)
    assert uniformity(collapsed).item() == pytest.approx(0, abs=1e-3) and uniformity(healthy).item() < -3.5
    perfect = pair_statistics(torch.eye(4), torch.eye(4))
    assert perfect["contrastive_accuracy"] == 1 and perfect["alignment"] == 0 and perfect["negative_similarity"] == 0
    assert pair_statistics(torch.ones(4, 4), torch.ones(4, 4))["contrastive_accuracy"] == 0


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_health_of_a_step_that_will_be_skipped_raises_nothing(name, bad):
    method = tiny_method(name).train()
    views, draws = views_of(0)
    views[0, 0, 0, 0, 0] = bad
    output = method(views.float(), draws)
    values = method.health(output) | method.metrics(output)
    assert any(not torch.isfinite(value) for value in values.values())


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_reports_its_health(name):
    method = tiny_method(name).train()
    output = step(method)
    values = {k: float(v) for k, v in {**method.metrics(output), **method.health(output)}.items()}
    assert all(math.isfinite(v) for v in values.values())
    assert method.alarm(values) is None
    assert method.alarm(values | {"projection_spread": 0.01}).startswith("collapse")
    assert method.chance_losses(6)["loss"] > 0


def test_what_looks_wrong_before_the_first_step_is_warned_of():
    moco = tiny_method("moco_v2", momentum=0.999, queue_size=64)
    found = moco.warnings(rows=50, batch_size=8, total_steps=100, optimizer="sgd")
    for part in ("own negatives", "remembers 1000 steps", "over 8 images", "without batch_norm_splits"):
        assert any(part in text for text in found), part
    vit = tiny_method("moco_v3", "vit", freeze_patch_projection=False)
    found = vit.warnings(rows=50, batch_size=8, total_steps=10000, optimizer="lars")
    assert [part for part in ("LARS on a ViT", "patch projection trains") if not any(part in t for t in found)] == []
    assert tiny_method("moco_v3", "vit").warnings(rows=50, batch_size=8, total_steps=10000, optimizer="adamw") == []


def test_the_queue_fills():
    method = tiny_method("moco_v1").train()
    fill = []
    for number in range(4):
        output = step(method, number)
        method.enqueue(output)
        fill.append(float(method.health(output)["queue_fill"]))
    assert fill == pytest.approx([6 / 14, 12 / 14, 1.0, 1.0])


def test_any_number_of_channels_and_wrong_views():
    method = METHODS["barlow_twins"](tiny_backbone(channels=13), projector_dims=[4, 4])
    assert method(torch.randn(3, 2, 13, 16, 16)).loss.isfinite()
    with pytest.raises(ValueError, match=r"views must be \(batch, 2, channels, height, width\)"):
        method(torch.randn(3, 13, 16, 16))
