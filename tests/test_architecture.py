"""Which modules may import which, read from the source, so that the layers stay separate."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

OURS = ("mvlm", "data_tools", "cluster")
SCHEMA = "mvlm.config.schema"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
LONGEST = 320  # lines of a product file: "about 300"

MAY_IMPORT: dict[str, set[str]] = {
    "mvlm.errors": set(),
    "mvlm.batch": set(),
    "mvlm.runtime": {"runtime"},
    "mvlm.config": {"config", "runtime.patterns"},
    "mvlm.kernels": {"batch", "kernels"},
    "mvlm.model": {"batch", "config", "kernels", "model"},
    "mvlm.checkpoint": {"checkpoint", "config", "runtime"},
    "mvlm.pretrained": {"checkpoint", "config", "model", "pretrained", "runtime.hub"},
    "mvlm.data": {"batch", "checkpoint.state", "config", "data", "model.masking", "runtime"},
    "mvlm.training": {
        "batch",
        "checkpoint",
        "config",
        "data",
        "kernels",
        "model",
        "pretrained",
        "runtime",
        "training",
    },
    "mvlm.evaluate": {"batch", "checkpoint", "config", "data", "evaluate", "model", "pretrained", "runtime"},
    "mvlm.estimate": {
        "batch",
        "config",
        "data",
        "estimate",
        "kernels.contrastive",
        "model",
        "pretrained",
        "runtime.background",
        "runtime.dist",
        "runtime.live_memory",
        "training",
    },
    "mvlm.check": {
        "check",
        "checkpoint",
        "config",
        "data",
        "evaluate.training",
        "kernels",
        "model",
        "pretrained",
        "runtime",
        "training",
    },
    "mvlm.predict": {"data", "evaluate", "model", "predict", "pretrained"},
    "mvlm.search": {"data", "evaluate", "model", "pretrained", "runtime.dist", "search"},
    "mvlm.serve": {"data", "evaluate", "model", "predict", "pretrained", "search", "serve"},
    "mvlm.export": {"checkpoint", "config", "data", "export", "model", "pretrained", "report"},
    "mvlm.watch": {"checkpoint", "config.schema", "runtime.jsonl", "training.health.heartbeat", "watch"},
    "mvlm.decay": {"checkpoint", "config", "decay", "report.facts", "runtime"},
    "mvlm.reproduce": {"checkpoint", "config", "data", "estimate", "report.facts", "reproduce", "runtime", "training"},
    "mvlm.report": {"batch", "checkpoint", "config", "data", "evaluate", "model", "pretrained", "report", "runtime"},
}
"""The packages or modules of mvlm that each may import; all may import `errors`, `runtime.wording` and the version.
`mvlm.cli` and `mvlm.api` may import everything."""

ORDER = (
    {"errors", "batch"},
    {"runtime"},
    {"config"},
    {"kernels"},
    {"model"},
    {"checkpoint"},
    {"pretrained"},
    {"data"},
    {"training"},
    {"evaluate"},
    {"estimate", "check", "predict", "report", "search", "watch"},
    {"serve", "export", "decay", "reproduce"},
)
"""Layers from the lowest up: each may be imported only by later ones. `mvlm.cli` and `mvlm.api` come last."""

DATA_ORDER = ("images", "shards", "samples", "loading")
"""The packages of mvlm.data; each may import those before it."""

ONLY_IN = {
    "deepspeed": {
        "mvlm/check/machine/deepspeed_ops.py",
        "mvlm/training/zero/adamw.py",
        "mvlm/training/zero/disk.py",
        "mvlm/training/zero/divide.py",
        "mvlm/training/zero/json_keys.py",
        "mvlm/training/zero/frozen.py",
        "mvlm/training/zero/offload.py",
        "mvlm/training/zero/stages.py",
        "mvlm/training/zero/start.py",
    },
    "torch.distributed": {
        "mvlm/runtime/background.py",
        "mvlm/runtime/dist.py",
        "mvlm/runtime/gathered.py",
        "mvlm/runtime/replicas.py",
        "mvlm/runtime/rendezvous.py",
    },
}
OPTIONAL = {
    "apex",
    "clip_benchmark",
    "data_tools.engines.ray",
    "matplotlib",
    "mlflow",
    "onnxruntime",
    "py3langid",
    "ray",
    "resvg_py",
    "shtab",
    "submitit",
    "tensorboard",
    "torch.nn.attention.varlen",
    "torchao",
    "torch.utils.tensorboard",
    "wandb",
}
"""What may be missing, or is slow to import and rarely needed (matplotlib, shtab, TensorBoard): imported inside the
functions that use it, as Triton kernels are."""

IMPORTED_LATE = {
    "mvlm/check/machine/": "the doctor tries whether each can be imported",
    "mvlm/cli/": "a command imports what it needs only when it is called",
    "data_tools/arguments.py": "the readers of all sources, which the help of `shard` describes, take half a second",
    "data_tools/commands": "a command imports what it needs only if its paths exist",
    "mvlm/data/shards/selection.py": "acero imports pandas, a quarter of a second even on ranks that select no rows",
    "mvlm/training/zero/": "DeepSpeed reads its accelerator and log level from the environment at import",
    "mvlm/runtime/storage.py": "fsspec takes 11 MB of each loader process, none of which uses stores",
}
"""Files and folders that import required packages inside functions, and why."""

RAY_DOCUMENTED = "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer"
"""The only name of Ray Train that Ray's reference does not have in `ray.train`."""

CLUSTER_MAY = {
    "mvlm.__version__",
    "mvlm.config.shipped",
    "mvlm.config.toml",
    "mvlm.errors",
    "mvlm.runtime.completion",
    "mvlm.runtime.examples",
    "mvlm.runtime.launch",
    "mvlm.runtime.log",
    "mvlm.runtime.storage",
    "mvlm.runtime.wording",
}
WHOLE_CONFIG = (
    "mvlm/check/",
    "mvlm/cli/",
    "mvlm/config/",
    "mvlm/training/fit/",
)
"""Code that may take a run's whole configuration; other code gets its own tables, or the model's blueprint."""
DATA_TOOLS_MAY = {
    "mvlm.__version__",
    "mvlm.config.shipped",
    "mvlm.data.images",
    "mvlm.data.loading.neighbours",
    "mvlm.data.samples.answers",
    "mvlm.data.samples.bpe",
    "mvlm.data.shards",
    "mvlm.errors",
    "mvlm.runtime",
}


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imported(tree: ast.AST, package: str, late: bool = False, typed: bool = True) -> Iterator[tuple[str, bool]]:
    """The name of every module in an import statement, and whether that stands inside a function.

    `from a import b` gives a.b; relative names are resolved against `package`.

    Args:
        typed: include imports that are only for annotations.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", late) for alias in node.names)
        elif isinstance(node, ast.expr):
            continue
        elif typed or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            inside = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from imported(node, package, inside, typed)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def problems(path: str, source: str) -> list[str]:
    """What is wrong with the imports and the length of a file of the product; `path` is relative to the root."""
    parts = Path(path).with_suffix("").parts
    package, owner = ".".join(parts[:-1]), ".".join(parts[:2])
    imports = list(imported(parsed(source), package))
    names = {name for name, _ in imports}
    own = {name for name in names if within(name, parts[0])}
    found = []
    if parts[-1] == "utils":
        found.append("it is called utils")
    if source.count("\n") > LONGEST:
        found.append(f"it has {source.count(chr(10))} lines")
    for library, homes in ONLY_IN.items():
        found += [f"imports {name}" for name in names if within(name, library) and path not in homes]
    if f"{SCHEMA}.Config" in names and not path.startswith(WHOLE_CONFIG):
        found.append("takes the whole Config")
    if owner in MAY_IMPORT:
        allowed = {"errors", "runtime.wording", "__version__", *MAY_IMPORT[owner]}
        found += [
            f"imports {name}" for name in own if "." in name and not any(within(name, f"mvlm.{one}") for one in allowed)
        ]
    if owner == "mvlm.data" and parts[2] in DATA_ORDER:
        above = [f"mvlm.data.{name}" for name in DATA_ORDER[DATA_ORDER.index(parts[2]) + 1 :]]
        found += [f"imports {name}" for name in own if any(within(name, one) for one in above)]
    if not path.startswith(tuple(IMPORTED_LATE)):
        late = {name for name, inside in imports if inside}
        late = {name for name in late if not any(within(name, one) for one in OPTIONAL) and "_triton." not in name}
        found += [f"imports {name} inside a function" for name in late]
    of_ray = {name for name in names if within(name, "ray")} - {RAY_DOCUMENTED}
    found += [f"imports {name}" for name in of_ray if "._" in name or within(name, "ray.train.v2")]
    if parts[0] in OURS and re.search(r"^(?! *(from|import) ).*\bray(\.\w+)*\._[a-z]", source, re.M):
        found.append("uses a private name of Ray's")
    foreign = {name for name in names if name.split(".")[0] in OURS} - own
    if parts[0] == "data_tools":
        foreign = {name for name in foreign if not any(within(name, module) for module in DATA_TOOLS_MAY)}
    if parts[0] == "cluster":
        foreign = {name for name in foreign if not any(within(name, module) for module in CLUSTER_MAY)}
    return found + [f"imports {name}" for name in foreign]


def product() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for name in OURS for path in (ROOT / name).rglob("*.py"))


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_every_file_stays_in_its_layer() -> None:
    found = {path: problems(path, read(path)) for path in product()}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_every_package_has_a_rule() -> None:
    packages = {".".join(Path(path).with_suffix("").parts[:2]) for path in product() if path.startswith("mvlm/")}
    assert packages - MAY_IMPORT.keys() == {"mvlm.__init__", "mvlm.__main__", "mvlm.cli", "mvlm.api"}


def test_packages_import_only_lower_ones() -> None:
    level = {package: place for place, packages in enumerate(ORDER) for package in packages}
    assert {f"mvlm.{package}" for package in level} == MAY_IMPORT.keys()
    for owner, allowed in MAY_IMPORT.items():
        package = owner.removeprefix("mvlm.")
        for name in allowed - {package}:
            below = level[name.partition(".")[0]] < level[package]
            assert below, f"{owner} may import {name}"


def cycles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other."""

    def reached(module: str) -> set[str]:
        found, waiting = set[str](), [module]
        while waiting:
            new = imports[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    reach = {module: reached(module) for module in imports}
    groups = [{other for other in reach[module] if module in reach[other]} for module in imports]
    return [group for at, group in enumerate(groups) if group and group not in groups[:at]]


def test_no_modules_import_each_other() -> None:
    """Not even inside functions or for annotations, except for the names that `mvlm` imports lazily."""
    paths = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in product()}
    imports: dict[str, set[str]] = {}
    for module, path in paths.items():
        package = path.rpartition("/")[0].replace("/", ".")
        names = {name for name, _ in imported(parsed(read(path)), package, typed=module != "mvlm")}
        found = {name if name in paths else name.rpartition(".")[0] for name in names}
        imports[module] = (found & paths.keys()) - {module}
    assert cycles(imports) == []


def test_the_check_finds_a_cycle() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"e"}, "e": set()}) == [{"b", "c"}]


@pytest.mark.parametrize(
    ("path", "source", "imports"),
    [
        ("mvlm/config/schema.py", "from mvlm.batch import Batch", "mvlm.batch.Batch"),
        ("mvlm/kernels/new.py", "import mvlm.config.schema", "mvlm.config.schema"),
        ("mvlm/kernels/new.py", "from mvlm.config import schema", "mvlm.config.schema"),
        ("mvlm/model/new.py", "from mvlm.training import engine", "mvlm.training.engine"),
        ("mvlm/model/new.py", "from mvlm.pretrained.load import Fit", "mvlm.pretrained.load.Fit"),
        ("mvlm/model/new.py", "from mvlm.runtime import hub", "mvlm.runtime.hub"),
        ("mvlm/checkpoint/new.py", "from mvlm.model.maskvlm import MaskVLM", "mvlm.model.maskvlm.MaskVLM"),
        ("mvlm/model/new.py", "def f():\n    import timm", "timm inside a function"),
        ("mvlm/model/new.py", "from ..data.loading import loader", "mvlm.data.loading.loader"),
        ("mvlm/data/new.py", "from mvlm.model.maskvlm import MaskVLM", "mvlm.model.maskvlm.MaskVLM"),
        ("mvlm/evaluate/new.py", "from mvlm.training.engine import Engine", "mvlm.training.engine.Engine"),
        ("mvlm/report/new.py", "import mvlm.training.fit", "mvlm.training.fit"),
        ("mvlm/training/new.py", "from mvlm.evaluate.task import TASKS", "mvlm.evaluate.task.TASKS"),
        ("mvlm/training/fit/run.py", "import deepspeed", "deepspeed"),
        ("mvlm/training/fit/run.py", "from torch import distributed", "torch.distributed"),
        ("mvlm/cli/new.py", "import torch.distributed as d", "torch.distributed"),
        ("mvlm/cli/new.py", "from data_tools.pipeline import shard", "data_tools.pipeline.shard"),
        ("mvlm/data/shards/new.py", "from mvlm.data.loading import order", "mvlm.data.loading.order"),
        ("data_tools/new.py", "from mvlm.data.samples.pairs import PairDataset", "mvlm.data.samples.pairs.PairDataset"),
        ("data_tools/new.py", "from mvlm.data.loading import loader", "mvlm.data.loading.loader"),
        ("data_tools/new.py", "from mvlm.data.samples import tokenizer", "mvlm.data.samples.tokenizer"),
        ("cluster/new.py", "from mvlm.config.schema import Run", "mvlm.config.schema.Run"),
        ("cluster/new.py", "from mvlm.runtime import dist", "mvlm.runtime.dist"),
        ("cluster/new.py", "from ray._private import state", "ray._private.state"),
        ("cluster/new.py", "from ray.train._internal import session", "ray.train._internal.session"),
        ("cluster/new.py", "from ray.train.v2.api.config import RunConfig", "ray.train.v2.api.config.RunConfig"),
    ],
)
def test_the_check_finds_a_forbidden_import(path: str, source: str, imports: str) -> None:
    assert problems(path, source) == [f"imports {imports}"]


def test_the_check_finds_a_forbidden_file_name_and_length_and_use_of_the_whole_configuration() -> None:
    for path in ("mvlm/data/new.py", "mvlm/estimate/new.py", "mvlm/pretrained/new.py", "mvlm/training/build.py"):
        assert problems(path, "from mvlm.config.schema import Config") == ["takes the whole Config"]
    assert problems("mvlm/data/utils.py", "") == ["it is called utils"]
    assert problems("mvlm/data/long.py", "\n" * 400) == ["it has 400 lines"]
    assert problems("cluster/new.py", "import ray\nray._private.state.nodes()") == ["uses a private name of Ray's"]


def test_the_check_accepts_what_is_allowed() -> None:
    assert (
        problems("mvlm/training/zero/start.py", "import deepspeed\nfrom mvlm.runtime import dist\nimport mvlm.errors")
        == []
    )
    assert problems("data_tools/new.py", "from mvlm.data.shards import schema\nfrom mvlm.errors import UserError") == []


def test_class_names_are_unique() -> None:
    homes: dict[str, list[str]] = {}
    for path in product():
        for node in ast.walk(parsed(read(path))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(path)
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_tests_and_benchmarks_import_names_that_exist() -> None:
    """mypy checks the product; here a name that has moved would otherwise be noticed only when the code runs."""
    paths = [path for name in ("tests", "benchmarks", "examples") for path in sorted((ROOT / name).rglob("*.py"))]
    assert len(paths) > 100
    assert [wrong for path in paths for wrong in missing(path.read_text(encoding="utf-8"), path.name)] == []
    assert missing("from mvlm.batch import Batch, Nothing", "new.py") == ["new.py: mvlm.batch.Nothing"]


IMPORTS = re.compile(rf"^ *from ((?:{'|'.join(OURS)})[\w.]*) import (\([^)]*\)|[\w, ]+)", re.MULTILINE)


def missing(source: str, path: str) -> list[str]:
    """Names that a file imports from our modules and that these do not define."""
    return [
        f"{path}: {module}.{name}"
        for module, names in IMPORTS.findall(source)
        if (has := defined(module)) is not None
        for name in re.findall(r"(?<!as )\b(?!as\b)\w+", re.sub("#.*", "", names))
        if name not in has
    ]


@cache
def defined(module: str) -> set[str] | None:
    """The names defined in a module; None for a package, which may have any."""
    place = ROOT / module.replace(".", "/")
    if place.is_dir():
        return None
    file = place.with_suffix(".py")
    found: set[str] = set()
    nodes: list[Any] = [parsed(file.read_text(encoding="utf-8"))] if file.exists() else []
    while nodes:
        node = nodes.pop()
        for name in ("body", "orelse", "handlers", "finalbody"):
            nodes += getattr(node, name, ()) if not isinstance(node, FUNCTIONS) else ()
        if isinstance(node, FUNCTIONS):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return found
