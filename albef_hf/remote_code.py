"""What a saved folder needs so that any Auto class loads it where this package is not installed."""

import shutil
from pathlib import Path
from typing import Any

# Any Auto class can load any folder, whichever class saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_albef.AlbefConfig",
    "AutoModel": "modeling_albef.AlbefModel",
    "AutoModelForPreTraining": "modeling_albef_pretraining.AlbefForPreTraining",
    "AutoModelForSequenceClassification": "modeling_albef_classification.AlbefForVisualEntailment",
    "AutoModelForVisualQuestionAnswering": "modeling_albef_question_answering.AlbefForQuestionAnswering",
    "AutoModelForZeroShotImageClassification": "modeling_albef.AlbefModel",
    "AutoProcessor": "processing_albef.AlbefProcessor",
}
# Where a folder was saved by one of these classes, an Auto class loads it with that one.
OWN_AUTO_MAP = {
    "AlbefForImageTextRetrieval": {
        "AutoModelForZeroShotImageClassification": "modeling_albef_retrieval.AlbefForImageTextRetrieval"
    },
    "AlbefForTextAssignment": {
        "AutoModelForSequenceClassification": "modeling_albef_assignment.AlbefForTextAssignment"
    },
    "AlbefForVisualReasoning": {
        "AutoModelForSequenceClassification": "modeling_albef_classification.AlbefForVisualReasoning"
    },
}
TEXT_AUTO_MAP = {
    "AutoConfig": "configuration_albef.AlbefTextConfig",
    "AutoModel": "modeling_albef_text.AlbefTextModel",
}

FILES = (
    "configuration_albef.py",
    "gathering.py",
    "image_conversion.py",
    "losses.py",
    "model_folder.py",
    "modeling_albef.py",
    "modeling_albef_alignment.py",
    "modeling_albef_assignment.py",
    "modeling_albef_attention.py",
    "modeling_albef_classification.py",
    "modeling_albef_decoder.py",
    "modeling_albef_loading.py",
    "modeling_albef_momentum.py",
    "modeling_albef_pretraining.py",
    "modeling_albef_question_answering.py",
    "modeling_albef_retrieval.py",
    "modeling_albef_text.py",
    "momentum.py",
    "processing_albef.py",
    "remote_code.py",
    "small_resnet.py",
    "trainable.py",
    "vision_backbone.py",
)


def save_code(folder: str | Path) -> None:
    """Copy the code that a saved model needs into its folder."""
    here = Path(__file__).parent
    for name in FILES:
        # Where this code was itself loaded from a saved folder, files that it did not need may be missing.
        if (here / name).exists() and (here / name).resolve() != (Path(folder) / name).resolve():
            shutil.copyfile(here / name, Path(folder) / name)


class SavesCode:
    """Mixin for configurations (which every model saves) and processors: they save and push their code too."""

    saved_auto_map = AUTO_MAP

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as in transformers, with the code and `auto_map`, by which Auto classes find it elsewhere."""
        self.auto_map = dict(self.saved_auto_map)
        for name in getattr(self, "architectures", None) or ():
            self.auto_map |= OWN_AUTO_MAP.get(name, {})
        written = super().save_pretrained(save_directory)  # type: ignore[misc]
        save_code(save_directory)
        if push_to_hub:  # `super()` would upload before the code is there
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)  # type: ignore[attr-defined]
        return written


__all__ = ["AUTO_MAP", "FILES", "TEXT_AUTO_MAP", "SavesCode", "save_code"]
