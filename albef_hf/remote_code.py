"""What a saved folder needs so that every Auto class loads it where this package is not installed."""

import shutil
from pathlib import Path

# Any folder may be asked for by any Auto class, whichever class saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_albef.AlbefConfig",
    "AutoModel": "modeling_albef.AlbefModel",
    "AutoModelForPreTraining": "modeling_albef_pretraining.AlbefForPreTraining",
    "AutoModelForVisualQuestionAnswering": "modeling_albef_question_answering.AlbefForQuestionAnswering",
    "AutoModelForZeroShotImageClassification": "modeling_albef.AlbefModel",
    "AutoProcessor": "processing_albef.AlbefProcessor",
}

FILES = (
    "configuration_albef.py",
    "gathering.py",
    "losses.py",
    "modeling_albef.py",
    "modeling_albef_alignment.py",
    "modeling_albef_classification.py",
    "modeling_albef_momentum.py",
    "modeling_albef_pretraining.py",
    "modeling_albef_question_answering.py",
    "modeling_albef_retrieval.py",
    "modeling_albef_text.py",
    "momentum.py",
    "processing_albef.py",
    "remote_code.py",
    "vision_backbone.py",
)


def save_code(folder: str | Path) -> None:
    """Copy the files a saved model is made of into its folder."""
    here = Path(__file__).parent
    for name in FILES:
        # Code that itself came from a folder may have left out what it did not need.
        if (here / name).exists() and (here / name).resolve() != (Path(folder) / name).resolve():
            shutil.copyfile(here / name, Path(folder) / name)


__all__ = ["AUTO_MAP", "FILES", "save_code"]
