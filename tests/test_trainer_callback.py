"""The models under `transformers.Trainer`."""

import re

import pytest
import torch
from model_cases import TAUGHT, new
from transformers import Trainer, TrainingArguments, set_seed

from albef_hf import AlbefForImageTextRetrieval, AlbefForPreTraining, AlbefForVisualEntailment
from albef_hf.training.trainer_callback import MomentumCallback

CASE = {case.model_class: case for case in TAUGHT}


class Rows(torch.utils.data.Dataset):
    """Batches of a case, each as one row: the collator takes a batch as it is."""

    def __init__(self, case, batches: int) -> None:
        self.batches = [case.feed(seed) for seed in range(batches)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict:
        return self.batches[index]


def trainer(model, folder, *, batches: int = 3, callback=None, **options) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=1, learning_rate=1e-3, lr_scheduler_type="constant",
        weight_decay=0.0, max_grad_norm=0.0, save_steps=1, report_to="none", optim="adamw_torch", use_cpu=True,
        remove_unused_columns=False, disable_tqdm=True, **{"max_steps": 3, **options},
    )  # fmt: skip
    made = Trainer(
        model, arguments, train_dataset=Rows(CASE[type(model)], batches), data_collator=lambda rows: rows[0],
        callbacks=[callback or MomentumCallback()],
    )  # fmt: skip
    made._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(made.train_dataset)
    return made


def by_hand(model, *, steps: int = 3, accumulation: int = 1):
    """The same steps as `training/loop.py` makes them."""
    case = CASE[type(model)]
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3, weight_decay=0.0)
    alphas = model.schedules(steps, steps)["alpha"]
    for step in range(steps):
        for micro in range(accumulation):
            output = model(**case.feed(step * accumulation + micro), alpha=alphas[step])
            (output.loss / accumulation).backward()
            model.enqueue(output)
        optimizer.step()
        optimizer.zero_grad()
        model.update_momentum(step, steps)
    return model


def assert_equal(one, other, tolerance: float = 0.0) -> None:
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("model_class", CASE, ids=lambda model_class: model_class.__name__)
def test_three_steps_equal_those_of_our_loop(model_class, accumulation, tmp_path):
    """A loss that is not divided by the accumulation steps is not equal either."""
    model, expected = new(model_class), by_hand(new(model_class), accumulation=accumulation)
    options = {"gradient_accumulation_steps": accumulation, "save_strategy": "no"}
    trainer(model, tmp_path, batches=3 * accumulation, **options).train()
    assert_equal(model, expected, 1e-6)
    copies = [name for name in model.state_dict() if name.startswith("momentum_copy.")]
    assert model.momentum_copy.updates.item() == 3 and len(copies) > 10
    if model_class in (AlbefForPreTraining, AlbefForImageTextRetrieval):
        assert model.image_queue.cursor.item() == 3 * accumulation * 4 % 6
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize("model_class", [AlbefForPreTraining, AlbefForVisualEntailment])
def test_a_resumed_run_equals_one_that_never_stopped(model_class, tmp_path):
    changes = {"text_config": {"hidden_dropout_prob": 0.1}}
    straight = new(model_class, **changes)
    trainer(straight, tmp_path / "straight").train()
    trainer(new(model_class, **changes), tmp_path / "parts").train()
    set_seed(5)
    resumed = new(model_class, **changes)
    with torch.no_grad():
        for tensor in resumed.state_dict().values():
            tensor.add_(1)
    trainer(resumed, tmp_path / "parts").train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert_equal(resumed, straight)
    # from a folder elsewhere
    (tmp_path / "parts" / "checkpoint-2").rename(tmp_path / "moved")
    again = new(model_class, **changes)
    trainer(again, tmp_path / "new", callback=MomentumCallback(tmp_path / "moved")).train(
        resume_from_checkpoint=str(tmp_path / "moved")
    )
    assert_equal(again, straight)


def test_a_checkpoint_without_copies_or_of_another_model_is_refused(tmp_path):
    trainer(new(AlbefForPreTraining), tmp_path, max_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"
    with pytest.raises(ValueError, match="is of another model or configuration: image_queue.features differs"):
        trainer(new(AlbefForPreTraining, queue_size=8), tmp_path).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "state.safetensors").unlink()
    with pytest.raises(ValueError, match=re.escape(f"{checkpoint / 'state.safetensors'} is missing")):
        trainer(new(AlbefForPreTraining), tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="follows models of this package, not a Linear"):
        MomentumCallback().on_train_begin(None, None, None, model=torch.nn.Linear(1, 1))
