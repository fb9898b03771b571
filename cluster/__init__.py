"""Placing training jobs on machines: `python -m cluster`. It launches `mvlm`, reads its files and never imports it."""
