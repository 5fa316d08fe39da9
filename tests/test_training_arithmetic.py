"""What a step of training adds up to: accumulation, learning rates, norms, checkpoints kept, signals given back."""

import signal

import pytest
import torch
from torch import nn
from training_helpers import Output, Rows, saved, trained

from albef_hf.data.lines import read_lines
from albef_hf.reporting.curves import plot_curves
from albef_hf.reporting.log import read_log
from albef_hf.reporting.report import write_report
from albef_hf.trainable import Trainable
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.checkpoints import saved_checkpoints
from albef_hf.training.loop import train
from albef_hf.training.optimization import build_optimizer, learning_rate, scaled_rates
from albef_hf.training.processes import build_accelerator
from albef_hf.training.stopping import StopSignal


class Linear(Trainable):
    """A loss that is the mean over its samples, so that micro-batches add up to one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1))

    def forward(self, pixel_values: torch.Tensor) -> Output:
        return Output(loss=((pixel_values @ self.weight) ** 2).mean())

    def enqueue(self, output: Output) -> None: ...

    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None: ...


class Parts(Rows):
    """The batches of `Rows` in parts: a batch of 12 as one, or as so many micro-batches."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts, self.batch_size = parts, 12 // parts

    def batches(self, start=0):
        for number in range(start, 10_000):
            whole = torch.randn(12, 4, generator=torch.Generator().manual_seed(number // self.parts))
            yield {"pixel_values": whole.chunk(self.parts)[number % self.parts], "rejected": []}


def weights_after(folder, parts: int, data=None, **changes) -> tuple[torch.Tensor, list[dict]]:
    folder.mkdir()
    options = {"max_steps": 3, "accumulation": parts, "optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 0.0}
    options |= {"warmup_steps": 0, "schedule": "steps", "log_every": 1, "save_every": 100, "max_gradient_norm": 0.0}
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", **{**options, **changes})
    method = train(Linear(), data or Parts(parts), arguments, build_accelerator(arguments))
    return method.weight.detach().cpu(), [row for row in read_lines(folder / "log.jsonl") if row["kind"] == "train"]


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_micro_batches_add_up_to_one_batch(tmp_path, parts):
    whole, rows = weights_after(tmp_path / "whole", 1)
    accumulated, others = weights_after(tmp_path / "parts", parts)
    torch.testing.assert_close(accumulated, whole, rtol=1e-5, atol=1e-7)
    assert (whole - 1).abs().max() > 0.05
    for one, other in zip(rows, others, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_logged_norm_is_the_mean_before_clipping(tmp_path, clip):
    method, expected = Linear(), []
    batches, optimizer = Parts(1).batches(), torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        method(next(batches)["pixel_values"]).loss.backward()
        expected.append(float(torch.nn.utils.clip_grad_norm_(method.parameters(), clip or float("inf"))))
        optimizer.step()
    weights, (row,) = weights_after(tmp_path / "run", 1, log_every=3, max_gradient_norm=clip)
    assert row["gradient_norm"] == pytest.approx(sum(expected) / 3, rel=1e-4)
    torch.testing.assert_close(weights, method.weight.detach(), rtol=1e-5, atol=1e-7)
    assert max(expected) > 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_skipped_step_leaves_no_trace_in_the_logged_means(tmp_path, bad):
    _, (good,) = trained(tmp_path / "good", [1.0], log_every=1, optimizer="sgd", learning_rate=0.0)
    _, (row,) = trained(tmp_path / "bad", [1.0, bad], log_every=2, optimizer="sgd", learning_rate=0.0)
    assert row["skipped_steps"] == 1
    for name in ("gradient_norm", "loss"):
        assert row[name] == pytest.approx(good[name], rel=1e-5)


def test_where_no_step_counts_there_is_no_mean(tmp_path):
    _, (good, bad) = trained(tmp_path, [1.0, float("nan")], log_every=1, optimizer="sgd", learning_rate=0.0)
    assert good["skipped_steps"] == 0 and good["loss"] > 0
    assert bad["skipped_steps"] == 1 and bad["loss"] is None and bad["gradient_norm"] is None


def test_curves_and_report_of_rows_without_means_are_made(tmp_path):
    trained(tmp_path, [float("nan")] * 2 + [1.0] * 2, log_every=2)
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()
    assert read_log(tmp_path / "log.jsonl").series("loss")[0].tolist() == [4]
    assert "of 4 optimizer steps" in write_report(tmp_path, None, None).read_text()
    assert plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png").stat().st_size > 0


def test_logged_losses_are_means_over_steps_and_micro_batches(tmp_path):
    _, whole = weights_after(tmp_path / "whole", 1, log_every=1)
    _, (row,) = weights_after(tmp_path / "parts", 2, log_every=3)
    assert row["loss"] == pytest.approx(sum(each["loss"] for each in whole) / len(whole), rel=1e-4)


# -- learning rates ---------------------------------------------------------------------------------------------------


def test_milestones_are_epochs_after_which_the_rate_is_a_tenth():
    arguments = TrainingArguments(schedule="steps", milestones=[2, 3], learning_rate=1.0, warmup_steps=0)
    rates = [learning_rate(arguments, step, 10, 50) for step in range(50)]
    assert rates == pytest.approx([1.0] * 20 + [0.1] * 10 + [0.01] * 20)


def test_rates_and_warm_up_follow_batch_and_epoch():
    given = TrainingArguments(
        learning_rate=0.4,
        minimum_learning_rate=0.02,
        warmup_learning_rate=0.01,
        bias_learning_rate=0.08,
        learning_rate_per=256,
        warmup_epochs=2.5,
        warmup_steps=7,
    )
    found = scaled_rates(given, samples_per_step=1024, steps_per_epoch=10)
    assert found.learning_rate == pytest.approx(1.6) and found.minimum_learning_rate == pytest.approx(0.08)
    assert found.warmup_learning_rate == pytest.approx(0.04) and found.bias_learning_rate == pytest.approx(0.32)
    assert found.warmup_steps == 25
    plain = TrainingArguments(learning_rate=0.4, warmup_steps=7)
    assert scaled_rates(plain, 1024, 10) == plain


def test_the_warm_up_reaches_the_rate_and_starts_where_it_says():
    arguments = TrainingArguments(
        schedule="cosine_per_step",
        learning_rate=1.0,
        minimum_learning_rate=0.1,
        warmup_learning_rate=0.2,
        warmup_steps=4,
        warmup_every=1,
    )
    rates = [learning_rate(arguments, step, 10, 20) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.55) and rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)


def test_biases_have_a_rate_of_their_own(tmp_path):
    model = nn.Linear(3, 2)
    arguments = TrainingArguments(learning_rate=0.4, bias_learning_rate=0.1, optimizer="sgd")
    groups = build_optimizer(model, arguments).param_groups
    assert [group["rate_factor"] for group in groups] == [1.0, 0.25]


# -- checkpoints and signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (0, [4])])
def test_so_many_checkpoints_are_kept(tmp_path, keep, left):
    for step in range(1, 5):
        saved(tmp_path, step, keep=keep)
    assert [path.name for path in saved_checkpoints(tmp_path)] == [f"step-{step:08d}" for step in left]


def test_a_run_that_keeps_one_checkpoint_can_be_resumed(tmp_path):
    trained(tmp_path, [1.0] * 4, save_every=1, keep_checkpoints=1)
    assert [path.name for path in saved_checkpoints(tmp_path / "checkpoints")] == ["step-00000004"]


def test_signals_are_handled_as_before_when_training_ends():
    def mine(*_):
        return None

    before = {number: signal.signal(number, mine) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        with StopSignal():
            assert all(signal.getsignal(number) is not mine for number in before)
        assert all(signal.getsignal(number) is mine for number in before)
        with pytest.raises(RuntimeError), StopSignal():
            raise RuntimeError
        assert all(signal.getsignal(number) is mine for number in before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
