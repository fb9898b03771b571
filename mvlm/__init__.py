"""mvlm: pretraining of masked vision and language models at scale.

Importing it tells transformers' Auto classes of models that `mvlm export` wrote, as soon as those are imported.
"""

from types import ModuleType

from mvlm.runtime.imports import when_imported

__version__ = "0.1.0"


def _configurations(auto: ModuleType) -> None:
    from mvlm.export.registry import configurations

    configurations(auto)


def _processors(auto: ModuleType) -> None:
    from mvlm.export.registry import processors

    processors(auto)


when_imported("transformers.models.auto.configuration_auto", _configurations)
when_imported("transformers.models.auto.processing_auto", _processors)
