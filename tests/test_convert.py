"""Published checkpoints are converted completely, and converted back unchanged."""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import load_reference, published_shapes, published_state, tiny_batch, tiny_config, tiny_model
from safetensors.torch import load_file, save_file

from albef_hf import AlbefForPreTraining, load_original_checkpoint
from albef_hf.convert.albef import (
    MODELS,
    convert_checkpoint,
    convert_state,
    export_original_checkpoint,
    infer_config,
    model_class,
    saved_state,
)
from albef_hf.convert.files import read_state
from albef_hf.convert.layouts import TASKS
from albef_hf.convert.state import restore_state, sniff_task
from albef_hf.convert.verification import compare, fixed_inputs, outputs

COUNTS = {
    "pretraining": 844,
    "retrieval": 831,
    "question_answering": 1154,
    "visual_reasoning": 1136,
    "text_assignment": 571,
    "visual_entailment": 824,
}
RECORDED = {
    "pretraining": "pretrain_alpha0.4",
    "retrieval": "retrieval",
    "question_answering": "vqa",
    "visual_reasoning": "nlvr2",
    "text_assignment": "text_assignment",
    "visual_entailment": "visual_entailment",
}
# What we have beyond the publication: ids in the queues of pre-training, and a counter.
OURS_ALONE = {"image_queue.ids", "text_queue.ids", "momentum_copy.updates"}

# A model in memory has these weights under two names: keys and values of the second layer of each pair.
PAIRS = dict.fromkeys(
    ("visual_reasoning", "text_assignment"),
    r"encoder\.layer\.(7|9|11|13|15|17)\.crossattention\.self\.(key|value)\.",
)


def heads(sizes: dict) -> dict[str, int]:
    return {name: int(sizes[name]) for name in ("vision_heads", "text_heads")}


@pytest.fixture(scope="module")
def recorded() -> tuple[dict, dict]:
    """A small pre-training checkpoint, with copies and queues, and its heads. Do not change it."""
    state, _, _, sizes = load_reference("pretrain_alpha0.4")
    return state, heads(sizes)


def differences(one: dict, other: dict) -> list[str]:
    names = sorted(one.keys() ^ other.keys())
    return names + [
        k for k in one.keys() & other.keys() if one[k].dtype != other[k].dtype or not one[k].equal(other[k])
    ]


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_published_name_is_ours_and_comes_back(task):
    state = published_state(task)
    assert len(state) == COUNTS[task]
    converted, report = convert_state(state)
    assert report.task == task and report.explained
    assert report.matched.keys() | report.tied.keys() | report.dropped.keys() == state.keys()

    restored = restore_state(converted, task)
    assert {n: (t.shape, t.dtype) for n, t in restored.items()} == {n: (t.shape, t.dtype) for n, t in state.items()}

    with torch.device("meta"):
        model = model_class(task)(infer_config(state))
    ours = saved_state(model)
    beyond = {name for name in ours if name in OURS_ALONE and name not in converted}
    pairs = PAIRS.get(task, "nothing")
    tied = {name for name in ours if re.search(pairs, name)}
    assert ours.keys() - beyond - tied == converted.keys()
    assert [name for name in converted if ours[name].shape != converted[name].shape] == []


@pytest.mark.parametrize("task", TASKS)
def test_values_come_back_bit_for_bit(task, tmp_path):
    state, _, _, sizes = load_reference(RECORDED[task])
    torch.save({"model": state, "epoch": 3}, tmp_path / "file.pth")
    model, report = convert_checkpoint(tmp_path / "file.pth", **heads(sizes))
    assert type(model).__name__ == MODELS[task][1]
    assert not report.missing and set(report.started) <= OURS_ALONE
    exported = export_original_checkpoint(model)
    assert differences(exported, state) == []
    if task == "visual_reasoning":  # tied names are one tensor for the published code too
        key = "text_encoder_m.encoder.layer.{}.crossattention.self.key.weight"
        assert exported[key.format(7)] is exported[key.format(6)]
    values = outputs(model, fixed_inputs(model))
    assert {"image_tokens", "text_states"} < values.keys() and all(v.isfinite().all() for v in values.values())


def test_weights_without_copies_and_queues_start_them(recorded):
    state, sizes = recorded
    alone = {k: v for k, v in state.items() if not re.match(r"\w+_m\.|\w*queue", k)}
    model, report = convert_checkpoint(alone, **sizes)
    assert differences(export_original_checkpoint(model, momentum=False), alone) == []
    assert sum(name.startswith("momentum_copy.") for name in report.started) > 250
    assert {name for name in report.started if "queue" in name} == {
        f"{kind}_queue.{part}" for kind in ("image", "text") for part in ("features", "ids", "cursor")
    }
    copies, originals = model.momentum_copy.pairs(model.online_modules())
    assert all(torch.equal(a, b) for a, b in zip(copies, originals, strict=True))
    assert "momentum copies" in str(report)


def test_image_ids_of_the_queue_become_ours():
    state, _, _, _ = load_reference("retrieval")
    converted, _ = convert_state(state)
    assert (state["idx_queue"] != -100).any()
    for queue in ("image_queue", "text_queue"):
        assert torch.equal(converted[f"{queue}.ids"][:, 0], state["idx_queue"][0])
        assert (converted[f"{queue}.ids"][:, 1] == -100).all()


def test_fine_tuned_weights_may_keep_the_prefix_of_pre_training():
    state, _, _, _ = load_reference("retrieval")
    older = {re.sub(r"^(text_encoder(_m)?)\.", r"\1.bert.", name): tensor for name, tensor in state.items()}
    converted, report = convert_state(older)
    assert report.task == "retrieval" and report.explained
    assert differences(converted, convert_state(state)[0]) == []


def test_another_image_size_resizes_every_position_table(recorded):
    state, sizes = recorded
    model, report = convert_checkpoint(state, image_size=64, **sizes)
    names = [f"{part}.vision_model.backbone.embeddings.position_embeddings" for part in ("albef", "momentum_copy")]
    assert sorted(report.changed) == sorted(names)
    for name, published in zip(names, ("visual_encoder.pos_embed", "visual_encoder_m.pos_embed"), strict=True):
        table, old = saved_state(model)[name], state[published]
        grid = old[0, 1:].reshape(3, 3, 24).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
        torch.testing.assert_close(table[0, 1:], expected[0].permute(1, 2, 0).reshape(16, 24))
        assert torch.equal(table[:, 0], old[:, 0])


def test_training_the_model_leaves_the_callers_tensors_alone(recorded):
    state, sizes = recorded
    before = {name: tensor.clone() for name, tensor in state.items()}
    model = load_original_checkpoint(state, **sizes)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    assert differences(state, before) == []


# -- containers -------------------------------------------------------------------------------------------------------


def test_containers_are_looked_through(recorded, tmp_path):
    state = {name: tensor for name, tensor in recorded[0].items() if "_m." not in name}
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    training = {
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]},
        "lr_scheduler": {"base_values": [1e-4], "t_in_epochs": True},
        "config": {"batch_size": 64, "optimizer": {"opt": "adamW"}, "bert_config": "configs/config_bert.json"},
        "args": argparse.Namespace(output_dir="out", seed=42),
        "epoch": 29,
    }
    containers = {
        "bare.pth": state,
        "model.pth": {"model": state},
        "state_dict.pt": {"state_dict": state},
        "parallel.pth": parallel,
        "training.pth": {"model": parallel, **training},
    }
    for name, content in containers.items():
        torch.save(content, tmp_path / name)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({k: v.clone().contiguous() for k, v in state.items()}, tmp_path / "bare.safetensors")
    for name in (*containers, "old.pth", "bare.safetensors"):
        assert differences(read_state(tmp_path / name), state) == [], name


def test_torchmultimodals_names_are_understood():
    generator = torch.Generator().manual_seed(0)
    for task in ("retrieval", "question_answering"):
        shapes = published_shapes(task, "torchmultimodal_keys.json")
        state = {
            name: torch.randn(shape, generator=generator)
            if not name.endswith("_ptr")
            else torch.zeros(1, dtype=torch.int64)
            for name, shape in shapes.items()
        }
        state |= {k: torch.full(v.shape, -100) for k, v in state.items() if k.endswith("idx_queue")}
        if task == "question_answering":  # its decoder is not tied to anything; here it was converted, not trained
            for answers in ("answer_decoder", "answer_decoder_m"):
                words = state[f"{answers}.text_embeddings.word_embeddings.weight"]
                state[f"{answers}.prediction_head.decoder.weight"] = words
        first = "model_with_similarity.albef_model." if task == "retrieval" else "model."
        layer = f"{first}text_encoder_m.encoder.layer.1.attention."
        value = state[f"{layer}value.weight"]
        if task == "retrieval":  # another version of it has the three in one
            parts = [state.pop(f"{layer}{part}.weight") for part in ("query", "key", "value")]
            state[f"{layer}input_proj.weight"] = torch.cat(parts)
        model, report = convert_checkpoint(state, vision_heads=3, text_heads=3)
        assert report.task == task and not report.unexpected
        ours = saved_state(model)
        assert torch.equal(ours["momentum_copy.text_model.encoder.layer.1.attention.self.value.weight"], value)
        fused = state[f"{first}vision_encoder.encoder.encoder.layers.encoder_layer_1.self_attention.in_proj_bias"]
        assert torch.equal(
            ours["albef.vision_model.backbone.encoder.layer.1.attention.attention.key.bias"], fused[24:48]
        )
        cross = state[f"{first}multimodal_encoder.layer.2.cross_attention.output.weight"]
        assert torch.equal(ours["albef.text_model.encoder.layer.5.crossattention.output.dense.weight"], cross)
    bias = state["answer_decoder_m.prediction_head.decoder.bias"]
    assert torch.equal(ours["momentum_copy.decoder.cls.predictions.bias"], bias)


# -- what is wrong, and where -----------------------------------------------------------------------------------------


def changed(state: dict, **options) -> dict:
    return {
        **{name: tensor for name, tensor in state.items() if name not in options.get("without", ())},
        **options["add"],
    }


@pytest.mark.parametrize(
    ("without", "add", "message"),
    [
        ((), {"text_encoder.pooler.dense.weight": torch.ones(2)}, r"outside the published pretraining.*pooler\.dense"),
        (("itm_head.bias",), {}, r"MISSING: 1: itm_head\.bias"),
        (("vision_proj_m.bias",), {}, r"MISSING: 1: momentum_copy\.vision_projection\.bias"),
        (("queue_ptr",), {}, r"MISSING: 2: image_queue\.cursor"),
        (
            (),
            {"text_encoder.cls.predictions.decoder.weight": torch.ones(60, 16)},
            r"decoder\.weight' differs from 'text_encoder\.bert\.embeddings\.word_embeddings",
        ),
        (("visual_encoder.pos_embed",), {}, r"lacks 'visual_encoder\.pos_embed'"),
        ((), {"itm_head.weight": torch.ones(3, 16)}, r"itm_head\.weight: \(3, 16\) in the checkpoint, \(2, 16\)"),
        ((), {"epoch": 3}, r"no tensor among its weights: \['epoch'\]"),
    ],
)
def test_what_does_not_fit_is_named(recorded, tmp_path, without, add, message):
    state, sizes = recorded
    torch.save(changed(state, without=without, add=add), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_original_checkpoint(tmp_path / "other.pth", **sizes)


def test_a_name_can_be_left_out_on_request(recorded):
    state, sizes = recorded
    extra = {**state, "text_encoder.pooler.dense.weight": torch.ones(2)}
    model, report = convert_checkpoint(extra, ignore=["text_encoder.pooler."], **sizes)
    assert report.dropped["text_encoder.pooler.dense.weight"] == "as asked"
    assert isinstance(model, AlbefForPreTraining)


def test_a_configuration_of_other_sizes_names_the_weight(recorded):
    state, sizes = recorded
    config = infer_config(state, **sizes)
    config.projection_dim = 4
    with pytest.raises(ValueError, match=r"text_projection\.weight: \(8, 16\) in the checkpoint, \(4, 16\)"):
        load_original_checkpoint(state, config)
    with pytest.raises(ValueError, match="belong into the configuration"):
        load_original_checkpoint(state, config, vision_heads=3)
    with pytest.raises(ValueError, match="unknown option 'head'; there are vision_heads"):
        load_original_checkpoint(state, head=3)


def test_other_files_are_told_apart(recorded, tmp_path):
    state, sizes = recorded
    with pytest.raises(ValueError, match="outside the published retrieval"):
        load_original_checkpoint(state, task="retrieval", **sizes)
    with pytest.raises(ValueError, match="task must be one of pretraining"):
        load_original_checkpoint(state, task="captioning", **sizes)
    with pytest.raises(ValueError, match="not an ALBEF checkpoint.*but conv1"):
        sniff_task({"conv1.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="there is no file .*nothing.pth"):
        load_original_checkpoint(tmp_path / "nothing.pth")
    torch.save({"epoch": 3, "args": argparse.Namespace()}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="empty.pth holds no weights.*epoch, args"):
        load_original_checkpoint(tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="AlbefModel has no published layout"):
        export_original_checkpoint(tiny_model().albef)


def test_a_folder_without_copies_is_saved_and_exported_under_the_names_of_a_new_model(tmp_path):
    config = tiny_config()
    model = AlbefForPreTraining(config)
    model.save_pretrained(tmp_path / "folder")  # as runs are saved, without momentum copies
    loaded = AlbefForPreTraining.from_pretrained(tmp_path / "folder")
    assert loaded.loading_report and saved_state(loaded).keys() == saved_state(model).keys()
    assert export_original_checkpoint(loaded).keys() == export_original_checkpoint(model).keys()


def test_targets_and_vocabularies_that_do_not_fit_write_nothing(recorded, tmp_path, monkeypatch):
    state, sizes = recorded
    torch.save({"model": state}, tmp_path / "ALBEF.pth")
    flags = [text for name, value in sizes.items() for text in (f"--{name}", value)]
    for target in (tmp_path / "ALBEF.pth", tmp_path / "ALBEF.pth" / "folder"):
        with pytest.raises(SystemExit, match="ALBEF.pth is a file; name a folder"):
            run_script("convert_checkpoint.py", monkeypatch, tmp_path / "ALBEF.pth", target, *flags)
    with pytest.raises(SystemExit, match="ALBEF.pth is a file; name a folder"):
        run_script("convert_image_checkpoint.py", monkeypatch, "no.pth", tmp_path / "ALBEF.pth")
    wordpiece = (*flags, "--tokenizer", "wordpiece")
    with pytest.raises(SystemExit, match="the tokenizer has 30522 tokens"):
        run_script("convert_checkpoint.py", monkeypatch, tmp_path / "ALBEF.pth", tmp_path / "folder", *wordpiece)
    assert [path.name for path in tmp_path.iterdir()] == ["ALBEF.pth"]


@pytest.mark.parametrize("lost", ["visual_encoder.blocks.", "visual_encoder.cls_token"])
def test_weights_from_which_sizes_are_read_are_named(recorded, lost):
    state, sizes = recorded
    with pytest.raises(ValueError, match=f"lacks '{lost}"):
        convert_checkpoint({name: tensor for name, tensor in state.items() if not name.startswith(lost)}, **sizes)
    with pytest.raises(ValueError, match="image_size 0 is no multiple of the patch size"):
        convert_checkpoint(state, **{**sizes, "image_size": 0})


def test_an_image_encoder_without_a_place_in_the_publication_is_not_exported():
    vision = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 24], "depths": [1, 1]}
    model = tiny_model(vision_config=vision, vision_pooling="mean")
    with pytest.raises(ValueError, match="pretraining layout has no place for .*vision_model.backbone.embedder"):
        export_original_checkpoint(model)


# -- the script -------------------------------------------------------------------------------------------------------


def run_script(name: str, monkeypatch, *arguments) -> None:
    path = Path(__file__).parent.parent / "scripts" / name
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    module.main()


def test_the_script_converts_verifies_and_exports(recorded, tmp_path, monkeypatch, capsys):
    state, sizes = recorded
    torch.save({"model": state}, tmp_path / "ALBEF.pth")
    flags = [text for name, value in sizes.items() for text in (f"--{name}", value)]
    script = "convert_checkpoint.py"
    run_script(script, monkeypatch, tmp_path / "ALBEF.pth", tmp_path / "folder", *flags, "--verify")
    printed = capsys.readouterr().out
    assert "598 names matched" in printed and "itm_logits" in printed and "mlm_logits" in printed

    run_script(script, monkeypatch, tmp_path / "folder", tmp_path / "back.pth", "--export")
    assert differences(read_state(tmp_path / "back.pth"), state) == []
    run_script(script, monkeypatch, tmp_path / "folder", tmp_path / "a.safetensors", "--export", "--without_momentum")
    assert len(load_file(tmp_path / "a.safetensors")) == 302

    # Values computed elsewhere: the publication's, of the recorded step.
    _, inputs, recorded_outputs, _ = load_reference("pretrain_alpha0.4")
    names = {"image_embeds": "image_tokens", "image_feat": "image_embeds", "fusion_embeds": "fused_states"}
    values = {f"input/{name}": inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    values |= {f"output/{ours}": recorded_outputs[theirs] for theirs, ours in names.items()}
    save_file(values, tmp_path / "values.safetensors")
    verify = [tmp_path / "ALBEF.pth", tmp_path / "second", *flags, "--verify", tmp_path / "values.safetensors"]
    run_script(script, monkeypatch, *verify)
    assert "verified: fused_states differs by" in capsys.readouterr().out

    values["output/image_embeds"] = values["output/image_embeds"] + 0.1
    save_file(values, tmp_path / "values.safetensors")
    with pytest.raises(SystemExit, match="second holds a model already: remove it, or name another folder"):
        run_script(script, monkeypatch, *verify)
    verify[1] = tmp_path / "third"
    with pytest.raises(SystemExit, match="does not compute the values of .*off image_embeds by"):
        run_script(script, monkeypatch, *verify)
    model = AlbefForPreTraining.from_pretrained(tmp_path / "folder")
    save_file({**values, "output/caption": torch.ones(1)}, tmp_path / "values.safetensors")
    with pytest.raises(ValueError, match="output 'caption': the model has none of that name"):
        compare(model, tmp_path / "values.safetensors")
    with pytest.raises(SystemExit, match="there is no file"):
        run_script(script, monkeypatch, tmp_path / "nothing.pth", tmp_path / "third")
    assert not (tmp_path / "third").exists()
    with pytest.raises(SystemExit, match="nothing is no model folder"):
        run_script(script, monkeypatch, tmp_path / "nothing", tmp_path / "again.pth", "--export")
    with pytest.raises(SystemExit, match="back.pth exists already: remove it, or name another file"):
        run_script(script, monkeypatch, tmp_path / "folder", tmp_path / "back.pth", "--export")
    with pytest.raises(SystemExit, match="again: with --export name a file that ends in .pth, .pt or .safetensors"):
        run_script(script, monkeypatch, tmp_path / "folder", tmp_path / "again", "--export")
    with pytest.raises(SystemExit, match="--image_size is for converting, and does nothing with --export"):
        run_script(script, monkeypatch, tmp_path / "folder", tmp_path / "again.pth", "--export", "--image_size", 32)


def test_heads_are_64_wide_unless_said_otherwise():
    """Shapes do not tell the number of heads."""
    vision = {**tiny_config().vision_config.to_dict(), "hidden_size": 192, "num_attention_heads": 3}
    model = tiny_model(vision_config=vision, text_config={"hidden_size": 128, "num_attention_heads": 2})
    state = export_original_checkpoint(model)
    for options, heads in (({}, (3, 2)), ({"vision_heads": 6, "text_heads": 4}, (6, 4)), ({"text_heads": 8}, (3, 8))):
        config = infer_config(state, **options)
        assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == heads
    again = load_original_checkpoint(state)
    batch = {key: tiny_batch()[key] for key in ("pixel_values", "input_ids", "attention_mask")}
    found, expected = (each.eval()(**batch).logits_per_image for each in (again, model))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["vision_heads", "text_heads"])
def test_heads_that_shapes_do_not_tell_are_asked_for(recorded, name):
    state, given = recorded
    other = {key: value for key, value in given.items() if key != name}
    with pytest.raises(ValueError, match=rf"0 heads do not share a width of \d+, and shapes do not tell: give {name}"):
        infer_config(state, **other)
    for wrong in (5, 0):
        with pytest.raises(ValueError, match=f"{wrong} heads do not share"):
            infer_config(state, **other, **{name: wrong})
    config = infer_config(state, **other, **{name: 2})
    part = config.vision_config if name == "vision_heads" else config.text_config
    assert part.num_attention_heads == 2
