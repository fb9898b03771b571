"""Which implementation an operation uses, and what it reports about the others."""

from __future__ import annotations

import pytest
import torch

from mvlm.errors import UserError
from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op
from mvlm.kernels.ops import OPS, example
from mvlm.runtime import log  # noqa: F401 - its handler prints what is reported


def make_op() -> Op:
    return Op(
        "double",
        Implementation("absent", lambda x: x * 2, probe=lambda: "no such device"),
        Implementation("even", lambda x: x * 2, accepts=lambda x: "it is odd" if x % 2 else None),
        Implementation("slow", lambda x: x * 2, pays=lambda x: "another is faster"),
        Implementation("torch", lambda x: x + x),
    )


def test_the_first_implementation_that_is_available_suitable_and_fast_runs() -> None:
    op = make_op()
    assert [op(4), op(3), op(6)] == [8, 6, 12]
    assert op.calls == {"even": 2, "torch": 1}


def test_arguments_that_a_better_implementation_cannot_take_are_reported_once(capsys: pytest.CaptureFixture) -> None:
    op = make_op()
    for number in (2, 3, 5):
        op(number)
    assert capsys.readouterr().err == "mvlm: double runs as torch (not as even: it is odd).\n"


def test_an_implementation_for_another_precision_is_not_reported(capsys: pytest.CaptureFixture) -> None:
    x_RI, weight_OI, bias_O = (torch.ones(shape, dtype=torch.bfloat16) for shape in ((64, 512), (512, 512), (512,)))
    OPS["linear"](x_RI, weight_OI, bias_O)
    assert capsys.readouterr().err == ""


def test_an_implementation_chosen_by_name_runs_even_if_another_is_faster() -> None:
    op = make_op()
    op.choose("slow")
    op(4)
    assert op.calls == {"slow": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"kernels\.double = 'absent' cannot run here \(no such device\): choose auto or another\."),
        ("fast", r"kernels\.double = 'fast' is not known: choose auto, absent, even, slow, torch\."),
    ],
)
def test_an_unavailable_or_unknown_choice_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_op().choose(name)


def test_a_named_implementation_does_not_fall_back() -> None:
    op = make_op()
    op.choose("even")
    with pytest.raises(UserError, match=r"kernels\.double = 'even' cannot compute this \(it is odd\)"):
        op(3)


def test_a_machine_is_probed_once() -> None:
    probed = []
    op = Op("x", Implementation("here", lambda: 1, probe=lambda: probed.append(1)), Implementation("torch", lambda: 1))
    op()
    op()
    op.choose("here")
    op()
    assert len(probed) == 1


def test_an_implementation_that_another_rank_lacks_is_left_out_of_later_calls() -> None:
    op = make_op()
    op(4)
    op.rule_out("even", "another rank lacks it")
    op(4)
    assert op.calls == {"even": 1, "torch": 1}


def test_arguments_that_no_implementation_accepts_are_refused_with_every_reason() -> None:
    op = Op("x", Implementation("only", lambda x: x, accepts=lambda x: "too long"))
    with pytest.raises(UserError, match=r"No implementation of x takes this \(only: too long\)"):
        op([1])


def test_compiled_code_calls_it_without_a_graph_break() -> None:
    op = Op("double", Implementation("torch", lambda x: x + x))
    compiled = torch.compile(lambda x: op(x) + 1, backend="eager", fullgraph=True)
    assert compiled(torch.tensor(2.0)) == 5


@pytest.mark.parametrize("flags", ["GenuineIntel avx512f", "GenuineIntel amx_bf16", "AuthenticAMD avx512f avx512_bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["attention", "linear"])
def test_a_layers_choice_on_any_cpu_compiles_without_a_graph_break(
    name: str, dtype: torch.dtype, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset(flags.split()))
    arguments = example(name, torch.device("cpu"), dtype)
    if name == "attention":  # the few keys of a text are a special case
        query, key, value = arguments
        arguments = query, key[:, :, :8], value[:, :, :8]
    expected = OPS[name](*arguments)  # which also probes the machine
    found = torch.compile(OPS[name], backend="eager", fullgraph=True)(*arguments)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["attention", "linear"])
def test_implementations_for_cpus_are_not_reported_elsewhere(
    name: str, dtype: torch.dtype, capsys: pytest.CaptureFixture
) -> None:
    arguments = example(name, torch.device("meta"), dtype)
    assert OPS[name].first(*arguments).name in ("sdpa", "torch")
    assert capsys.readouterr().err == ""
    OPS[name].choose("fp32")
    try:
        with pytest.raises(UserError, match=r"fp32' cannot compute this \(it runs on CPUs\)"):
            OPS[name](*arguments)
    finally:
        OPS[name].choose("auto")
