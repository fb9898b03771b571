"""`python docs/hooks/reference.py` writes docs/configuration.md, and the JSON schema that recipes name for editors.

Both come from the dataclasses that are the configuration: a key's meaning is the comment beside it in the source, and
its range what the code refuses. A test holds both to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from cluster import job
from mvlm.config.describe import DescribedKey, described, json_schema, meanings, run_keys

PAGE = Path(__file__).resolve().parents[1] / "configuration.md"
SCHEMA = PAGE.parents[1] / "mvlm/configs/mvlm.schema.json"
HEAD = """<!-- Written by `python docs/hooks/reference.py` from mvlm/config/schema.py and cluster/job.py. -->
# Configuration

This page lists every key of a run TOML and of a job file. All have defaults except those marked *required*. An unknown
key, or a value of the wrong type or out of range, is an error that names the key. All of them are reported at once;
`mvlm check RUN.toml` finds what is wrong with data and checkpoints as well.

Any key can be overridden on the command line, in TOML syntax or as a bare string: `train.steps=100`,
`'data.train=["a", "b"]'`. `mvlm config KEY` explains a key in the terminal, and `mvlm config --schema` prints a
JSON schema with which editors complete and check keys; the first line of every recipe names it (`#:schema`).
ZeRO, precision, offload and communication belong in the DeepSpeed JSON: [which file when](../ds_configs/README.md).

Letters after a meaning say where a default comes from: **P** stated in the paper (arXiv 2208.02131); **R** taken from
the reference, [ALBEF's code](https://github.com/salesforce/ALBEF) (arXiv 2107.07651), or from memory of the paper;
**D** decided by us. Defaults without a letter do not affect what is computed.

## The run

These are the tables of `RUN.toml`. The resolved values are saved in every checkpoint as `config.toml`.
"""
JOB_HEAD = """
## The job

These are the tables of `job.toml`, which `python -m cluster` reads: [from one GPU to sixty-four nodes](cluster.md).
Override a key on the command line with the prefix `job.`: `job.nodes=4`.
"""


def page() -> str:
    """The whole page."""
    comments, limits = meanings(job), job_ranges()
    tables = [(name, described(name, cls, comments, limits)) for name, cls in (("job", job.Job), ("sweep", job.Sweep))]
    of_run = groupby(run_keys(), lambda key: key.name.partition(".")[0])
    parts = [HEAD, *(line for name, keys in of_run for line in _section(name, list(keys)))]
    return "\n".join([*parts, JOB_HEAD, *(line for name, keys in tables for line in _section(name, keys))])


def schema() -> str:
    """What `mvlm config --schema` prints."""
    return json.dumps(json_schema(), indent=1) + "\n"


def _section(name: str, keys: list[DescribedKey]) -> Iterator[str]:
    yield f"### `[{name}]`\n\n| key | default | type and range | meaning |\n|---|---|---|---|"
    for key in keys:
        default = "*required*" if key.default is None else f"`{key.default}`"
        cells = (f"`{key.name.partition('.')[2]}`", default, key.domain, key.meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def job_ranges() -> dict[str, str]:
    """The same of the job file; a name stands for its table and the sweep's alike."""
    return {f"{table}.{name}": f"{least} or more" for name, least in job.LEAST.items() for table in ("job", "sweep")}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
