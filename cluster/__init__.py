"""Placing training jobs on machines: `python -m cluster`. It launches `mvlm` and reads its files, and never imports it."""
