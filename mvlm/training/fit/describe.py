"""What a run leaves in its folder for whoever reads, resumes, evaluates or exports it."""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from mvlm import __version__
from mvlm.checkpoint.description import CONFIG, DEEPSPEED, LEDGER, RUN_JSON, STAGES, TEXT_ENCODER
from mvlm.checkpoint.folder_group import FolderGroup
from mvlm.checkpoint.layout import ATTEMPTS
from mvlm.checkpoint.state import TrainState
from mvlm.config.load import dump_config
from mvlm.config.schema import Config
from mvlm.config.stages import Stages, with_appended
from mvlm.errors import cannot_write
from mvlm.model.encoders import Encoders
from mvlm.pretrained.report import InitReport
from mvlm.runtime import dist
from mvlm.runtime.launch import typed_command
from mvlm.runtime.storage import write_durably
from mvlm.training.ledger import write_ledger

STARTED = "started_from.json"


def describe_run(
    run: Path,
    config: Config,
    ds_config: dict[str, Any],
    model: Encoders,
    layout: dict[str, Any],
    group: FolderGroup,
    beginning: InitReport | None,
    attempt: int,
    stages: Stages | None,
    state: TrainState,
    resumes: bool,
) -> None:
    """Write config.toml, deepspeed.json, the text encoder's description and run.json, once into each run folder.

    The first two are also kept for every attempt, in `attempts/NNNN`. A run with stages has stages.toml and
    stages.jsonl as well, and a run that begins has a list of what each tensor of its weights started from.

    Args:
        state: where it begins.
        resumes: it resumes one of its own checkpoints; otherwise the stages of a run that was there before are deleted.
    """
    hosts = dist.gather_objects(socket.gethostname())
    if not group.leads:
        return
    names = ("torch", "deepspeed", "transformers", "timm", "pyarrow")
    facts = {
        "world": dist.world(),
        **layout,
        "hosts": hosts,
        "device": str(dist.device()),
        "command": typed_command(sys.argv, _ancestors()),
        "versions": {"mvlm": __version__, "python": sys.version.split()[0]} | {name: version(name) for name in names},
        "config": dataclasses.asdict(config),
        "deepspeed": ds_config,
    }
    try:
        kept = run / ATTEMPTS / f"{attempt:04d}"
        kept.mkdir(parents=True, exist_ok=True)
        for folder in (run, kept):
            write_durably(folder / CONFIG, dump_config(config))
            write_durably(folder / DEEPSPEED, json.dumps(ds_config, indent=1))
        if not resumes:
            for name in (STAGES, LEDGER):
                (run / name).unlink(missing_ok=True)
        if stages:
            known = with_appended(stages, run / STAGES).dump()
            if not (run / STAGES).exists() or (run / STAGES).read_text(encoding="utf-8") != known:
                write_durably(run / STAGES, known)
            write_ledger(run, state)
        model.text.settings.save_pretrained(run / TEXT_ENCODER)
        if beginning:
            write_durably(run / STARTED, beginning.to_json())
        write_durably(run / RUN_JSON, json.dumps(facts, indent=1))
    except OSError as error:
        raise cannot_write(f"The run folder {run}", error, "free some room or set run.dir") from None


def _ancestors() -> list[list[str]]:
    """Command lines of the processes that started this one, the nearest first; none if one may not be read."""
    with suppress(psutil.Error):
        return [process.cmdline() for process in psutil.Process().parents()]
    return []
