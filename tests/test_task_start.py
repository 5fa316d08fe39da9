"""How models of the downstream tasks start: from another folder, for larger pictures, or from scratch."""

import pytest
import torch

from albef_hf.tasks import TASKS
from albef_hf.training.arguments import ModelArguments
from albef_hf.training.initialization import build_task_model, load_trained_model


@pytest.mark.parametrize("task", TASKS)
def test_a_larger_picture_resizes_the_position_table_and_its_copy(model_folder, task):
    model_class = TASKS[task].model_class
    own, _ = build_task_model(model_class, ModelArguments(model_path=str(model_folder), image_size=32, queue_size=5))
    model, processor = build_task_model(
        model_class, ModelArguments(model_path=str(model_folder), image_size=64, queue_size=5)
    )
    assert processor.image_size == 64 and "resized to pictures of 64 pixels" in model.loading_report
    tables = {name: table for name, table in model.named_parameters() if name.endswith("position_embeddings")}
    pictures = torch.randn(2, 3, 64, 64)
    for name, table in tables.items():
        assert table.shape[1] == 17, name
    if hasattr(model, "momentum_copy"):
        assert len(tables) == 2 and torch.equal(*tables.values())
    states = [each.eval().albef.vision_model(pictures).tokens for each in (own, model)]  # the first interpolates
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)


def test_from_scratch_has_the_architecture_of_the_configuration():
    text = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    options = {"vision_config": vision, "vision_pooling": "mean", "image_size": 32, "projection_dim": 8}
    options |= {"queue_size": 3, "text_config": {**text, "fusion_layer": 2, "max_position_embeddings": 32}}
    model, _ = build_task_model(TASKS["visual_reasoning"].model_class, ModelArguments(**options))
    assert model.config.text_config.num_hidden_layers == 6 and model.config.vision_config.model_type == "resnet"
    for module, copied in ((m, getattr(model.momentum_copy, n)) for n, m in model.online_modules().items()):
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), copied.parameters(), strict=True))


def test_weights_that_do_not_arrive_are_named(model_folder, tmp_path):
    with pytest.raises(ValueError, match="has not been trained as AlbefForVisualEntailment: it lacks classifier"):
        load_trained_model(TASKS["visual_entailment"].model_class, str(model_folder))
    with pytest.raises(ValueError, match="is neither a model folder nor found on the Hub"):
        build_task_model(TASKS["retrieval"].model_class, ModelArguments(model_path=str(tmp_path)))
    arguments = ModelArguments(model_path=str(model_folder), image_size=32)
    model, processor = build_task_model(TASKS["question_answering"].model_class, arguments)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks weights of AlbefForImageTextRetrieval: albef.temperature"):
        # a model of question answering has no contrast
        build_task_model(TASKS["retrieval"].model_class, ModelArguments(model_path=str(tmp_path), image_size=32))
