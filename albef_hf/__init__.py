"""ALBEF in the Hugging Face ecosystem. Importing this package registers its models with the Auto classes."""

from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from .configuration_albef import AlbefConfig, AlbefTextConfig
from .convert.albef import export_original_checkpoint, load_original_checkpoint
from .modeling_albef import AlbefModel, AlbefOutput
from .modeling_albef_assignment import AlbefForTextAssignment
from .modeling_albef_classification import (
    AlbefClassificationOutput,
    AlbefForImageTextClassification,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
)
from .modeling_albef_pretraining import AlbefForPreTraining, AlbefForPreTrainingOutput
from .modeling_albef_question_answering import (
    AlbefAnswerRanking,
    AlbefForQuestionAnswering,
    AlbefForQuestionAnsweringOutput,
)
from .modeling_albef_retrieval import AlbefForImageTextRetrieval, AlbefForImageTextRetrievalOutput
from .modeling_albef_text import AlbefTextModel
from .processing_albef import AlbefProcessor

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .inference.retriever import AlbefRetriever

AutoConfig.register("albef", AlbefConfig, exist_ok=True)
AutoConfig.register("albef_text", AlbefTextConfig, exist_ok=True)
AutoModel.register(AlbefConfig, AlbefModel, exist_ok=True)
AutoModel.register(AlbefTextConfig, AlbefTextModel, exist_ok=True)
AutoModelForPreTraining.register(AlbefConfig, AlbefForPreTraining, exist_ok=True)
AutoModelForVisualQuestionAnswering.register(AlbefConfig, AlbefForQuestionAnswering, exist_ok=True)
# Of several classes, an Auto class takes the one that saved the folder, or else the first.
AutoModelForSequenceClassification.register(
    AlbefConfig,
    (AlbefForVisualEntailment, AlbefForVisualReasoning, AlbefForTextAssignment),  # type: ignore[arg-type]
    exist_ok=True,
)
AutoModelForZeroShotImageClassification.register(
    AlbefConfig,
    (AlbefModel, AlbefForImageTextRetrieval),  # type: ignore[arg-type]
    exist_ok=True,
)
AutoProcessor.register(AlbefConfig, AlbefProcessor, exist_ok=True)


def __getattr__(name: str) -> Any:
    """Import the retriever only when it is asked for, since it needs `datasets`."""
    if name == "AlbefRetriever":
        from .inference.retriever import AlbefRetriever

        return AlbefRetriever
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AlbefAnswerRanking",
    "AlbefClassificationOutput",
    "AlbefConfig",
    "AlbefForImageTextClassification",
    "AlbefForImageTextRetrieval",
    "AlbefForImageTextRetrievalOutput",
    "AlbefForPreTraining",
    "AlbefForPreTrainingOutput",
    "AlbefForQuestionAnswering",
    "AlbefForQuestionAnsweringOutput",
    "AlbefForTextAssignment",
    "AlbefForVisualEntailment",
    "AlbefForVisualReasoning",
    "AlbefModel",
    "AlbefOutput",
    "AlbefProcessor",
    "AlbefRetriever",
    "AlbefTextConfig",
    "AlbefTextModel",
    "export_original_checkpoint",
    "load_original_checkpoint",
]
