"""Registration with transformers' Auto classes, which then load exported models without `trust_remote_code`."""

from __future__ import annotations

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor

from mvlm.errors import UserError
from mvlm.export.configuration import MaskVLMConfig, MaskVLMTaskConfig
from mvlm.export.modeling import MaskVLMForImageTextClassification, MaskVLMModel
from mvlm.export.processing import MaskVLMImageProcessor, MaskVLMProcessor


def register() -> None:
    """Register MaskVLM with AutoModel and the like; once per process is enough."""
    backends: dict[str, type] = {"pil": MaskVLMImageProcessor, "torchvision": MaskVLMImageProcessor}
    AutoModel.register(MaskVLMConfig, MaskVLMModel, exist_ok=True)
    AutoModel.register(MaskVLMTaskConfig, MaskVLMForImageTextClassification, exist_ok=True)
    AutoModelForVisualQuestionAnswering.register(MaskVLMTaskConfig, MaskVLMForImageTextClassification, exist_ok=True)
    for config in (MaskVLMConfig, MaskVLMTaskConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoImageProcessor.register(config, image_processor_classes=backends, exist_ok=True)
        AutoProcessor.register(config, MaskVLMProcessor, exist_ok=True)


def require_vectors(name: str) -> None:
    """Refuse a folder or hub name of any other model, whose missing weights transformers would initialise at random.

    Raises:
        UserError: it is a fine-tuned model.
        ValueError: it is not a model of ours; says what it is.
    """
    kind = MaskVLMConfig.get_config_dict(name)[0].get("model_type")
    if kind == MaskVLMTaskConfig.model_type:
        raise UserError(
            f"{name} was exported from a run fine-tuned for questions or statements: load it by AutoModel, "
            "or that run by mvlm.load_finetuned."
        )
    if kind != MaskVLMConfig.model_type:
        raise ValueError(f"it is of the kind {kind!r}")
