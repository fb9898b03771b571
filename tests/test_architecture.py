"""Who may import whom, read from the source, so that the layers stay apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = ("mvlm", "data_tools", "cluster")
LONGEST = 330  # lines of a product file: "about 300"

MAY_IMPORT: dict[str, set[str]] = {
    "mvlm.errors": set(),
    "mvlm.batch": set(),
    "mvlm.runtime": {"runtime"},
    "mvlm.config": {"config"},
    "mvlm.kernels": {"batch", "kernels"},
    "mvlm.model": {"batch", "checkpoint", "config", "kernels", "model", "runtime"},
    "mvlm.checkpoint": {"checkpoint", "config", "model", "runtime"},
    "mvlm.data": {"batch", "checkpoint.state", "config", "data", "model.masking", "runtime"},
    "mvlm.training": {
        "batch",
        "checkpoint",
        "config",
        "data",
        "estimate.flops",
        "kernels",
        "model",
        "runtime",
        "training",
    },
    "mvlm.evaluate": {"batch", "checkpoint", "config", "data", "evaluate", "model", "runtime"},
    "mvlm.estimate": {"batch", "config", "data", "estimate", "model", "training"},
    "mvlm.check": {"check", "checkpoint", "config", "data", "kernels", "model", "runtime", "training"},
    "mvlm.predict": {"checkpoint", "data", "evaluate", "model", "predict"},
    "mvlm.search": {"checkpoint", "data", "evaluate", "model", "search"},
    "mvlm.serve": {"checkpoint", "data", "evaluate", "model", "predict", "search", "serve"},
    "mvlm.export": {"checkpoint", "config", "data", "export", "model", "report"},
    "mvlm.watch": {"checkpoint", "training.health.heartbeat", "watch"},
    "mvlm.report": {"batch", "checkpoint", "config", "data", "evaluate", "model", "report", "runtime"},
}
"""Our own packages, or single modules of one, by their name within mvlm; `errors` and the version are everybody's. The
commands may import all."""

ONLY_IN = {
    "deepspeed": {
        "mvlm/check/machine/deepspeed_ops.py",
        "mvlm/training/zero/adamw.py",
        "mvlm/training/zero/json_keys.py",
        "mvlm/training/engine.py",
        "mvlm/training/zero/offload.py",
        "mvlm/training/zero/partitions.py",
    },
    "torch.distributed": {"mvlm/training/engine.py", "mvlm/runtime/dist.py"},
}
DATA_TOOLS_MAY = {
    "mvlm.runtime.completion",
    "mvlm.data.shards.columns",
    "mvlm.data.images.encoded",
    "mvlm.data.loading.shared_memory",
    "mvlm.data.shards.row_index",
    "mvlm.data.shards.schema",
    "mvlm.data.samples.tokenizer",
    "mvlm.data.images.upright",
    "mvlm.errors",
}


def imported(source: str, package: str) -> set[str]:
    """Every module name in an import statement, wherever it stands; `from a import b` gives a.b and relative ones are
    resolved against `package`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def problems(path: str, source: str) -> list[str]:
    """What is wrong with the imports and length of one file of the product, `path` relative to the root."""
    parts = Path(path).with_suffix("").parts
    package, owner = ".".join(parts[:-1]), ".".join(parts[:2])
    names = imported(source, package)
    own = {name for name in names if within(name, parts[0])}
    found = []
    if parts[-1] == "utils":
        found.append("it is called utils")
    if source.count("\n") > LONGEST:
        found.append(f"it has {source.count(chr(10))} lines")
    for library, homes in ONLY_IN.items():
        found += [f"imports {name}" for name in names if within(name, library) and path not in homes]
    if owner in MAY_IMPORT:
        allowed = {"errors", "__version__", *MAY_IMPORT[owner]}
        found += [
            f"imports {name}" for name in own if "." in name and not any(within(name, f"mvlm.{one}") for one in allowed)
        ]
    strangers = {name for name in names if name.split(".")[0] in OURS} - own
    if parts[0] == "data_tools":
        strangers = {name for name in strangers if not any(within(name, module) for module in DATA_TOOLS_MAY)}
    return found + [f"imports {name}" for name in strangers]


def product() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for name in OURS for path in (ROOT / name).rglob("*.py"))


@pytest.mark.parametrize("path", product())
def test_every_file_keeps_to_its_layer(path: str) -> None:
    assert problems(path, (ROOT / path).read_text(encoding="utf-8")) == []


def test_every_package_has_its_rule() -> None:
    packages = {".".join(Path(path).with_suffix("").parts[:2]) for path in product() if path.startswith("mvlm/")}
    assert packages - MAY_IMPORT.keys() == {"mvlm.__init__", "mvlm.__main__", "mvlm.cli"}


@pytest.mark.parametrize(
    ("path", "source", "imports"),
    [
        ("mvlm/config/schema.py", "from mvlm.batch import Batch", "mvlm.batch.Batch"),
        ("mvlm/kernels/new.py", "import mvlm.config.schema", "mvlm.config.schema"),
        ("mvlm/kernels/new.py", "from mvlm.config import schema", "mvlm.config.schema"),
        ("mvlm/model/new.py", "def f():\n    from mvlm.training import engine", "mvlm.training.engine"),
        ("mvlm/model/new.py", "from ..data.loading import loader", "mvlm.data.loading.loader"),
        ("mvlm/data/new.py", "from mvlm.model.maskvlm import MaskVLM", "mvlm.model.maskvlm.MaskVLM"),
        ("mvlm/evaluate/new.py", "from mvlm.training.engine import Engine", "mvlm.training.engine.Engine"),
        ("mvlm/report/new.py", "import mvlm.training.fit", "mvlm.training.fit"),
        ("mvlm/training/new.py", "from mvlm.evaluate.task import TASKS", "mvlm.evaluate.task.TASKS"),
        ("mvlm/training/fit.py", "import deepspeed", "deepspeed"),
        ("mvlm/training/fit.py", "from torch import distributed", "torch.distributed"),
        ("mvlm/cli/new.py", "import torch.distributed as d", "torch.distributed"),
        ("mvlm/cli/new.py", "from data_tools.pipeline import shard", "data_tools.pipeline.shard"),
        ("data_tools/new.py", "from mvlm.data.shards.corpus import Corpus", "mvlm.data.shards.corpus.Corpus"),
        ("data_tools/new.py", "from mvlm.data.loading import loader", "mvlm.data.loading.loader"),
        ("cluster/new.py", "from mvlm.errors import UserError", "mvlm.errors.UserError"),
    ],
)
def test_the_check_finds_a_forbidden_import(path: str, source: str, imports: str) -> None:
    assert problems(path, source) == [f"imports {imports}"]


def test_the_check_finds_a_forbidden_name_and_length() -> None:
    assert problems("mvlm/data/utils.py", "") == ["it is called utils"]
    assert problems("mvlm/data/long.py", "\n" * 400) == ["it has 400 lines"]


def test_the_check_lets_through_what_is_allowed() -> None:
    assert (
        problems("mvlm/training/engine.py", "import deepspeed\nfrom mvlm.runtime import dist\nimport mvlm.errors") == []
    )
    assert problems("data_tools/new.py", "from mvlm.data.shards import schema\nfrom mvlm.errors import UserError") == []
