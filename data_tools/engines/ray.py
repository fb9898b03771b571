"""The ordered map on Ray: a running cluster, or one started on this machine for the purpose."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from mvlm.errors import UserError, first_line

from .chunks import HELD, RETRIES, apply, chunks, in_order

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = 10.0  # seconds for a machine to answer
JOINING = 120.0  # seconds for a process to join Ray
LEAST_STORE = 80_000_000  # bytes of Ray's object store, which by default takes a third of the memory
CHUNK_ROOM = 24_000_000  # bytes of store for each chunk that may be held: several times its usual size


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[None]:
    """Connect to the Ray at `address` (or $RAY_ADDRESS), or start one with `workers` processors, for the block.

    Raises:
        UserError: there is no Ray at that address, or it did not come up in time.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("There is no Ray in this Python: pip install 'mvlm[ray]', or leave out --engine ray.") from None

    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    stop = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _require_listener(address)
            _require_ray(address)
            # Its machines may not have this code; they get it with the job.
            code = {"py_modules": sorted({_folder(__package__), _folder("mvlm")})}
            ray.init(address, runtime_env=code, **quiet)
        else:
            store = max(LEAST_STORE, HELD * workers * CHUNK_ROOM)
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            ray.init("local", num_cpus=workers, include_dashboard=False, object_store_memory=store, **quiet)
    except (Exception, SystemExit) as error:  # Ray raises bare ones if a part of it does not come up in time
        reason = first_line(error)
        advice = "check --ray-address" if address else "try again when the machine is less busy, or without Ray"
        raise UserError(f"No Ray at {address or 'this machine'} ({reason}): {advice}.") from None
    signal.signal(signal.SIGTERM, stop)  # Ray has replaced it with one that aborts this process
    try:
        yield
    finally:
        ray.shutdown()


def _folder(package: str) -> str:
    """The folder of the top-level package that a package belongs to."""
    return str(Path(str(sys.modules[package.partition(".")[0]].__file__)).parent)


def _require_listener(address: str) -> None:
    """Raises `OSError` if nothing listens: Ray itself would try for minutes, and then end this process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()


def _require_ray(address: str) -> None:
    """Raises `OSError` if something other than Ray listens: trying to join it would end this process."""
    words = [sys.executable, "-c", f"import ray; ray.init({address!r}, log_to_driver=False, logging_level='error')"]
    try:
        tried = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=JOINING)
    except subprocess.TimeoutExpired:
        raise OSError(f"it was not joined within {JOINING:.0f} s") from None
    if tried.returncode:
        said = (line for line in reversed(tried.stderr.splitlines()) if line.strip())
        raise OSError(next(said, f"joining it ends with {tried.returncode}").strip()[:200])


def _apply_in(folder: str, function: Callable[[T], R], chunk: list[T]) -> list[R]:
    """Run a chunk in the command's folder, where relative paths lead: Ray's workers are in that of `ray start`."""
    with suppress(OSError):  # on a machine without that folder, absolute paths may still work
        os.chdir(folder)
    return apply(function, chunk)


def ray_map(
    function: Callable[[T], R], items: Iterable[T], size: Callable[[T], int], workers: int
) -> Iterator[tuple[T, R]]:
    """Yield `(item, function(item))` in the order of `items`; at most three chunks per worker are under way.

    A task whose worker or machine dies is started again elsewhere.

    Raises:
        UserError: a task died again and again.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    task: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_apply_in)
    shared, folder = ray.put(function), os.getcwd()

    def submit(chunk: list[T]) -> Any:
        return task.remote(folder, shared, chunk)

    def result(chunk: list[T], handle: Any) -> list[R]:
        try:
            return ray.get(handle)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            reason = first_line(error)
            raise UserError(f"Ray lost the work at or near {chunk[0]} ({reason}): look at the cluster.") from None

    yield from in_order(chunks(items, size), submit, result, HELD * workers)
