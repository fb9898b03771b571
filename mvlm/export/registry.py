"""What transformers' Auto classes are told of our models, when they are imported and not before: `import mvlm` would
otherwise take seconds, and loader processes hundreds of megabytes."""

from __future__ import annotations

from types import ModuleType


def configurations(auto: ModuleType) -> None:
    """Called with `transformers.models.auto.configuration_auto`. The models follow with the first configuration."""
    from mvlm.export.configuration import MaskVLMConfig, MaskVLMTaskConfig

    for config in (MaskVLMConfig, MaskVLMTaskConfig):
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def processors(auto: ModuleType) -> None:
    """Called with `transformers.models.auto.processing_auto`."""
    from mvlm.export.configuration import MaskVLMConfig, MaskVLMTaskConfig
    from mvlm.export.processing import MaskVLMImageProcessor, MaskVLMProcessor

    backends = dict.fromkeys(("pil", "torchvision"), MaskVLMImageProcessor)
    for config in (MaskVLMConfig, MaskVLMTaskConfig):
        auto.AutoImageProcessor.register(config, image_processor_classes=backends, exist_ok=True)
        auto.AutoProcessor.register(config, MaskVLMProcessor, exist_ok=True)
