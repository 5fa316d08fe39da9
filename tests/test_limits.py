"""Settings that make no sense are refused before anything starts: files, numbers, names, and what has no effect."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny_model

from albef_hf import AlbefModel
from albef_hf.data.augmentation import build_augmentation
from albef_hf.data.sources import load_corpus
from albef_hf.training.arguments import GROUPS, ModelArguments, parse_arguments, resolved
from albef_hf.training.initialization import build_albef, build_task_model, build_vision_backbone
from albef_hf.training.limits import LIMITS, check_limits, read_settings
from albef_hf.training.task_arguments import TASK_GROUPS
from ssl_methods.augment import view_recipes
from ssl_methods.run import build_method

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "run.yaml is empty, not settings: write a line `key: value`"),
        (b"# nothing\n", "run.yaml is empty"),
        (b"- a\n- b\n", "run.yaml holds a list, not settings"),
        (b"epochs\n", "run.yaml holds a str, not settings"),
        (b"epochs: [1\n", "run.yaml cannot be read as YAML: .*line 1"),
        ("# caf\u00e9".encode("latin-1"), "run.yaml is not UTF-8 text .byte 5.: save it as UTF-8"),
        (b"epochs: 1\nseed: 2\nepochs: 3\n", "run.yaml cannot be read as YAML: line 3: 'epochs' stands there twice"),
        (b"dataset_options:\n  designs: [google]\n  designs: [apple]\n", "line 3: 'designs' stands there twice"),
        (b"!!python/object/apply:os.system ['true']\n", "run.yaml cannot be read as YAML"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path, content, message):
    (tmp_path / "run.yaml").write_bytes(content)
    for read in (read_settings, lambda path: parse_arguments([str(path)])):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "run.yaml")


def test_equal_keys_in_different_places_and_merged_ones_are_fine(tmp_path):
    (tmp_path / "run.yaml").write_text("a: &one {x: 1, y: 2}\nb: {x: 3, <<: *one}\n")
    assert read_settings(tmp_path / "run.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


def test_a_number_with_an_exponent_is_a_number_wherever_it_stands(tmp_path):
    """YAML 1.2 reads 1e-6 as a number, PyYAML as text."""
    (tmp_path / "run.yaml").write_text(
        "vision_config: {eps: 1e-6, more: [-2E+3, .5e1]}\nlearning_rate: 1e-3\nsplit: 1e\n"
    )
    model, data, arguments = parse_arguments([str(tmp_path / "run.yaml"), "--method_options={temperature: 1e-1}"])
    assert model.vision_config == {"eps": 1e-6, "more": [-2000.0, 5.0]} and model.method_options == {
        "temperature": 0.1
    }
    assert (arguments.learning_rate, data.split) == (1e-3, "1e")
    (tmp_path / "run.yaml").write_text("dataset_options: {name: '1e5'}\n")
    groups = parse_arguments([str(tmp_path / "run.yaml"), "--dataset=2e5"])
    (tmp_path / "again.yaml").write_text(resolved(*groups))
    assert parse_arguments([str(tmp_path / "again.yaml")]) == groups


def test_fields_of_the_wrong_type_are_named():
    with pytest.raises(ValueError, match="vision_config: .*'layer_norm_eps'.* expected float, got str .value: 'low'"):
        build_vision_backbone(ModelArguments(vision_config={"model_type": "vit", "layer_norm_eps": "low"}))
    with pytest.raises(ValueError, match="text_config: .*'layer_norm_eps'.* expected float, got str .value: 'low'"):
        build_albef(ModelArguments(text_config={"layer_norm_eps": "low"}, tokenizer="wordpiece"))
    with pytest.raises(
        ValueError, match="method_options: temperature must be a number, as 0.2 is by default, not 'x'"
    ):
        build_method(ModelArguments(method="moco_v2", method_options={"temperature": "x"}))


def test_every_limit_is_of_a_setting_and_every_default_keeps_it():
    names = {name for group in (*GROUPS, *TASK_GROUPS) for name in group.__dataclass_fields__}
    assert set(LIMITS) <= names
    for group in {*GROUPS, *TASK_GROUPS}:
        for name, value in vars(group()).items():
            check_limits(name, value)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("batch_size", "0", "batch_size must be 1 or more, not 0"),
        ("epochs", "-1", "epochs must be 0 or more"),
        ("learning_rate", ".nan", "learning_rate must be a finite number, not nan"),
        ("weight_decay", ".inf", "weight_decay must be a finite number, not inf"),
        ("momentum", "1.01", "momentum must be within 0 .. 1, not 1.01"),
        ("mlm_probability", "-0.1", "mlm_probability must be within 0 .. 1"),
        ("workers", "-1", "workers must be 0 or more"),
        ("image_std", "[1, .inf, 1]", "image_std must be a finite number, not inf"),
        ("log_every", "0", "log_every must be 1 or more"),
    ],
)
def test_a_number_beyond_its_limits_is_refused(flag, value, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([f"--{flag}={value}"])


@pytest.mark.parametrize("value", [0, 1])
def test_limits_themselves_are_allowed(value):
    assert parse_arguments([f"--momentum={value}", f"--alpha={value}", "--batch_size=1", "--workers=0"])


# -- names ------------------------------------------------------------------------------------------------------------

SMALL = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "vit", "hidden_sze": 24},
            "a 'vit' model has no field 'hidden_sze'; did you mean 'hidden_size'",
        ),
        ({**SMALL, "dephts": [2]}, "a 'resnet' model has no field 'dephts'; did you mean 'depths'"),
        (
            {"model_type": "timm_wrapper", "architecture": "resnet10t", "model_agrs": {}},
            "no field 'model_agrs'; did you mean 'model_args'",
        ),
        (
            {"model_type": "timm_wrapper", "architecture": "resnet10t", "model_args": {"zero_init_lst": False}},
            "a 'timm_wrapper' model cannot be built of these fields: .*zero_init_lst",
        ),
    ],
)
def test_a_field_that_no_image_encoder_has_is_refused(fields, message):
    """transformers takes any name of a field, and changes nothing."""
    with pytest.raises(ValueError, match=message):
        build_vision_backbone(ModelArguments(vision_config=fields, image_size=32, vision_pooling="mean"))


def test_other_names_of_fields_are_known():
    fields = {"model_type": "clip_vision_model", "num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2}
    arguments = ModelArguments(vision_config={**fields, "intermediate_size": 24, "patch_size": 16}, image_size=32)
    assert build_vision_backbone(arguments).width == 24


def test_an_option_that_a_built_in_data_set_does_not_have_is_refused():
    with pytest.raises(ValueError, match="dataset_options of digits: unknown key 'placement'; did you mean"):
        load_corpus("digits", options={"placement": 1}, caption_column=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blur": 1.5}, "blur is a probability within 0 .. 1, not 1.5"),
        ({"gray": [0.1, -0.1]}, "gray is a probability"),
        ({"flip": "often"}, "flip is a probability"),
        ({"scale": [1.0, 0.2]}, "scale must be two numbers above 0 and up to 1, the smaller first, not .1.0, 0.2."),
        ({"scale": [0.2, 1.1]}, "scale must be two numbers"),
        ({"scale": 0.2}, "scale must be two numbers"),
        ({"blur_sigma": [2.0, 0.1]}, "blur_sigma must be two numbers above 0, the smaller first"),
        ({"jitter": [0.4, 0.4, 0.4]}, "jitter must be four numbers"),
        ({"jitter": [0.4, 0.4, 0.4, 0.6]}, "jitter must be four numbers"),
        ({"interpolation": "cubic"}, "interpolation is bilinear or bicubic, not 'cubic'"),
    ],
)
def test_views_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        view_recipes("moco_v2", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 2}, "flip is a probability within 0 .. 1, not 2"),
        ({"scale": [0.5, 0.1]}, "scale must be two numbers above 0 and up to 1"),
        ({"scale": [0, 1]}, "scale must be two numbers above 0"),
    ],
)
def test_crops_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_augmentation("albef", 32, (0.5,) * 3, (0.5,) * 3, **options)
    build_augmentation("albef", 32, (0.5,) * 3, (0.5,) * 3, scale=None, flip=1)


# -- what would have no effect ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vision_model", "vision_config", "text_model", "text_config", "tokenizer"])
def test_encoders_beside_a_model_to_start_from_are_refused(name, model_folder):
    value = {"hidden_size": 8} if name.endswith("config") else "some/name"
    arguments = ModelArguments(model_path=str(model_folder), image_size=32, **{name: value})
    with pytest.raises(ValueError, match=f"{name} would have no effect: .* has encoders and a tokenizer of its own"):
        build_albef(arguments)
    with pytest.raises(ValueError, match=f"{name} would have no effect"):
        build_task_model(AlbefModel, arguments)


@pytest.mark.parametrize("name", ["model_path", "text_model", "text_config", "tokenizer"])
def test_an_image_only_method_refuses_what_is_albefs(name):
    value = {"hidden_size": 8} if name.endswith("config") else "some/name"
    arguments = ModelArguments(method="byol", vision_config=SMALL, vision_pooling="mean", **{name: value})
    with pytest.raises(ValueError, match=f"{name}: byol trains an image encoder alone; it starts from vision_model"):
        build_method(arguments)


def test_files_that_are_unpickled_cannot_be_asked_for(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only safetensors are read, .* leave use_safetensors out"):
        AlbefModel.from_pretrained(tmp_path, use_safetensors=False)
    assert AlbefModel.from_pretrained(tmp_path, use_safetensors=True) is not None


# -- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "own"), [("evaluate", ("--model", "--protocol")), ("evaluate_features", ("--model", "--probes"))]
)
def test_help_shows_the_flags_of_the_script_and_of_the_configuration(script, own):
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert all(f"  {flag} " in shown.stdout for flag in (*own, "--batch_size", "--image_size"))
    assert f"python scripts/{script}.py" in shown.stdout or f"scripts/{script}.py configs" in shown.stdout
