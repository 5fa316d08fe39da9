"""Published image-only weights become folders that compute the same."""

import collections
import os
import pickle
import re
import sys
import types

import numpy as np
import pytest
import timm
import torch
from helpers import FIXTURES
from transformers import AutoModel

from ssl_methods.convert import load_image_checkpoint, save_image_folder, sniff_method
from ssl_methods.haiku_pickle import read_haiku_pickle

VIT = {"depth": 2, "img_size": 32, "num_classes": 0}


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def published(name: str, **options) -> torch.nn.Module:
    """A timm model with random weights and statistics, so that a missing one is noticed."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    return published("resnet18", num_classes=0)


@torch.no_grad()
def same(folder, model: torch.nn.Module, size: int) -> bool:
    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = model.forward_features(pictures)
    found = AutoModel.from_pretrained(folder).eval()(pictures).last_hidden_state
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


HEAD = {"0.weight": torch.ones(2, 3), "2.bias": torch.ones(2)}


def moco(state: dict) -> dict:
    queue = {"queue": torch.ones(2, 4), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    online = prefixed({**state, **prefixed(HEAD, "fc.")}, "encoder_q.")
    copies = prefixed({k: v + 1 for k, v in state.items()}, "encoder_k.")
    content = {"epoch": 200, "arch": "resnet50", "optimizer": {"state": {}, "param_groups": []}}
    return {**content, "state_dict": prefixed({**online, **copies, **queue}, "module.")}


def moco_v3(state: dict) -> dict:
    online = prefixed({**state, **prefixed(HEAD, "fc."), **prefixed(HEAD, "head.")}, "base_encoder.")
    copies = prefixed({k: v + 1 for k, v in state.items()}, "momentum_encoder.")
    return {"state_dict": prefixed({**online, **copies, **prefixed(HEAD, "predictor.")}, "module.")}


def barlow_twins(state: dict) -> dict:
    parts = {**prefixed(state, "backbone."), **prefixed(HEAD, "projector."), "bn.running_mean": torch.ones(2)}
    return {"epoch": 1000, "model": prefixed(parts, "module."), "optimizer": {}}


@pytest.mark.parametrize(
    ("name", "content", "method", "dropped"),
    [
        ("moco.pth.tar", moco, "moco", 120 + 2 + 2),
        ("r-50.pth.tar", moco_v3, "moco_v3", 120 + 2 + 2 + 2),
        ("checkpoint.pth", barlow_twins, "barlow_twins", 3),
        ("resnet50.pth", dict, "plain", 0),
    ],
)
def test_resnets(name, content, method, dropped, resnet, tmp_path):
    torch.save(content(resnet.state_dict()), tmp_path / name)
    model, report = load_image_checkpoint(tmp_path / name)
    assert report.task == method and len(report.matched) == 120 and len(report.dropped) == dropped
    save_image_folder(model, tmp_path / "folder")
    assert same(tmp_path / "folder", resnet, 64)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter.*is a no-op")  # the values do not matter here
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_the_architecture_is_read_from_the_names(depth, tmp_path):
    with torch.device("meta"):
        state = timm.create_model(f"resnet{depth}", num_classes=0).state_dict()
    # All values of a tensor are one number, which keeps the file small.
    flat = {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}
    torch.save(flat, tmp_path / "resnet.pth")
    with torch.device("meta"):
        model, report = load_image_checkpoint(tmp_path / "resnet.pth")
    assert model.config.architecture == f"resnet{depth}" and len(report.matched) == len(state)


def test_moco_v3s_small_vit_has_twelve_heads(tmp_path):
    vit = published("vit_small_patch16_224", num_heads=12, **VIT)
    torch.save(moco_v3(vit.state_dict()), tmp_path / "vit-s-300ep.pth.tar")
    model, report = load_image_checkpoint(tmp_path / "vit-s-300ep.pth.tar")
    save_image_folder(model, tmp_path / "folder")
    assert len(report.matched) == len(vit.state_dict()) and same(tmp_path / "folder", vit, 32)
    six = timm.create_model("vit_small_patch16_224", num_heads=6, **VIT).eval()
    six.load_state_dict(vit.state_dict())
    assert not same(tmp_path / "folder", six, 32)


def test_deits_vit_becomes_transformers_own(tmp_path):
    vit = published("vit_tiny_patch16_224", num_heads=3, **{**VIT, "num_classes": 5})
    torch.save({"model": vit.state_dict()}, tmp_path / "deit.pth")
    model, report = load_image_checkpoint(tmp_path / "deit.pth")
    assert type(model).__name__ == "ViTModel" and set(report.dropped) == {"head.weight", "head.bias"}
    save_image_folder(model, tmp_path / "folder")
    assert same(tmp_path / "folder", vit, 32)
    other, _ = load_image_checkpoint(tmp_path / "deit.pth", heads=6)
    assert other.config.num_attention_heads == 6

    larger, report = load_image_checkpoint(tmp_path / "deit.pth", image_size=64)
    assert list(report.changed) == ["embeddings.position_embeddings"]
    table = vit.pos_embed.detach()
    grid = table[0, 1:].reshape(2, 2, -1).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
    found = larger.state_dict()["embeddings.position_embeddings"]
    torch.testing.assert_close(found[0, 1:], expected[0].permute(1, 2, 0).flatten(0, 1))


def test_what_belongs_to_no_known_model_is_named(resnet, tmp_path):
    path = tmp_path / "other.pth.tar"
    cases = [
        ({**resnet.state_dict(), "layer9.weight": torch.ones(1)}, r"other\.pth\.tar does not fit.*layer9"),
        (
            {k: v for k, v in resnet.state_dict().items() if k != "layer4.1.bn2.bias"},
            r"MISSING: 1: .*layer4\.1\.bn2\.bias",
        ),
        ({**resnet.state_dict(), "bn1.bias": torch.ones(3)}, r"bn1\.bias: \(3,\) in the file, \(64,\)"),
        ({"encoder_q.conv1.weight": torch.ones(1), "surprise": torch.ones(1)}, r"outside the moco layout.*surprise"),
        ({"conv1.weight": torch.ones(128, 3, 7, 7)}, r"no ResNet that timm knows.*128 channels"),
    ]
    for state, message in cases:
        torch.save(state, path)
        with pytest.raises(ValueError, match=f"(?s){message}"):
            load_image_checkpoint(path)
    with pytest.raises(ValueError, match="neither MoCo, Barlow Twins nor"):
        sniff_method({"weight": torch.ones(1)})


def test_sizes_that_cannot_be_read_and_flags_that_do_not_apply_are_named(resnet, tmp_path):
    path = tmp_path / "file.pth"
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0).state_dict()

    def refused(state, message, **options):
        torch.save(state, path)
        with pytest.raises(ValueError, match=message):
            load_image_checkpoint(path, **options)

    for lost in ("pos_embed", "blocks.0.mlp.fc1.weight"):
        refused({k: v for k, v in vit.items() if k != lost}, f"lacks '{lost}'")
    refused({k: v for k, v in vit.items() if "blocks" not in k}, "lacks 'blocks.0.mlp.fc1.weight'")
    refused({**vit, "cls_token": vit["cls_token"] * torch.nan}, "NaN or infinite.*: cls_token")
    for heads in (0, -1, 7):
        refused(vit, f"{heads} heads do not share a width of 192", heads=heads)
    for size in (0, -16, 40):
        refused(vit, f"image_size {size} is no multiple of the patch size, 16", image_size=size)
    for state in (resnet.state_dict(), prefixed(vit, "base_encoder.")):
        refused(state, "leave out heads and image_size", image_size=64)
        refused(state, "leave out heads and image_size", heads=3)


# -- BYOL -------------------------------------------------------------------------------------------------------------


def haiku(resnet: torch.nn.Module) -> tuple[dict, dict]:
    """Parameters and state of a ResNet under Haiku's names, which were taken down from Haiku itself."""
    params, state = {}, {}
    for name, tensor in resnet.state_dict().items():
        array = tensor.numpy()
        module, _, kind = name.rpartition(".")
        module = re.sub(r"layer(\d)\.(\d)\.", lambda m: f"block_group_{int(m[1]) - 1}/~/block_{m[2]}/~/", module)
        module = re.sub(r"(?<=/)conv(\d)", lambda m: f"conv_{int(m[1]) - 1}", module)
        module = re.sub(r"(?<=/)bn(\d)", lambda m: f"batchnorm_{int(m[1]) - 1}", module)
        module = module.replace("downsample.0", "shortcut_conv").replace("downsample.1", "shortcut_batchnorm")
        module = {"conv1": "initial_conv", "bn1": "initial_batchnorm"}.get(module, module)
        module = f"res_net18/~/{module}"
        if array.ndim == 4:
            params[module] = {"w": array.transpose(2, 3, 1, 0)}
        elif kind in ("weight", "bias"):
            key = {"weight": "scale", "bias": "offset"}[kind]
            params.setdefault(module, {})[key] = array.reshape(1, 1, 1, -1)
        elif kind.startswith("running"):
            average = array.reshape(1, 1, 1, -1)
            ema = f"{module}/~/{kind.removeprefix('running_')}_ema"
            state[ema] = {"average": average, "hidden": average * 0.9, "counter": np.int32(3)}
    params["projector/linear"] = {"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}
    return params, state


@pytest.fixture
def deepminds_modules(monkeypatch):
    """Classes under the names that the published pickle refers to."""
    for name in ("haiku", "haiku._src", "haiku._src.data_structures", "byol", "byol.byol_experiment"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    fields = ("online_params", "target_params", "online_state", "target_state", "opt_state")
    state = collections.namedtuple("_ByolExperimentState", fields, module="byol.byol_experiment")
    sys.modules["byol.byol_experiment"]._ByolExperimentState = state

    class FlatMapping:
        __module__, __qualname__ = "haiku._src.data_structures", "FlatMapping"

        def __init__(self, content):
            self.content = content

        def __reduce__(self):
            return FlatMapping, (self.content,)

    sys.modules["haiku._src.data_structures"].FlatMapping = FlatMapping
    return state, FlatMapping


def test_byol_is_read_without_running_it(resnet, deepminds_modules, tmp_path):
    experiment_state, mapping = deepminds_modules
    params, state = haiku(resnet)
    target = {name: {key: value + 1 for key, value in part.items()} for name, part in params.items()}
    tree = experiment_state(mapping(params), mapping(target), mapping(state), mapping(state), ())
    content = {"experiment_state": tree, "step": 7, "rng": np.arange(2, dtype=np.uint32)}
    path = tmp_path / "pretrain_res18x1.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    for name in ("haiku._src.data_structures", "byol.byol_experiment"):
        sys.modules[name].__dict__.clear()  # reading needs neither of them

    model, report = load_image_checkpoint(path)
    assert len(report.matched) == 120 - 20 and "opt_state" in report.dropped and "target_params" in report.dropped
    save_image_folder(model, tmp_path / "folder")
    assert same(tmp_path / "folder", resnet, 64)

    path.write_bytes(pickle.dumps({**content, "experiment_state": {"online_params": {"other/~/layer": {"w": 1}}}}))
    with pytest.raises(ValueError, match="no online_params|online_params"):
        load_image_checkpoint(path)


def test_a_file_that_haiku_dill_and_jax_wrote():
    """The fixture: Haiku 0.0.17's mappings of JAX's arrays, in named tuples, by dill with protocol 2 as DeepMind's."""
    content = read_haiku_pickle(FIXTURES / "haiku_byol.pkl")
    state = content["experiment_state"]
    assert content["step"] == 7 and content["rng"].tolist() == [0, 3]
    assert sorted(state["online_params"]) == [
        "projector/linear",
        "res_net50/~/initial_batchnorm",
        "res_net50/~/initial_conv",
    ]
    weight = state["online_params"]["res_net50/~/initial_conv"]["w"]
    assert weight.dtype == np.float32 and weight.tolist() == [[[[1, 2], [3, 4], [5, 6]]]]
    statistics = state["online_state"]["res_net50/~/initial_batchnorm/~/mean_ema"]
    assert statistics["average"].tolist() == [[[[2, 4]]]] and statistics["counter"] == 3


class Hostile:
    def __init__(self, marker, call=os.mkdir):
        self.marker, self.call = marker, call

    def __reduce__(self):
        return self.call, (str(self.marker),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"experiment_state": None}, "not a BYOL checkpoint: it has experiment_state"),
        ({"experiment_state": {"online_params": {}, "online_state": {}}}, "holds no weights"),
    ],
)
def test_a_byol_file_without_weights_is_named(content, message, tmp_path):
    (tmp_path / "byol.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_image_checkpoint(tmp_path / "byol.pkl")


def test_a_hostile_pickle_does_nothing(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "hostile.pkl"
    objects = np.empty(1, dtype=object)
    objects[0] = "text"
    for content in (Hostile(marker), {"rng": Hostile(marker)}, Hostile(f"open({str(marker)!r}, 'w')", eval)):
        for protocol in (0, 2, 4, 5):
            path.write_bytes(pickle.dumps(content, protocol=protocol))
            with pytest.raises(
                ValueError, match=r"hostile\.pkl was not read: .*it asks for (posix|nt|builtins|__builtin__)\."
            ):
                load_image_checkpoint(path)
            assert not marker.exists()
    for content in (objects, np.zeros(1, dtype="U3"), [1, 2], print):
        path.write_bytes(pickle.dumps({"rng": content} if isinstance(content, np.ndarray) else content, protocol=2))
        with pytest.raises(ValueError, match=r"hostile\.pkl was not read"):
            load_image_checkpoint(path)
    whole = (FIXTURES / "haiku_byol.pkl").read_bytes()
    for part in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        with pytest.raises(ValueError, match=r"hostile\.pkl was not read"):
            load_image_checkpoint(path)
    torch.save({"state_dict": Hostile(marker)}, tmp_path / "hostile.pth.tar")
    with pytest.raises(ValueError, match=r"hostile\.pth\.tar was not read"):
        load_image_checkpoint(tmp_path / "hostile.pth.tar")
    assert not marker.exists()
