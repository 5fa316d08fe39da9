"""The base of every ALBEF model: it loads checkpoints of any task, and reports what was loaded."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from .configuration_albef import AlbefConfig
from .model_folder import check_model_folder
from .modeling_albef_attention import KeysValues
from .momentum import MomentumCopy
from .vision_backbone import VisionBackbone

logger = logging.get_logger(__name__)

_WORDS = re.compile(r"(embeddings\.word_embeddings\.weight|predictions\.bias)$")
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class LoadsFromOtherTasks:
    """For `PreTrainedModel`s: `from_pretrained` takes a checkpoint of any ALBEF class.

    Attributes:
        loading_report: a text about the last loading: which weights are new, which were copied from others, and which
            weights of the checkpoint were not used.
    """

    loading_report = "built from its configuration: every weight is new"

    # Parts that a model cannot be used without, and those of them that the last loading left random.
    needed_parts: ClassVar[tuple[str, ...]] = ()
    untrained_parts: Sequence[str] = ()

    # Weights that do not start at random where a checkpoint lacks them: a pattern of their names -> how they start.
    starts: ClassVar[dict[str, str]] = {}

    @classmethod
    def renamed_keys(cls, checkpoint_config: AlbefConfig | None) -> dict[str, str]:
        """Regular expressions for names in a checkpoint of *another* class -> our names; none by default.

        checkpoint_config: the configuration in the checkpoint's folder, or the one given with a state dict.
        """
        return {}

    def freeze(self) -> None:
        """Freeze what this class does not train. Called after loading, which makes every parameter trainable."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Load as in transformers, but from a checkpoint of any ALBEF class, and from safetensors only.

        The model's `loading_report` says which weights are new.

        Raises:
            ValueError: a file is damaged, missing, outside its folder, or of another model; names it.
            ValueError: `use_safetensors` is false.
        """
        name = pretrained_model_name_or_path
        model_class: Any = cls
        folder = Path(str(name), kwargs.get("subfolder") or "")
        if name is not None and folder.is_dir() and kwargs.get("config") is None:
            check_model_folder(folder, model_class.config_class.model_type)
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("only safetensors are read, since other files are unpickled: leave use_safetensors out")
        with_report = kwargs.pop("output_loading_info", False)
        checkpoint_config: Any = kwargs.get("config")
        if name is not None and issubclass(model_class.config_class, AlbefConfig):
            hub_arguments = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
            try:
                checkpoint_config = model_class.config_class.from_pretrained(name, **hub_arguments)
            except OSError:
                if checkpoint_config is None:  # weights alone are enough where a configuration is given
                    raise
        renamed = cls.renamed_keys(checkpoint_config)
        if renamed:
            kwargs["key_mapping"] = {**renamed, **(kwargs.get("key_mapping") or {})}
        parent: Any = super()
        try:
            model, report = parent.from_pretrained(name, *args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"weights of {name} cannot be read: {error}") from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(f"weights of {name} do not fit its config.json: {error}") from error
        # Saved names are those of a new model. What loading used would rename another class's weights back, and leave
        # out the names of parts that the file lacks, such as momentum copies.
        model._weight_conversions = None
        model.tie_weights()  # also within the momentum copies, which transformers does not look into
        model.freeze()
        missing = {_part(name) for name in report["missing_keys"]}
        model.untrained_parts = tuple(part for part in cls.needed_parts if part in missing)
        model.loading_report = _in_words(report, cls.starts)
        logger.info("%s from %s: %s", cls.__name__, name, model.loading_report)
        return (model, report) if with_report else model


class AlbefPreTrainedModel(LoadsFromOtherTasks, PreTrainedModel):
    """What transformers needs to know about every ALBEF model."""

    config: AlbefConfig
    base_model_prefix = "albef"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # losses are means of a batch: `Trainer` divides them by accumulation steps
    _no_split_modules = ["AlbefTextLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        start = getattr(module, "start_weights", None)  # of our own layers with parameters
        if start is not None:
            start()

    @torch.no_grad()
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize as in transformers: word embeddings and output biases of every text model and decoder of this model.

        In momentum copies, new words begin as those of the modules that they follow.
        """
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()  # type: ignore[return-value]
        known = {name: weight.clone() for name, weight in self.named_parameters() if _WORDS.search(name)}
        for name, module in list(self.named_modules()):
            if not name.endswith("embeddings.word_embeddings"):
                continue
            resized = self._get_resized_embeddings(module, new_num_tokens, pad_to_multiple_of, mean_resizing)
            words = resized.num_embeddings
            self.get_submodule(name.rpartition(".")[0]).word_embeddings = resized
        for name, bias in list(self.named_parameters()):
            if name.endswith("predictions.bias"):
                longer = nn.functional.pad(bias.detach(), (0, words - len(bias)))  # a negative number cuts
                self.get_submodule(name.rpartition(".")[0]).bias = nn.Parameter(longer)
        for module in self.modules():
            config = getattr(module, "config", None)
            if isinstance(config, PreTrainedConfig) and config.model_type in ("albef", "albef_text"):
                config.get_text_config().vocab_size = words
        weights = dict(self.named_parameters())
        for name, weight in weights.items():
            if name.startswith("momentum_copy.") and name in known:
                part, _, rest = name.removeprefix("momentum_copy.").partition(".")
                online = dict(self.online_modules()[part].named_parameters())[rest]
                weight.copy_(online)
                kept = min(len(weight), len(known[name]))
                weight[:kept] = known[name][:kept]
        self.vocab_size = words  # as transformers does
        self.freeze()
        return self.get_input_embeddings()  # type: ignore[return-value]

    def freeze(self) -> None:
        """Freeze momentum copies, and parameters of image encoders that are not used."""
        for module in self.modules():
            if isinstance(module, (MomentumCopy, VisionBackbone)):
                module.freeze()


class RepeatsFusionLayers(PreTrainedModel):
    """For text models that read a text with several images: each fusion layer is repeated for each image.

    The repetitions share the key and value projections of their cross-attention (section 5, "NLVR"). Where no
    checkpoint has filled them, they start as copies of the layer they repeat.
    """

    encoder: Any

    def _repeated_layers(self) -> list[tuple[int, int]]:
        """Pairs of indices: a layer that repeats another one for a further image, and the layer that it repeats."""
        first, images = self.config.fusion_layer, self.config.images_per_text
        layers = range(first, self.config.num_hidden_layers)
        return [(index, index - (index - first) % images) for index in layers if (index - first) % images]

    def tie_repeated_layers(self) -> None:
        """Tell transformers which weights are shared. For use in `__init__`, before `post_init`."""
        if self.config.images_per_text > 1:
            # transformers initializes a module only if it holds a tensor that no checkpoint has filled.
            self.register_buffer("unsaved", torch.empty(0), persistent=False)
        self._tied_weights_keys = {
            f"encoder.layer.{index}.crossattention.self.{name}": f"encoder.layer.{first}.crossattention.self.{name}"
            for index, first in self._repeated_layers()
            for name in ("key.weight", "key.bias", "value.weight", "value.bias")
        }

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """The weights to tie. transformers only ties word embeddings to an output layer, which is not meant here."""
        return dict(self._tied_weights_keys or {})

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            for index, first in self._repeated_layers():
                layers = self.encoder.layer[index].parameters(), self.encoder.layer[first].parameters()
                for repeated, original in zip(*layers, strict=True):
                    init.copy_(repeated, original)

    @staticmethod
    def interleave(
        image_keys_values: Sequence[KeysValues], images: Sequence[torch.Tensor | slice]
    ) -> list[KeysValues]:
        """Keys and values for `fuse` where a text has several images.

        Args:
            image_keys_values: of all images, from `project_image_tokens`.
            images: rows of the first image of each text, rows of the second image of each text, and so on.
        """
        return [(key[rows], value[rows]) for key, value in image_keys_values for rows in images]


def _in_words(report: Mapping[str, Iterable[Any]], starts: Mapping[str, str]) -> str:
    """The loading report of transformers as text. starts: see `LoadsFromOtherTasks`."""
    parts: dict[str, list[str]] = {}
    for name in report["missing_keys"]:
        how = next((how for part, how in starts.items() if re.search(part, name)), "new, random")
        parts.setdefault(how, []).append(_part(name))
    for name, *_ in report["mismatched_keys"]:
        parts.setdefault("new, random (of another shape in the checkpoint)", []).append(_part(name))
    for name in report["unexpected_keys"]:
        parts.setdefault("in the checkpoint but not used", []).append(_part(name))
    texts = [f"{how}: {', '.join(sorted(set(names)))}" for how, names in sorted(parts.items())]
    return "; ".join(texts) or "every weight was in the checkpoint"


def _part(name: str) -> str:
    """The part of a model that a weight belongs to: `decoder.encoder`, `classifier.dense`, `itm_head`."""
    return ".".join(re.sub(r"\.(weight|bias)$", "", name).split(".")[:2])


__all__ = ["AlbefPreTrainedModel", "LoadsFromOtherTasks", "RepeatsFusionLayers"]
