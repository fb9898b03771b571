"""Who may import whom, read from the source, so that the layers stay apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = ("mvlm", "data_tools", "cluster")
LONGEST = 330  # lines of a product file: "about 300"

MAY_IMPORT: dict[str, set[str]] = {
    "mvlm.batch": set(),
    "mvlm.checkpoint": {"checkpoint", "config"},
    "mvlm.completion": set(),
    "mvlm.config": {"ranges", "toml"},
    "mvlm.dist": {"launch"},
    "mvlm.imports": set(),
    "mvlm.export": {"checkpoint", "config", "data", "model", "report", "export"},
    "mvlm.flops": {"batch", "config", "model"},
    "mvlm.errors": set(),
    "mvlm.extensions": set(),
    "mvlm.hub": {"launch"},
    "mvlm.launch": set(),
    "mvlm.limits": set(),
    "mvlm.masking": {"batch"},
    "mvlm.network": set(),
    "mvlm.ranges": {"checkpoint", "config"},
    "mvlm.toml": set(),
    "mvlm.preflight": {"dist", "train", "preflight"},
    "mvlm.check": {"check", "checkpoint", "config", "data", "hub", "model", "train"},
    "mvlm.doctor": {"check", "data", "dist", "doctor", "extensions", "kernels"},
    "mvlm.kernels": {"batch", "kernels"},
    "mvlm.objectives": {"batch", "kernels", "objectives"},
    "mvlm.model": {"batch", "checkpoint", "config", "hub", "objectives", "kernels", "model"},
    "mvlm.data": {"batch", "config", "hub", "masking", "data"},
    "mvlm.evaluate": {"batch", "config", "masking", "model", "data", "dist", "evaluate"},
    "mvlm.train": {
        "batch",
        "checkpoint",
        "config",
        "dist",
        "extensions",
        "launch",
        "flops",
        "limits",
        "masking",
        "kernels",
        "objectives",
        "model",
        "data",
        "ranges",
        "toml",
        "train",
    },
    "mvlm.plan": {"config", "flops", "masking", "model", "data", "train", "plan"},
    "mvlm.predict": {"model", "data", "evaluate", "predict"},
    "mvlm.search": {"model", "data", "evaluate", "search"},
    "mvlm.serve": {"masking", "model", "data", "evaluate", "predict", "search", "serve"},
    "mvlm.watch": {"checkpoint", "train", "watch"},
    "mvlm.report": {"batch", "config", "dist", "masking", "model", "data", "evaluate", "report", "toml"},
}
"""Our own modules by first name within mvlm; `errors` and the version are everybody's. The commands may import all."""

ONLY_IN = {
    "deepspeed": {
        "mvlm/doctor/deepspeed_ops.py",
        "mvlm/train/adamw.py",
        "mvlm/train/ds_keys.py",
        "mvlm/train/engine.py",
        "mvlm/train/offload.py",
        "mvlm/train/partitions.py",
    },
    "torch.distributed": {"mvlm/train/engine.py", "mvlm/dist.py"},
}
DATA_TOOLS_MAY = {
    "mvlm.completion",
    "mvlm.data.columns",
    "mvlm.data.encoded",
    "mvlm.data.memory",
    "mvlm.data.row_index",
    "mvlm.data.schema",
    "mvlm.data.tokenizer",
    "mvlm.data.upright",
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
        found += [f"imports {name}" for name in own if name.split(".")[1:2] and name.split(".")[1] not in allowed]
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
        ("mvlm/config.py", "from mvlm.batch import Batch", "mvlm.batch.Batch"),
        ("mvlm/masking.py", "import mvlm.config", "mvlm.config"),
        ("mvlm/objectives/new.py", "from mvlm import config", "mvlm.config"),
        ("mvlm/model/new.py", "def f():\n    from mvlm.train import engine", "mvlm.train.engine"),
        ("mvlm/model/new.py", "from ..data import loader", "mvlm.data.loader"),
        ("mvlm/data/new.py", "from mvlm.model.maskvlm import MaskVLM", "mvlm.model.maskvlm.MaskVLM"),
        ("mvlm/evaluate/new.py", "from mvlm.train.engine import Engine", "mvlm.train.engine.Engine"),
        ("mvlm/report/new.py", "import mvlm.train.loop", "mvlm.train.loop"),
        ("mvlm/train/new.py", "from mvlm.evaluate.task import TASKS", "mvlm.evaluate.task.TASKS"),
        ("mvlm/train/loop.py", "import deepspeed", "deepspeed"),
        ("mvlm/train/loop.py", "from torch import distributed", "torch.distributed"),
        ("mvlm/cli/new.py", "import torch.distributed as d", "torch.distributed"),
        ("mvlm/cli/new.py", "from data_tools.shard import shard", "data_tools.shard.shard"),
        ("data_tools/new.py", "from mvlm.data.index import Corpus", "mvlm.data.index.Corpus"),
        ("data_tools/new.py", "from mvlm.data import loader", "mvlm.data.loader"),
        ("cluster/new.py", "from mvlm.errors import UserError", "mvlm.errors.UserError"),
    ],
)
def test_the_check_finds_a_forbidden_import(path: str, source: str, imports: str) -> None:
    assert problems(path, source) == [f"imports {imports}"]


def test_the_check_finds_a_forbidden_name_and_length() -> None:
    assert problems("mvlm/data/utils.py", "") == ["it is called utils"]
    assert problems("mvlm/data/long.py", "\n" * 400) == ["it has 400 lines"]


def test_the_check_lets_through_what_is_allowed() -> None:
    assert problems("mvlm/train/engine.py", "import deepspeed\nfrom mvlm import dist\nimport mvlm.errors") == []
    assert problems("data_tools/new.py", "from mvlm.data import schema\nfrom mvlm.errors import UserError") == []
