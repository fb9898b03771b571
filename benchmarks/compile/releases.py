"""Compiled blocks under other releases of torch: python benchmarks/compile/releases.py FOLDER [RELEASE ...]

    python benchmarks/compile/releases.py /tmp/releases 2.10.0 2.15.0
    python benchmarks/compile/releases.py /tmp/releases --table        # only the table of results, into README.md

For each release, FOLDER gets an environment with that torch and its dependencies (some 7 GB on disk, with CUDA's
libraries); everything else comes from the environment that this command runs in. The tests that count graphs and
compilations and compare compiled and captured steps with eager ones run there; the outcome is kept as
results/RELEASE.json and the environment deleted. A release that has a result is skipped, so that the command can be
interrupted and repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.kept import code_version, put_between

ROOT = Path(__file__).parents[2]
RESULTS, README = Path(__file__).parent / "results", Path(__file__).parent / "README.md"
BEGIN, END = "<!-- releases -->\n\n", "\n\n<!-- end of releases -->"
RELEASES = "2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0"
TESTS = (
    "tests/training/test_compilation.py",
    "tests/training/test_capture.py",
    "tests/kernels/test_compiled.py::test_operators_can_be_traced",
)
PACKAGES = ("torch", "torchvision", "triton", "transformers", "timm", "deepspeed")


def make(folder: Path, release: str) -> Path:
    """The interpreter of an environment with this torch."""
    python, done = folder / "bin/python", folder / "done"
    if done.exists():
        return python
    venv.create(folder, clear=True, symlinks=True, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--progress-bar", "off", "--no-cache-dir", "--no-compile"]
    subprocess.run([*pip, f"torch=={release}"], check=True)
    # torchvision is numbered differently: 0.25 goes with torch 2.10.
    vision = f"torchvision==0.{int(release.split('.')[1]) + 15}.*"
    if subprocess.run([*pip, "--no-deps", vision]).returncode:
        subprocess.run([*pip, "--no-deps", "torchvision"], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    done.touch()
    return python


def outcome(python: Path, folder: Path) -> dict[str, Any]:
    """The versions of packages, and the result of each test."""
    ask = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {PACKAGES}}}))"
    versions = json.loads(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout)
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    words = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *TESTS]
    subprocess.run([python, "-m", "pytest", *words], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    tests: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        ended = next(
            (f"{child.tag}: {child.get('message', '')}" for child in case if child.tag != "system-out"), "passed"
        )
        tests[case.get("name", "")] = " ".join(ended.split())[:300]
    return {"python": platform.python_version(), "commit": code_version(), "versions": versions, "tests": tests}


def table() -> str:
    lines = ["| torch | Triton | passed | skipped | failed |", "|---|---|---|---|---|"]
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("[0-9]*.json")]
    for one in sorted(kept, key=lambda one: [int(n) for n in one["versions"]["torch"].split("+")[0].split(".")]):
        ended = list(one["tests"].values())
        failed = [name for name, how in one["tests"].items() if how.startswith(("failure", "error"))]
        skipped = sum(how.startswith("skipped") for how in ended)
        counts = ended.count("passed"), skipped, ", ".join(f"`{name}`" for name in failed) or "none"
        lines.append("| " + " | ".join(map(str, (one["versions"]["torch"], one["versions"]["triton"], *counts))) + " |")
    return "\n".join(lines)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path)
    words.add_argument("releases", nargs="*", default=RELEASES)
    words.add_argument("--table", action="store_true", help="only write the table")
    arguments = words.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for release in [] if arguments.table else arguments.releases:
        result, folder = RESULTS / f"{release}.json", arguments.folder / release
        if result.exists():
            continue
        found = outcome(make(folder, release), folder)
        result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder)
    put_between(README, BEGIN, END, table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
