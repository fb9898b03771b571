"""A run records the command as it was typed, not as a launcher rewrote it."""

from __future__ import annotations

import pytest

from mvlm.runtime.launch import typed_command

RANK = [
    "/venv/lib/mvlm/__main__.py",
    "--local_rank=0",
    "train",
    "run.toml",
    "--deepspeed_config",
    "ds.json",
    "a={b = 1}",
]
OWN = RANK[2:]
LAUNCH = ["/venv/bin/python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=abc", "--module", "mvlm", *OWN]


@pytest.mark.parametrize(
    ("ancestors", "typed"),
    [
        ([LAUNCH, ["/venv/bin/python", "/venv/bin/deepspeed", "--num_gpus", "8", "--module", "mvlm", *OWN]],
         "deepspeed --num_gpus 8 --module mvlm"),
        ([["/venv/bin/python", "/venv/bin/torchrun", "-m", "mvlm", *OWN], ["bash"]], "torchrun -m mvlm"),
        ([["bash", "-c", "deepspeed --module mvlm train"], ["deepspeed", "train", "other.toml"]], "mvlm"),
        ([LAUNCH, ["/venv/bin/python", "-m", "deepspeed.launcher.runner", "--module", "mvlm", *OWN]], "mvlm"),
        ([], "mvlm"),
    ],
)  # fmt: skip
def test_the_command_is_recorded_as_it_was_typed(ancestors: list[list[str]], typed: str) -> None:
    assert typed_command(RANK, ancestors) == f"{typed} train run.toml --deepspeed_config ds.json 'a={{b = 1}}'"
