"""mvlm: pretraining of masked vision and language models at scale."""

__version__ = "0.1.0"
