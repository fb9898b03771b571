"""Probes of SLURM and Ray: whether they are here and answer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

from mvlm.check.folders import Folders
from mvlm.check.report import Finding, absent, broken, works
from mvlm.errors import first_line
from mvlm.runtime.imports import installed

SINFO_SECONDS = 10.0
CONNECT_SECONDS = 5.0
STATUS_SECONDS = 60.0
UNCONFIGURED = "configuration source"
"""Part of what SLURM's commands complain of on a machine that belongs to no cluster."""
ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


def find_slurm(folders: Folders) -> Iterator[Finding]:
    path = shutil.which("sinfo")
    if path is None:
        yield absent("slurm", "SLURM's commands are not installed; only --on slurm needs them")
        return
    try:
        done = subprocess.run(
            [path, "--noheader", "--Node", "--format=%N|%P|%T"], capture_output=True, text=True, timeout=SINFO_SECONDS
        )
    except subprocess.TimeoutExpired:
        says = f"sinfo gave no answer within {SINFO_SECONDS:.0f} s"
        yield broken("slurm", says, "see whether SLURM's controller is up, with `scontrol ping`")
        return
    except OSError as error:
        yield broken("slurm", f"{path} cannot be run ({first_line(error)})", "reinstall SLURM's commands")
        return
    if done.returncode == 0:
        yield _nodes(done.stdout)
        return
    complaint = (
        first_line(done.stderr.strip().splitlines()[-1]) if done.stderr.strip() else f"exit code {done.returncode}"
    )
    if UNCONFIGURED in complaint and not any(name.startswith("SLURM_") for name in os.environ):
        says = f"SLURM's commands are here, but configured for no cluster ({complaint})"
        yield absent("slurm", says, "set SLURM_CONF to have one")
        return
    yield broken(
        "slurm",
        f"sinfo fails ({complaint})",
        "see SLURM_CONF, and whether the controller that it names is up, with `scontrol ping`",
    )


def _nodes(said: str) -> Finding:
    rows = [line.split("|") for line in said.splitlines() if line.count("|") == 2]
    states = Counter({node: state for node, _, state in rows}.values())  # a node has a row for each of its partitions
    partitions = sorted({partition.rstrip("*") for _, partition, _ in rows})
    nodes = ", ".join(f"{count} {state}" for state, count in states.most_common()) or "no nodes"
    facts = {"partitions": partitions, "nodes": dict(states)}
    return works("slurm", f"SLURM answers: partitions {', '.join(partitions)}; {nodes}", facts=facts)


def find_ray(folders: Folders) -> Iterator[Finding]:
    version = installed("ray")
    if not version:
        yield absent("ray", "Ray is not installed", "python -m pip install 'ray[default,train]' for --on ray")
        return
    given = {name: os.environ[name] for name in ADDRESSES if os.environ.get(name)}
    if not given:
        yield works("ray", f"Ray {version} is installed; no address of a cluster is set, and only --on ray needs one")
    for name, address in given.items():
        yield _answers(name, address, version)


def _answers(name: str, address: str, version: str) -> Finding:
    kind = urlsplit(address).scheme if "://" in address else address
    failure = None if kind in ("local", "auto") else _connect(address)
    # A client server need only take connections: asking more of it would start actors.
    if failure is None and kind not in ("local", "ray"):
        failure = _dashboard(address, version) if kind in ("http", "https") else _status(address)
    if failure:
        remedy = f"start that cluster, or set {name} to one that is up"
        return broken("ray", f"{name}={address} does not answer ({failure})", remedy)
    return works("ray", f"Ray {version} reaches {name}={address}")


def _connect(address: str) -> str | None:
    """Why no connection can be made, or None: told within seconds, whereas Ray's own client tries for a minute."""
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = place.port or {"http": 80, "https": 443, "ray": 10001}.get(place.scheme)
    except ValueError:
        port = None
    if not place.hostname or not port:
        return "it is not an address: give host:port, ray://host:port or http://host:port"
    try:
        socket.create_connection((place.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        return first_line(error)
    return None


def _dashboard(address: str, version: str) -> str | None:
    """What is wrong with a job server, or None, by its own client, which sends the token if one is set."""
    from ray.job_submission import JobSubmissionClient

    try:
        theirs = JobSubmissionClient(address).get_version()
    except Exception as error:  # it raises many kinds
        return first_line(error)
    return None if theirs == version else f"it is of Ray {theirs}, and {version} is installed here"


def _status(address: str) -> str | None:
    """What is wrong with a cluster, or None, by `ray status`."""
    words = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=STATUS_SECONDS)
    except subprocess.TimeoutExpired:
        return f"`ray status` gave no answer within {STATUS_SECONDS:.0f} s"
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return first_line(lines[-1]) if lines else f"`ray status` ends with {done.returncode}"
