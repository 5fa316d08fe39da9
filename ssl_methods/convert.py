"""Published image-only weights -> folders that `AutoModel` loads: MoCo v1 to v3, Barlow Twins, BYOL, and DeiT's ViT.

Only the encoder is kept, the one that the publications evaluate: the query encoder (MoCo v1, v2), the base encoder
(MoCo v3) or the online encoder (BYOL). Projectors, predictors, momentum encoders and queues are left out and reported.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    ViTConfig,
    ViTModel,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from albef_hf.convert.files import check_image_size, find_state, read_file, shape_of
from albef_hf.convert.state import KeyReport, convert_image_encoder
from albef_hf.vision_backbone import resize_positions

from .haiku_pickle import read_haiku_pickle
from .pictures import image_processor

_RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
    ("bottleneck", (3, 24, 36, 3)): "resnet200",
}
_VITS = {384: "small", 768: "base", 1024: "large"}


@dataclass(frozen=True)
class Layout:
    """How a publication names the weights that it saves.

    Args:
        encoder: prefix of the encoder that is kept.
        dropped: prefix of weights that are left out -> why. It includes the encoder's prefix for parts of the encoder.
    """

    encoder: str
    dropped: Mapping[str, str]


_PROJECTOR = "the projector is for training only"
LAYOUTS = {
    "moco": Layout(
        "encoder_q.",
        {"encoder_q.fc.": _PROJECTOR, "encoder_k.": "the momentum encoder", "queue": "the queue of keys"},
    ),
    "moco_v3": Layout(
        "base_encoder.",
        {
            "base_encoder.fc.": _PROJECTOR,
            "base_encoder.head.": _PROJECTOR,
            "momentum_encoder.": "the momentum encoder",
            "predictor.": "the predictor is for training only",
        },
    ),
    "barlow_twins": Layout(
        "backbone.", {"projector.": _PROJECTOR, "bn.": "the normalization of the projections is for training only"}
    ),
    "plain": Layout("", {"fc.": "the classifier", "head.": "the classifier"}),
}


def sniff_method(state: Mapping[str, torch.Tensor]) -> str:
    """The publication whose layout this is, one of `LAYOUTS`, recognized from the names.

    Raises:
        ValueError: it is none of them.
    """
    for method, layout in LAYOUTS.items():
        if layout.encoder and any(name.startswith(layout.encoder) for name in state):
            return method
    if "conv1.weight" in state or "patch_embed.proj.weight" in state:
        return "plain"
    shown = ", ".join(list(state)[:5])
    raise ValueError(f"neither MoCo, Barlow Twins nor a plain ResNet or ViT: it has {shown}")


# -- BYOL: Haiku's names ----------------------------------------------------------------------------------------------

_HAIKU_CONVOLUTIONS = (
    (r"initial_conv", "conv1"),
    (r"block_group_(\d+)/~/block_(\d+)/~/conv_(\d+)", r"layer{0}.\2.conv{1}"),
    (r"block_group_(\d+)/~/block_(\d+)/~/shortcut_conv", r"layer{0}.\2.downsample.0"),
)
_HAIKU_NORMS = (
    (r"initial_batchnorm", "bn1"),
    (r"block_group_(\d+)/~/block_(\d+)/~/batchnorm_(\d+)", r"layer{0}.\2.bn{1}"),
    (r"block_group_(\d+)/~/block_(\d+)/~/shortcut_batchnorm", r"layer{0}.\2.downsample.1"),
)


def _torch_name(haiku: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    """torchvision's name of one of Haiku's modules; None if no rule fits.

    torchvision counts the groups of blocks, and the layers of a block, from 1; Haiku counts them from 0.
    """
    for pattern, template in rules:
        match = re.fullmatch(pattern, haiku)
        if match:
            numbers = [int(number) for number in match.groups()]
            counted_from_one = [number + 1 for i, number in enumerate(numbers) if i != 1]  # number 1 is the block
            return match.expand(template).format(*counted_from_one)
    return None


def convert_byol(content: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], KeyReport]:
    """The online encoder of DeepMind's BYOL checkpoint, under torchvision's names.

    Args:
        content: as `read_haiku_pickle` returns it: `experiment_state` with `online_params` and `online_state`.

    Returns: the weights, and what became of each name.

    Raises:
        ValueError: the content is not that of a BYOL checkpoint.
    """
    state = content.get("experiment_state", content)
    if not isinstance(state, Mapping) or not {"online_params", "online_state"} <= set(state):
        raise ValueError(f"not a BYOL checkpoint: it has {', '.join(map(str, content))}, but no online_params")
    report = KeyReport("byol")
    converted: dict[str, torch.Tensor] = {}

    def keep(source: str, name: str, array: np.ndarray) -> None:
        converted[name] = torch.from_numpy(np.ascontiguousarray(array))
        report.matched[source] = (name,)

    for module, arrays in state["online_params"].items():
        encoder, _, rest = module.partition("/~/")
        convolution, norm = _torch_name(rest, _HAIKU_CONVOLUTIONS), _torch_name(rest, _HAIKU_NORMS)
        for key, array in arrays.items():
            source = f"online_params/{module}/{key}"
            if re.match(r"projector|predictor|classifier", module):
                report.dropped[source] = f"the {re.match(r'[a-z]+', module)[0]} is for training only"  # type: ignore[index]
            elif convolution and key == "w":  # (rows, columns, in, out) -> (out, in, rows, columns)
                keep(source, f"{convolution}.weight", np.transpose(array, (3, 2, 0, 1)))
            elif norm and key in ("scale", "offset"):
                keep(source, f"{norm}.{'weight' if key == 'scale' else 'bias'}", array.reshape(-1))
            else:
                report.unexpected.append(source)
    for module, arrays in state["online_state"].items():
        rest, _, statistic = module.partition("/~/")[2].rpartition("/~/")
        norm = _torch_name(rest, _HAIKU_NORMS)
        for key, array in arrays.items():
            source = f"online_state/{module}/{key}"
            if re.match(r"projector|predictor", module):
                report.dropped[source] = "running statistics of projector and predictor"
            elif norm and statistic in ("mean_ema", "var_ema") and key == "average":
                keep(source, f"{norm}.running_{statistic.removesuffix('_ema')}", array.reshape(-1))
            elif norm and key in ("hidden", "counter"):
                report.dropped[source] = "state of a running average whose value is kept"
            else:
                report.unexpected.append(source)
    for part in ("target_params", "target_state", "opt_state"):
        if part in state:
            report.dropped[part] = "the target network" if part.startswith("target") else "the optimizer's state"
    for name in [name for name in converted if name.endswith(".running_mean")]:
        converted[name.replace("running_mean", "num_batches_tracked")] = torch.zeros((), dtype=torch.int64)
    return converted, report


# -- what to build ----------------------------------------------------------------------------------------------------


def _resnet(state: Mapping[str, torch.Tensor]) -> PreTrainedConfig:
    blocks = tuple(
        1 + max((int(n.split(".")[1]) for n in state if n.startswith(f"layer{group}.")), default=-1)
        for group in (1, 2, 3, 4)
    )
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    width = shape_of(state, "conv1.weight")[0]
    if (block, blocks) not in _RESNETS or width != 64:
        raise ValueError(
            f"no ResNet that timm knows: {block} blocks {blocks}, {width} channels after the first convolution; it "
            f"knows {', '.join(_RESNETS.values())} of 64"
        )
    return TimmWrapperConfig(architecture=_RESNETS[block, blocks], do_pooling=False)


def _grid(state: Mapping[str, torch.Tensor]) -> tuple[int, int, int, int]:
    """Width, patch size, image size and layers of a timm ViT."""
    width, _, patch, _ = shape_of(state, "patch_embed.proj.weight")
    side = math.isqrt(shape_of(state, "pos_embed")[1] - 1)
    shape_of(state, "blocks.0.mlp.fc1.weight")
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    return width, patch, side * patch, layers


def _moco_v3_vit(state: Mapping[str, torch.Tensor]) -> PreTrainedConfig:
    """timm's ViT with the heads of MoCo v3: ViT-S has 12 too, where DeiT's has 6 (section 5 of MoCo v3's paper)."""
    width, patch, size, layers = _grid(state)
    if width not in _VITS:
        raise ValueError(f"no ViT of MoCo v3 is {width} wide; they are {', '.join(map(str, _VITS))}")
    arguments = {"num_heads": max(12, width // 64), "img_size": size, "depth": layers, "global_pool": "token"}
    name = f"vit_{_VITS[width]}_patch{patch}_224"
    return TimmWrapperConfig(architecture=name, model_args=arguments, do_pooling=False)


def _plain_vit(state: Mapping[str, torch.Tensor], heads: int | None, image_size: int | None) -> ViTConfig:
    width, patch, size, layers = _grid(state)
    check_image_size(image_size, patch)
    heads = width // 64 if heads is None else heads
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not share a width of {width}: give the number with --heads")
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        image_size=image_size or size,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _fill(model: PreTrainedModel, state: Mapping[str, torch.Tensor], report: KeyReport, where: str) -> None:
    """Load the weights into a model. Raises ValueError if a name or a shape does not fit."""
    expected = model.state_dict()
    report.missing += sorted(expected.keys() - state.keys())
    report.unexpected += sorted(state.keys() - expected.keys())
    if not report.explained:
        raise ValueError(f"{where} does not fit {model.config.model_type}:\n{report}")
    wrong = [name for name in expected if expected[name].shape != state[name].shape]
    if wrong:
        shapes = [
            f"{name}: {tuple(state[name].shape)} in the file, {tuple(expected[name].shape)} in the model"
            for name in wrong[:5]
        ]
        raise ValueError(f"{where} does not fit {model.config.model_type}: {'; '.join(shapes)}")
    model.load_state_dict(dict(state))


def load_image_checkpoint(
    path: str | Path, heads: int | None = None, image_size: int | None = None
) -> tuple[PreTrainedModel, KeyReport]:
    """Load published image-only weights as a transformers model.

    ResNets and MoCo v3's ViTs become timm models in transformers' wrapper; DeiT's and timm's ViTs become a `ViTModel`.

    Args:
        path: a `.pth`, `.pth.tar`, `.pt` or `.safetensors` file, or DeepMind's `.pkl`. Nothing in it is executed.
        heads: attention heads of a DeiT or timm ViT; width / 64 where left out.
        image_size: of a DeiT or timm ViT, in pixels; its position table is resized.

    Returns: the model, and what became of each name.

    Raises:
        ValueError: the file cannot be read safely, its names or shapes belong to no known model, or `heads` or
            `image_size` do not fit it.
    """
    where = str(path)
    if Path(path).suffix in (".pkl", ".pickle"):
        encoder, report = convert_byol(read_haiku_pickle(path))
        if report.unexpected:
            raise ValueError(f"{where} has names outside BYOL's layout:\n{report}")
        _check_unused(heads, image_size, where)
        return _wrapped(_resnet(find_state(encoder, where)), encoder, report, where), report
    state = find_state(read_file(path), where)
    method = sniff_method(state)
    layout = LAYOUTS[method]
    report = KeyReport(method)
    encoder = {}
    for name, tensor in state.items():
        reason = next((reason for prefix, reason in layout.dropped.items() if name.startswith(prefix)), None)
        if reason is not None:
            report.dropped[name] = reason
        elif name.startswith(layout.encoder):
            encoder[name.removeprefix(layout.encoder)] = tensor
            report.matched[name] = (name.removeprefix(layout.encoder),)
        else:
            report.unexpected.append(name)
    if report.unexpected:
        raise ValueError(f"{where} has names outside the {method} layout:\n{report}")
    if method == "moco_v3" or "conv1.weight" in encoder:
        _check_unused(heads, image_size, where)
    if "conv1.weight" in encoder:
        return _wrapped(_resnet(encoder), encoder, report, where), report
    if "patch_embed.proj.weight" not in encoder:
        raise ValueError(f"{where} is neither a ResNet nor a plain ViT: it has {', '.join(list(encoder)[:5])}")
    if method == "moco_v3":
        return _wrapped(_moco_v3_vit(encoder), encoder, report, where), report
    return _vision_transformer(_plain_vit(encoder, heads, image_size), encoder, report, where), report


def _check_unused(heads: int | None, image_size: int | None, where: str) -> None:
    """Raises:
    ValueError: something is given that only DeiT's and timm's ViTs take.
    """
    if (heads, image_size) != (None, None):
        raise ValueError(f"{where} holds no DeiT or timm ViT: leave out heads and image_size, which only these take")


def _wrapped(
    config: PreTrainedConfig, encoder: Mapping[str, torch.Tensor], report: KeyReport, where: str
) -> PreTrainedModel:
    """A timm model in transformers' wrapper."""
    model = AutoModel.from_config(config, trust_remote_code=False)
    _fill(model, {f"timm_model.{name}": tensor for name, tensor in encoder.items()}, report, where)
    return model


def _vision_transformer(
    config: ViTConfig, encoder: Mapping[str, torch.Tensor], report: KeyReport, where: str
) -> PreTrainedModel:
    """transformers' own ViT."""
    converted, unexpected = convert_image_encoder(encoder)
    report.unexpected += unexpected
    table, tokens = converted["embeddings.position_embeddings"], (config.image_size // config.patch_size) ** 2 + 1
    if table.shape[1] != tokens:
        converted["embeddings.position_embeddings"] = resize_positions(table, tokens)
        report.changed["embeddings.position_embeddings"] = f"from {table.shape[1]} to {tokens} positions"
    model = ViTModel(config, add_pooling_layer=False)
    expected = revert_weight_conversion(model, model.state_dict())
    report.missing += sorted(expected.keys() - converted.keys())
    if not report.explained:
        raise ValueError(f"{where} does not fit a ViT:\n{report}")
    return ViTModel.from_pretrained(
        None, config=config, state_dict=converted, add_pooling_layer=False, dtype=table.dtype
    )


def save_image_folder(model: PreTrainedModel, folder: str | Path) -> None:
    """Save the model, and a processor with ImageNet's statistics, as a folder for `AutoModel` and `vision_model`."""
    model.save_pretrained(folder)
    size = getattr(model.config, "image_size", None) or (getattr(model.config, "model_args", None) or {}).get(
        "img_size", 224
    )
    processor = image_processor(size, size * 8 // 7, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)  # of 224, 256
    processor.save_pretrained(folder)


__all__ = ["LAYOUTS", "convert_byol", "load_image_checkpoint", "save_image_folder", "sniff_method"]
