"""Training started from Python, on this machine."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from mvlm.runtime.commands import run_command
from mvlm.runtime.launch import free_port


def launch_training(recipe: str, deepspeed: str, overrides: Sequence[str], ranks: int) -> None:
    """Run `mvlm train` on this machine, several ranks by DeepSpeed's launcher; it saves if this process is interrupted.
    Raises as `run_command`."""
    launcher = [sys.executable, "-m", "mvlm"]
    if ranks > 1:
        runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_accelerators", str(ranks)]
        launcher = [*runner, "--master_port", str(free_port()), "--module", "mvlm"]
    run_command([*launcher, "train", recipe, "--deepspeed_config", deepspeed, *overrides], stop=signal.SIGTERM)
