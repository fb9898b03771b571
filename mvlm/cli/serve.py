"""Show a trained model on a web page: search a corpus, mask patches or words and see them filled in.

examples:
  mvlm serve runs/tiny
  mvlm serve runs/tiny --index corpus.index --port 8080

Ctrl-C stops it.
"""

from __future__ import annotations

import argparse
import ipaddress
import signal
import socket
from pathlib import Path

import uvicorn

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.cli.places import require_index
from mvlm.errors import UserError
from mvlm.runtime.arguments import within

SHUTDOWN_S = 3
"""How long answers in progress may take when the server is stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument("--index", type=Path, metavar="INDEX", help="a folder made by `mvlm index` to search")
    parser.add_argument("--host", default="127.0.0.1", metavar="HOST", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port",
        type=within(int, lambda value: 0 <= value <= 65535, "0 to 65535"),
        default=8000,
        metavar="PORT",
        help="port, 0 = any free one (default: 8000)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until stopped; returns the exit code.

    Raises:
        UserError: the checkpoint or the index cannot be used, or the address is in use or not this machine's.
    """
    _stop_ignoring_signals()
    find_checkpoint(args.checkpoint)  # before imports that take seconds
    if args.index:
        require_index(args.index)
    with _listen(args.host, args.port) as listener:
        from mvlm.pretrained.runs import load_run
        from mvlm.runtime import dist
        from mvlm.search.find import ImageIndex
        from mvlm.serve.answers import Answers
        from mvlm.serve.app import make_app
        from mvlm.serve.connection import CONNECTIONS, BoundedConnection
        from mvlm.serve.gate import Gate

        device = dist.device()
        loaded = load_run(args.checkpoint, device)
        answers = Answers(loaded, ImageIndex(args.index, loaded) if args.index else None, device)
        app = make_app(answers, Gate(), {"localhost", args.host, socket.gethostname(), socket.getfqdn()})
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            http=BoundedConnection,
            backlog=CONNECTIONS,  # all may be accepted at once, each as a file descriptor
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        try:
            print(f"{args.checkpoint}, step {loaded.step}, at {_address(listener)} (Ctrl-C ends it)", flush=True)
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            print("Ended.")
    return 0


def _stop_ignoring_signals() -> None:
    """Let SIGINT and SIGTERM end this process even if it has inherited them as ignored, as in a shell's background."""
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, default)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, opened before the model is loaded, which takes long."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        return listener
    except OSError as error:
        raise UserError(
            f"mvlm serve cannot listen at {host} port {port} ({error}): give another --port or --host."
        ) from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"http://{host}:{port}"
