"""`mvlm serve` in a process of its own."""

import re
import signal
import time

from tests.ranks import Copy, mvlm


def start(*words, ignored=(), **environment):
    """Start `mvlm serve` with these words on a free port; the process, and its address once it listens.

    `ignored` are signals that it inherits as ignored, as the children of a background shell do with Ctrl-C's.
    """
    process = Copy(_serve, ignored, *map(str, words), "--port", "0", **environment)
    while not (found := re.search(r"http://\S+(?=\s)", process.stdout)):
        assert process.poll() is None, process.stdout + process.stderr
        time.sleep(0.02)
    return process, found.group()


def _serve(ignored, *words):
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, signal.SIG_IGN if number in ignored else handler)  # as at the start of Python
    return mvlm("serve", *words)
