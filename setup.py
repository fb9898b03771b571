"""What is installed: of a wheel the package `mvlm` alone, with everything that a checkout has beside it inside.

`cluster` and `data_tools` are names too common for other people's site-packages, so that a wheel has them as
`mvlm.cluster` and `mvlm.data_tools`. An editable installation is the checkout itself, where they keep their places.
"""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

IS_CHECKOUT = "editable_wheel" in sys.argv
OPTIONAL = {"ray", "fastapi", "uvicorn", "pytest"}
"""Packages of requirements.txt that an installation leaves to its extras, or to those who run the tests."""

needed = [line.partition("#")[0].strip() for line in Path("requirements.txt").read_text().splitlines()]
needed = [line for line in needed if line and re.split(r"[\[<>=~! ]", line)[0] not in OPTIONAL]
if IS_CHECKOUT:
    packages, folders, prefix = find_packages(include=["mvlm*", "data_tools*", "cluster*"]), {}, ""
else:
    beside = ["data_tools", *(f"data_tools.{name}" for name in find_packages("data_tools"))]
    beside += ["cluster", *(f"cluster.{name}" for name in find_packages("cluster"))]
    folders = {f"mvlm.{name}": name.replace(".", "/") for name in [*beside, "ds_configs", "examples"]}
    packages, prefix = [*find_packages(include=["mvlm*"]), *folders], "mvlm."

setup(
    packages=packages,
    package_dir=folders,
    package_data={
        "mvlm": [
            "configs/*.toml",
            "configs/*/*.toml",
            "configs/*.json",
            "report/*.html",
            "export/*.md",
            "serve/page/*",
        ],
        f"{prefix}cluster": ["*.toml", "pipelines/*.toml", "slurm/job.sbatch", "examples/*.toml", "examples/*/*"],
        **({} if IS_CHECKOUT else {"mvlm.ds_configs": ["*.json"], "mvlm.examples": ["*.toml", "*.tar", "*.txt"]}),
    },
    install_requires=needed,
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # as the extensions in pyproject.toml
    entry_points={
        "console_scripts": [
            "mvlm = mvlm.__main__:run",
            f"mvlm-data = {prefix}data_tools.__main__:main",
            f"mvlm-cluster = {prefix}cluster.__main__:main",
        ],
        "lmms_eval.models": ["mvlm = mvlm.export.lmms_eval:MANIFEST"],
    },
)
