"""`mvlm kernels` as a user runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from mvlm.__main__ import main
from mvlm.kernels.probes import cpu_gains_by_bf16
from tests.conftest import ROOT, run_command
from tests.ranks import mvlm, run_ranks

TINY_TOML = str(ROOT / "mvlm/configs/tiny.toml")


def test_it_prints_which_implementation_is_taken_and_why_each_other_one_is_not(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    done = run_ranks(mvlm, "kernels", "--json", str(out))
    assert done.returncode == 0, done.stderr
    in_bf16 = "products" if cpu_gains_by_bf16() else "fp32"
    assert f"attention: in fp32 sdpa; in bf16 {in_bf16}\n" in done.stdout
    assert "  apex\n    not taken: " in done.stdout
    operations = json.loads(out.read_text())["operations"]
    assert {"attention", "linear", "gelu_linear", "layer_norm", "optimizer"} <= operations.keys()
    for operation in operations.values():
        implementations = operation["implementations"]
        for precision, taken in operation["taken"].items():
            assert implementations[taken]["version"]
            without_reason = [name for name, each in implementations.items() if not each["not_taken"].get(precision)]
            assert without_reason == [taken]
    assert operations["optimizer"]["implementations"]["torch"]["version"] == torch.__version__


@pytest.mark.campaign
def test_it_follows_the_configuration_of_a_run() -> None:
    done = run_ranks(mvlm, "kernels", TINY_TOML, "kernels.attention=products")
    assert "attention: products\n" in done.stdout
    assert "    not taken: products is asked for\n" in done.stdout


def test_an_unknown_implementation_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", TINY_TOML, "kernels.attention=flash"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1] == (
        "mvlm: kernels.attention = 'flash' is not known: choose auto, cudnn, fa3, efficient, fp32, products, sdpa."
    )


def test_it_does_not_need_deepspeed() -> None:
    """A machine's kernels can be tried before everything is installed."""
    absent = "import sys; sys.modules['deepspeed'] = None; from mvlm.__main__ import main; sys.exit(main(['kernels']))"
    done = run_command([sys.executable, "-c", absent])
    assert done.returncode == 0, done.stderr
    assert "optimizer: torch\n" in done.stdout
    assert "  deepspeed\n    not taken: deepspeed is not installed\n" in done.stdout
