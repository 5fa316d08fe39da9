"""Folders and Hub repositories that others made: nothing in them is run."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..model_folder import check_attention

NO_CODE: dict[str, Any] = {"trust_remote_code": False}
WEIGHTS_ONLY: dict[str, Any] = {**NO_CODE, "use_safetensors": True}  # never pytorch_model.bin, which is unpickled


def foreign_config(name: str) -> Any:
    """The configuration in a folder or on the Hub.

    Raises:
        ValueError: it needs code of its own, or an attention that would be downloaded; or there is none.
    """
    try:
        fields, _ = PreTrainedConfig.get_config_dict(name)
        check_attention(fields, name)
        return AutoConfig.from_pretrained(name, **NO_CODE)
    except OSError as error:
        raise ValueError(f"{name!r} is neither a model folder nor found on the Hub: {error}") from error


def foreign_weights(model_class: Any, name: str, **options: Any) -> Any:
    """A model with the weights in a folder or on the Hub. options: of `from_pretrained`.

    Raises:
        ValueError: there are no safetensors, or they do not fit; names the folder.
    """
    try:
        return model_class.from_pretrained(name, **WEIGHTS_ONLY, **options)
    except OSError as error:
        raise ValueError(
            f"weights of {name!r} cannot be read; only safetensors are, since other files can run code: {error}"
        ) from error
