"""Adapters, compilation, device maps and ONNX give the same as the plain model."""

import warnings

import pytest
import torch
from helpers import shallow_model, tiny_batch

from albef_hf import AlbefForPreTraining
from albef_hf.inference.onnx import export_onnx

INPUTS = ("input_ids", "attention_mask", "pixel_values")


@pytest.fixture
def model():
    return shallow_model().eval()


def scores(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**{name: batch[name] for name in INPUTS}).logits_per_image


def test_an_adapter_trains_is_saved_loaded_and_merged(model, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4,
        target_modules=["query", "value", "q_proj", "v_proj"],
        exclude_modules=r"momentum_copy\..*",
        modules_to_save=["itm_head"],
    )
    adapted = peft.get_peft_model(AlbefForPreTraining.from_pretrained(tmp_path / "base"), config).train()
    batch = tiny_batch()
    before = scores(adapted, batch)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or "itm_head" in name for name in trained)
    assert not any("momentum_copy" in name for name in trained)
    for _ in range(3):
        adapted(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(ValueError, match="adapter"):
        adapted.base_model.model.update_momentum()
    after = scores(adapted.eval(), batch)
    assert (after - before).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    base = AlbefForPreTraining.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(scores(loaded, batch), after)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AlbefForPreTraining.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(scores(merged, batch), after, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        merged.itm_head.weight, adapted.base_model.model.itm_head.modules_to_save.default.weight
    )


def test_towers_and_matching_compile_to_one_graph_each(model):
    batch = tiny_batch()
    ids, mask, pixels = (batch[name] for name in INPUTS)
    compiled = {"backend": "aot_eager", "fullgraph": True}
    with torch.no_grad():
        image, text = model.get_image_features(pixels), model.get_text_features(ids, mask)
        fast_image = torch.compile(model.get_image_features, **compiled)(pixels)
        fast_text = torch.compile(model.get_text_features, **compiled)(ids, mask)
        torch.testing.assert_close(fast_image.pooler_output, image.pooler_output)
        torch.testing.assert_close(fast_text.pooler_output, text.pooler_output)
        pair = (text.last_hidden_state, mask, model.project_image_tokens(image.last_hidden_state))
        expected = model.matching_logits(*pair)
        torch.testing.assert_close(torch.compile(model.matching_logits, **compiled)(*pair), expected)


def test_a_device_map_places_the_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    placed = AlbefForPreTraining.from_pretrained(tmp_path, device_map="auto").eval()
    device = next(placed.parameters()).device
    batch = {name: value.to(device) for name, value in tiny_batch().items()}
    torch.testing.assert_close(scores(placed, batch).cpu(), scores(model, tiny_batch()), atol=1e-4, rtol=0)


def test_onnx_graphs_give_what_the_model_gives(model, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install onnx onnxscript onnxruntime")
    import onnxruntime

    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = export_onnx(model, tmp_path)
    assert model.training and model.albef.text_model.training
    assert [path.name for path in written] == ["image.onnx", "text.onnx", "matching.onnx"]
    graphs = {
        path.stem: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in written
    }
    batch = tiny_batch(size=5, length=7)  # neither the number nor the length it was exported with
    ids, mask, pixels = (batch[name] for name in INPUTS)
    with torch.no_grad():
        model.eval()
        image, text = model.get_image_features(pixels), model.get_text_features(ids, mask)
        keys_values = model.project_image_tokens(image.last_hidden_state)
        expected = model.matching_logits(text.last_hidden_state, mask, keys_values)

    def run(name, **inputs):
        return [torch.from_numpy(each) for each in graphs[name].run(None, {k: v.numpy() for k, v in inputs.items()})]

    tokens, image_embeds = run("image", pixel_values=pixels)
    states, text_embeds = run("text", input_ids=ids, attention_mask=mask)
    (logits,) = run("matching", text_states=states, attention_mask=mask, image_tokens=tokens)
    torch.testing.assert_close(image_embeds, image.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(text_embeds, text.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_exporting_without_its_packages_says_what_to_install(model, tmp_path, monkeypatch):
    from albef_hf.inference import onnx as exporting

    monkeypatch.setattr(exporting, "PACKAGES", ("no_such_package",))
    with pytest.raises(ImportError, match="pip install no_such_package"):
        export_onnx(model, tmp_path)
