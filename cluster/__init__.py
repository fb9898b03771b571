"""Placing training jobs on machines: `mvlm-cluster`. It launches `mvlm` and reads its files.

Of its code it takes the reader of TOML, the exit codes and a durable write, so that no command waits for torch.
"""
