"""Every family of image encoders in small: docs/backbones.md says what this run finds. Folders to start from."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
import transformers
from backbone_cases import (
    FAMILIES,
    IN_OTHER_WORDS,
    LARGER,
    PAGE,
    REFUSED,
    SIZE,
    TIMM,
    VIT,
    build,
    built,
    fields_of,
    is_installed,
    pictures,
    refused_row,
    shown,
    without_gradient,
)
from backbone_worker import TOGETHER
from helpers import run_two_ranks, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, TimmWrapperConfig, ViTConfig, ViTMAEConfig, ViTModel

from albef_hf import AlbefModel
from albef_hf.training.arguments import ModelArguments
from albef_hf.training.initialization import build_albef, build_vision_backbone, with_image_size
from albef_hf.training.vision_weights import fit_positions
from albef_hf.vision_backbone import VisionBackbone, resize_positions

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "fusion_layer": 1,
}


@pytest.fixture(autouse=True)
def quiet():
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("name", [*FAMILIES, *TIMM])
def test_a_family_does_what_its_row_says(name):
    if not is_installed(name):
        pytest.skip(f"the installed transformers or timm has no {name}")
    assert shown(name) in PAGE.read_text(encoding="utf-8").splitlines()
    for pooling, backbone in built(name).items():
        assert without_gradient(backbone) == [], pooling


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_serve_is_refused_with_the_reason_in_the_page(name):
    if not is_installed(name):
        pytest.skip(f"the installed transformers has no {name}")
    with pytest.raises(ValueError, match="cannot serve as image encoder") as error:
        build(name)
    assert REFUSED[name][1] in str(error.value)
    assert refused_row(name) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_has_no_other_rows():
    images = PAGE.read_text(encoding="utf-8").split("### transformers")[1]
    assert re.findall(r"^\| `([\w-]+)` \|", images, re.M) == [*FAMILIES, *TIMM, *REFUSED]
    assert set(IN_OTHER_WORDS) <= set(REFUSED)


def test_two_towers_or_words_are_no_image_encoder():
    for kind, reason in (("bert", "does not read pictures alone"), ("blip-2", "does not read pictures alone")):
        with pytest.raises(ValueError, match=f"a '{kind}' model cannot serve as image encoder: it {reason}"):
            VisionBackbone(AutoConfig.for_model(kind), "mean")


# -- what each computes -----------------------------------------------------------------------------------------------


def test_vit_mae_sees_every_patch_in_its_order():
    """With the weights of a ViTMAE a ViT computes the same, and it has no masking."""
    backbone = build("vit_mae").eval()
    fields = {**VIT, "image_size": SIZE, "layer_norm_eps": backbone.backbone.config.layer_norm_eps}
    plain = ViTModel(ViTConfig(**fields), add_pooling_layer=False).eval()
    plain.load_state_dict(backbone.backbone.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(backbone(pictures()).tokens, plain(pictures()).last_hidden_state)
        larger = plain(pictures(2, LARGER), interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(backbone(pictures(2, LARGER)).tokens, larger)


def test_building_leaves_the_given_configuration_alone():
    config = ViTMAEConfig(**VIT, image_size=SIZE)
    assert VisionBackbone(config, "mean").backbone.config.mask_ratio == 0 and config.mask_ratio == 0.75


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_tiny"])
def test_maps_of_timm_become_tokens_whatever_their_order(name):
    backbone = build(name).eval()
    with torch.no_grad():
        states = backbone.backbone.timm_model.forward_features(pictures())
        channels_last = name.startswith("swin")
        assert states.shape[3 if channels_last else 1] == backbone.width and backbone.channels_last == channels_last
        states = states if channels_last else states.permute(0, 2, 3, 1)
        output = backbone(pictures())
    torch.testing.assert_close(output.tokens, states.flatten(1, 2))
    torch.testing.assert_close(output.pooled, states.mean((1, 2)))


def test_a_square_map_as_wide_as_its_rows_is_read_by_what_grows():
    """8 channels, 8 rows and 8 columns: shapes for one picture cannot tell which is which."""
    config = AutoConfig.for_model("resnet", embedding_size=8, hidden_sizes=[7], depths=[1], layer_type="basic")
    backbone = VisionBackbone(config, "mean")
    assert not backbone.channels_last and backbone.width == 7
    assert backbone(torch.zeros(1, 3, 28, 28)).tokens.shape == (1, 49, 7)


def test_the_small_resnet_is_the_usual_one_behind_another_stem():
    """He et al. 2016, section 4.2: 3 x 3 at stride 1, no pooling. The rest computes what transformers' ResNet does."""
    fields = {"embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [2, 1, 1], "layer_type": "basic"}
    torch.manual_seed(0)
    small = AutoModel.from_config(AutoConfig.for_model("small_resnet", **fields)).eval()
    usual = AutoModel.from_config(AutoConfig.for_model("resnet", **fields)).eval()
    usual.encoder.load_state_dict(small.encoder.state_dict())
    stem = small.embedder.embedder
    assert (stem.convolution.kernel_size, stem.convolution.stride, stem.convolution.padding) == (
        (3, 3),
        (1, 1),
        (1, 1),
    )
    with torch.no_grad():
        images = pictures(2, 32)
        seen = torch.relu(stem.normalization(stem.convolution(images)))
        assert seen.shape == (2, 8, 32, 32)
        expected = usual.encoder(seen).last_hidden_state
        torch.testing.assert_close(small(images).last_hidden_state, expected)
    assert expected.shape == (2, 32, 8, 8)
    spread = float(stem.convolution.weight.std())
    assert spread == pytest.approx((2 / (8 * 9)) ** 0.5, rel=0.2)  # as in torchvision, by the fan out


def test_pooler_and_mean_are_different_vectors():
    backbone = build("clip_vision_model", "pooler").eval()
    with torch.no_grad():
        expected = backbone.backbone(pictures()).pooler_output
        torch.testing.assert_close(backbone(pictures()).pooled, expected)
    assert backbone.unused == ()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_backbone_built_without_gradients_is_the_same(context):
    with context():
        backbone = build("clip_vision_model")
    assert backbone.unused == ("post_layernorm.weight", "post_layernorm.bias")
    assert backbone.backbone.training == build("clip_vision_model").backbone.training


def test_a_picture_of_another_size_is_refused_where_it_would_not_fit():
    backbone = build("pvt")
    with pytest.raises(
        ValueError, match="a 'pvt' model as it is built takes pictures of 64 x 64 pixels only, not of 96"
    ):
        backbone(pictures(1, 96))
    with pytest.raises(ValueError, match="timm's vit_base_patch16_clip_224 as it is built takes .* 64 x 64"):
        build("vit_base_patch16_clip_224")(torch.zeros(1, 3, 64, 80))


def test_frozen_weights_stay_frozen_in_a_loaded_model(tmp_path):
    vision = {"model_type": "convnext", **FAMILIES["convnext"]}
    model = tiny_model(vision_config=vision, vision_pooling="mean")
    model.save_pretrained(tmp_path)
    for each in (model, type(model).from_pretrained(tmp_path), AlbefModel.from_pretrained(tmp_path)):
        towers = getattr(each, "albef", each)
        frozen = [name for name, p in towers.vision_model.named_parameters() if not p.requires_grad]
        assert frozen == ["backbone.layernorm.weight", "backbone.layernorm.bias"]
    config = tiny_config(vision_config={"model_type": "vit_mae", **VIT, "image_size": SIZE})
    AlbefModel(config).save_pretrained(tmp_path / "mae")
    loaded = AlbefModel.from_pretrained(tmp_path / "mae").vision_model
    assert not loaded.backbone.embeddings.position_embeddings.requires_grad


# -- two processes ----------------------------------------------------------------------------------------------------


def test_two_processes_do_not_wait_for_each_other(tmp_path):
    own, other = run_two_ranks(Path(__file__).parent / "backbone_worker.py", tmp_path)
    assert own.keys() == other.keys() and {name.split()[0] for name in own} == set(TOGETHER)
    assert all(torch.equal(own[name], other[name]) for name in own)


# -- folders to start from --------------------------------------------------------------------------------------------

TOWER = {**VIT, "image_size": SIZE, "projection_dim": 8}
WORDS = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
TWO_TOWERS = {
    "clip": ({"vision_config": TOWER, "text_config": WORDS}, "vision_model"),
    "siglip": ({"vision_config": TOWER, "text_config": WORDS}, "vision_model"),
    "chinese_clip": ({"vision_config": TOWER, "text_config": WORDS}, "vision_model"),
    "aimv2": ({"vision_config": TOWER, "text_config": WORDS}, "vision_model"),
}


def started(folder, **changes) -> VisionBackbone:
    options = {"vision_model": str(folder), "vision_pooling": "mean", "image_size": SIZE, **changes}
    return build_vision_backbone(ModelArguments(**options))


@pytest.mark.parametrize("kind", TWO_TOWERS)
def test_a_folder_for_images_and_texts_gives_its_image_encoder(kind, tmp_path):
    fields, part = TWO_TOWERS[kind]
    torch.manual_seed(0)
    whole = AutoModel.from_config(AutoConfig.for_model(kind, **fields)).eval()
    whole.save_pretrained(tmp_path)
    backbone = started(tmp_path).eval()
    with torch.no_grad():
        expected = getattr(whole, part)(pictures()).last_hidden_state
        torch.testing.assert_close(backbone(pictures()).tokens, expected)
        if kind == "aimv2":
            return
        larger = getattr(whole, part)(pictures(1, LARGER), interpolate_pos_encoding=True).last_hidden_state
        for other in (backbone, started(tmp_path, image_size=LARGER).eval()):
            torch.testing.assert_close(other(pictures(1, LARGER)).tokens, larger, atol=1e-5, rtol=1e-4)


def test_a_folder_of_words_or_of_nothing_is_named(tmp_path):
    with pytest.raises(ValueError, match="vision_model .*nothing.* is neither a model folder nor found"):
        started(tmp_path / "nothing")
    AutoModel.from_config(AutoConfig.for_model("bert", **WORDS)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a 'bert' model cannot serve as image encoder: it does not read pictures"):
        started(tmp_path)


def without(folder, part: str) -> None:
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if part not in k}, path, metadata={"format": "pt"})


def test_weights_that_a_folder_lacks_are_not_drawn_in_silence(tmp_path):
    build("vit", "pooler").backbone.save_pretrained(tmp_path)
    started(tmp_path, vision_pooling="pooler")
    without(tmp_path, "pooler")
    started(tmp_path, vision_pooling="cls")
    with pytest.raises(ValueError, match="do not fit: missing .*pooler.dense"):
        started(tmp_path, vision_pooling="pooler")
    names = sorted(load_file(tmp_path / "model.safetensors"))
    layer = next(name for name in names if ".1." in name and name.endswith("weight"))
    without(tmp_path, layer)
    with pytest.raises(ValueError, match=r"do not fit: missing \['layers?.1"):
        started(tmp_path)
    options = {"vision_model": str(tmp_path), "image_size": SIZE, "text_config": TEXT, "allow_missing_weights": True}
    model, _ = build_albef(ModelArguments(queue_size=4, projection_dim=8, **options))
    assert re.search(r"image encoder from .*: new, random: [^,;]*layers?.1[^,;]*;", model.loading_report)
    without(tmp_path, "bias")
    model, _ = build_albef(ModelArguments(queue_size=4, projection_dim=8, **options))
    listed = model.loading_report.split("new, random: ")[1].split(";")[0]
    missing = 1 + sum(name.endswith("bias") for name in model.albef.vision_model.backbone.state_dict())
    assert listed.count(", ") == 4 and listed.endswith(f" and {missing - 5} more")


def test_half_precision_is_a_way_to_store(tmp_path):
    backbone = build("vit")
    backbone.backbone.half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    loaded = started(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded(pictures()).tokens.dtype == torch.float32


def test_other_shapes_are_named_with_both(tmp_path):
    build("sam_vision_model").backbone.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"other shapes: .*layers.*rel_pos.*: \(7, 12\), here \(11, 12\).*image_size"):
        started(tmp_path, image_size=LARGER)


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"model_type": "beit", **VIT}, LARGER),
        ({"model_type": "internvl_vision", **FAMILIES["internvl_vision"]}, [LARGER, LARGER]),
        ({"model_type": "swin", "image_size": 32}, LARGER),
        ({"model_type": "resnet"}, None),
    ],
)
def test_the_size_of_pictures_reaches_every_configuration_that_has_one(fields, size):
    from albef_hf.training.vision_weights import vision_fields

    found, weights = vision_fields(ModelArguments(vision_config=fields, image_size=LARGER))
    assert found.get("image_size") == size and weights is None


@pytest.mark.parametrize(
    ("architecture", "given", "expected"),
    [
        ("vit_base_patch16_clip_224", {}, {"img_size": 96}),
        ("vit_base_patch16_clip_224", {"img_size": 64}, {"img_size": 96}),
        ("vit_base_patch16_clip_224", {"dynamic_img_size": True}, {"dynamic_img_size": True}),
        ("resnet18", {}, {}),
        ("no such architecture", {}, {}),
    ],
)
def test_the_size_of_pictures_reaches_timm(architecture, given, expected):
    from albef_hf.training.vision_weights import vision_fields

    fields = {"model_type": "timm_wrapper", "architecture": architecture, "model_args": given}
    found, _ = vision_fields(ModelArguments(vision_config=fields, image_size=96))
    assert found["model_args"] == expected and fields["model_args"] == given


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
def test_timms_models_start_with_timms_weights(name):
    """Published recipes count on them; the wrapper of transformers draws others."""
    config = TimmWrapperConfig(architecture=name)
    torch.manual_seed(3)
    AutoModel.from_config(config)  # what the backbone drew before
    expected = timm.create_model(name, num_classes=0).state_dict()
    torch.manual_seed(3)
    found = VisionBackbone(config, "mean").backbone.timm_model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(("options", "expected"), [({}, 0), ({"zero_init_last": False}, 1)])
def test_residual_norms_start_as_the_configuration_says(options, expected):
    config = TimmWrapperConfig(architecture="resnet10t", model_args=options)
    state = VisionBackbone(config, "mean").backbone.timm_model.state_dict()
    assert all((state[f"layer{stage}.0.bn2.weight"] == expected).all() for stage in (1, 2, 3, 4))
    model = tiny_model(vision_config=config.to_dict(), vision_pooling="mean")
    for towers in (model.albef, model.momentum_copy):
        norm = towers.vision_model.backbone.timm_model.layer1[0].bn2.weight
        assert (norm == expected).all()


def test_at_its_own_size_timm_needs_no_argument():
    from albef_hf.training.vision_weights import set_image_size

    fields = {"model_type": "timm_wrapper", "architecture": "vit_base_patch16_clip_224"}
    set_image_size(fields, 224)
    assert not fields.get("model_args")
    assert VisionBackbone(TimmWrapperConfig(**{**fields, "model_args": {"depth": 1}}), "cls").size == (224, 224)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_a_position_table_is_resized_with_any_prefix(prefix):
    table = torch.randn(1, prefix + 49, 4)
    resized = resize_positions(table, prefix + 16)
    assert torch.equal(resized[:, :prefix], table[:, :prefix])
    grid = table[:, prefix:].reshape(1, 7, 7, 4).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized[:, prefix:], expected.permute(0, 2, 3, 1).flatten(1, 2))


def test_a_table_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="a table of 12 positions cannot be resized to 48: no square grids"):
        resize_positions(torch.zeros(1, 12, 4), 48)
    with pytest.raises(ValueError, match="cannot be resized to 1"):
        resize_positions(torch.zeros(1, 5, 4), 1)


def test_only_position_tables_are_resized():
    square = torch.Size((17, 4))
    assert fit_positions("embeddings.position_embedding.weight", torch.zeros(5, 4), square).shape == (17, 4)
    for name, shape in (
        ("layer.weight", (5, 4)),
        ("pos_embed", (5, 6)),
        ("pos_embed", (17, 4)),
        ("pos_embed", (1, 5, 4)),
    ):
        table = torch.zeros(shape)
        assert fit_positions(name, table, square) is table


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224", "pvt", "internvl_vision"])
def test_a_model_is_resized_with_its_copies(name):
    fields = {**fields_of(name), "image_size": [SIZE, SIZE] if name == "internvl_vision" else SIZE}
    if name in TIMM:
        fields["model_args"]["img_size"] = SIZE
    model = tiny_model(vision_config=fields, vision_pooling="mean").eval()
    assert with_image_size(model, SIZE) is model
    resized = with_image_size(model, LARGER).eval()
    assert "position tables resized to pictures of 96 pixels" in resized.loading_report
    assert torch.isfinite(resized.albef.vision_model(pictures(1, LARGER)).pooled).all()
    state, old = resized.state_dict(), model.state_dict()
    tables = [name for name in state if state[name].shape != old[name].shape]
    assert len(tables) >= 2 and all(torch.isfinite(state[name]).all() for name in tables)
    assert all(torch.equal(state[name], old[name]) for name in state if name not in tables)


def test_a_model_that_cannot_be_resized_says_so():
    fields = {**fields_of("sam_vision_model"), "image_size": SIZE}
    model = tiny_model(vision_config=fields, vision_pooling="mean")
    with pytest.raises(ValueError, match="of a 'sam_vision_model' backbone cannot be resized to image_size 96: it is"):
        with_image_size(model, LARGER)
