"""Talking to Ray's job server, with its errors as sentences."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvlm.errors import ExitCode, UserError, first_line

from ..job import Job

ADDRESS = "RAY_API_SERVER_ADDRESS"
ACTIVE = ("PENDING", "RUNNING")
LOST = "LOST"
UNKNOWN = "status code 404"
"""Part of what the client raises if the server has answered that it knows no such job."""
POLL_SECONDS = 1.0
WITHIN = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's job server sets it for what it starts."""


def address(job: Job) -> str:
    """The dashboard's address; raises `UserError` if job and environment name none, or that of another server."""
    given = job.ray_address or os.environ.get(ADDRESS, "")
    if not given:
        raise UserError(
            f"There is no address of a Ray cluster: set job.ray_address, or {ADDRESS}, "
            "to that of its dashboard, such as http://127.0.0.1:8265."
        )
    if not given.startswith(("http://", "https://")):
        raise UserError(
            f"{given} is not the address of a Ray cluster's dashboard: set job.ray_address, or {ADDRESS}, to one "
            "such as http://127.0.0.1:8265."
        )
    return given


def connect(server: str) -> Any:
    """A client of the job server at an address.

    Raises:
        UserError: there is none, or no Ray in this Python.
    """
    try:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise UserError("There is no Ray in this Python: pip install 'ray[default,train]'.") from None
    try:
        with _named(server):
            return JobSubmissionClient(server)
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:  # RayError: without the token
        reason = first_line(error)
        raise UserError(
            f"No job server of Ray answers at {server} ({reason}): check the address, and "
            "RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH if the cluster requires a token."
        ) from None


@contextlib.contextmanager
def _named(server: str) -> Iterator[None]:
    """Make Ray use the address that it is given, over which its variable would take precedence."""
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = server
    try:
        yield
    finally:
        os.environ.pop(ADDRESS)
        if before is not None:
            os.environ[ADDRESS] = before


@contextlib.contextmanager
def refusals_as_mistakes() -> Iterator[None]:
    """Turn the server's answer to a request that it refuses into a `UserError`."""
    try:
        yield
    except RuntimeError as error:  # from the client, for whatever the server answers
        raise UserError(f"Ray's job server refuses it: {first_line(error)}") from None
    except OSError as error:  # from requests, if it does not answer, or not in time
        reason = first_line(error)
        raise UserError(f"Ray's job server gives no answer ({reason}): see whether the cluster is up.") from None


def job_state(server: Any, address: str, job_id: str) -> tuple[str, int | None]:
    """Ray's word for the state of a job, "" if it does not know it, and the exit code of its driver.

    If the head was lost with the driver and is back with Ray's notes about its jobs, Ray's word would be RUNNING until
    another job is submitted; here it is LOST.

    Raises:
        UserError: the server does not answer, or cannot say, as when the head's own store has died.
    """
    with refusals_as_mistakes():
        try:
            info = server.get_job_info(job_id)
        except RuntimeError as error:
            if UNKNOWN not in str(error):
                raise
            return "", None
    state = str(info.status.value)
    if state == "RUNNING" and info.driver_node_id and _is_dead(address, info.driver_node_id):
        return LOST, None
    return state, info.driver_exit_code


def refuse_second(address: str, job_id: str, name: str, record: Path) -> None:
    """Make sure that what was submitted last has ended.

    Args:
        record: the file that says where it went.

    Raises:
        UserError: it runs, or no server answers that knows.
    """
    try:
        server = connect(address)
    except UserError:
        raise UserError(
            f"{name} was last submitted to {address}, where no job server of Ray answers: bring that up, or, "
            f"if the cluster is gone, move {record} away."
        ) from None
    if job_state(server, address, job_id)[0] in ACTIVE:
        raise UserError(f"{name} is running as {job_id}: cancel it first, or give this one another name.")


def _is_dead(address: str, node_id: str) -> bool:
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        with _named(address):  # with this filter, Ray takes the other nodes for missing
            nodes = list_nodes(address, [("node_id", "=", node_id)], raise_on_missing_output=False)
        return any(node.state == "DEAD" for node in nodes)
    except RayStateApiException:  # it does not answer in time
        return False


def outcome(server: Any, job_id: str) -> int:
    """0; within a job of Ray, the exit code of what it has submitted, once that has ended.

    Otherwise a RayJob of Kubernetes would be over as soon as its work is queued. SIGTERM stops what was submitted.
    """
    if WITHIN not in os.environ:
        return ExitCode.DONE
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    while True:
        with contextlib.suppress(OSError):  # a dashboard that is restarting; this process runs on the head itself
            if told:
                server.stop_job(job_id)
                told.clear()
            info = server.get_job_info(job_id)
            if info.status.value not in ACTIVE:
                succeeded = info.status.value == "SUCCEEDED"
                return ExitCode.DONE if succeeded else info.driver_exit_code or ExitCode.REQUEUE
        time.sleep(POLL_SECONDS)


def import_path() -> str:
    """PYTHONPATH with which a Ray that was started elsewhere finds this package."""
    outermost = sys.modules[__package__.partition(".")[0]]
    return os.pathsep.join(
        [str(Path(str(outermost.__file__)).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def driver_log(client: Any, job_id: str) -> str:
    """What a job's entry point has printed; "" for one that has not begun."""
    try:
        return client.get_job_logs(job_id)
    except RuntimeError:
        return ""


def follow_driver_log(client: Any, job_id: str) -> None:
    """Print a job's log as it grows, until the job ends."""

    async def follow() -> None:
        async for text in client.tail_job_logs(job_id):
            print(text, end="", flush=True)

    with refusals_as_mistakes():
        asyncio.run(follow())
