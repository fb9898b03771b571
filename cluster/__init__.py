"""Placing training jobs on machines: `mvlm-cluster`. It launches `mvlm` and reads its files.

Of that code it imports only light parts, such as the TOML reader and exit codes, so that no command waits for torch.
"""
