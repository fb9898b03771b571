"""What a rank says when it has lost another."""

import pytest

from mvlm.cli.train import _cause

PAIR = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] "
ADVICE = (
    ". This is typically caused by a remote worker hanging or bugs in the application. Check the logs of the remote "
    "worker before reporting an error. GLHF! 🏖️"
)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            f"{PAIR}Read error [127.0.0.1]:131: Connection reset by peer{ADVICE}",
            "Read error [127.0.0.1]:131: Connection reset by peer",
        ),
        (
            "[../gloo/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete",
            "Timed out waiting 1800000ms for recv operation to complete",
        ),
        (
            "NCCL error: remote process exited or there was a network error.\nMore",
            "NCCL error: remote process exited or there was a network error",
        ),
    ],
)
def test_the_cause_is_given_without_the_line_of_the_librarys_source(error: str, cause: str) -> None:
    assert _cause(RuntimeError(error)) == cause
