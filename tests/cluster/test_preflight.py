"""Preflights on three real nodes, in namespaces: all well, a slow link, and nodes that are absent, cut off or dead."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import JOB
from tests.conftest import ROOT

HERE = Path(__file__).parent
NODES = ("n1", "n2", "n3")
ENVIRONMENT = {
    "NODES_NET": "10.233.0",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}
NEEDED = ("unshare", "nsenter", "ip", "tc", "slurmctld", "slurmd", "srun", "sshd", "ssh-keygen")
MISSING = [name for name in NEEDED if shutil.which(name, path=ENVIRONMENT["PATH"]) is None]
PATIENCE = 150
SLOW_LINK = ("tc", "qdisc", "add", "dev", "p-n3", "root", "tbf", "rate", "20mbit", "burst", "64kb", "latency", "100ms")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make namespaces"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


class Nodes:
    """A controller and three nodes with SLURM on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def script(self, name: str, verb: str, *words: object) -> str:
        command = [str(HERE / name), verb, str(self.folder), *map(str, words)]
        log = self.folder / "script.log"  # daemons inherit it, so it must be no pipe
        with open(log, "w") as out:
            code = subprocess.run(
                command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=out, stderr=out, timeout=PATIENCE
            ).returncode
        return f"{log.read_text()}exit code {code}\n"

    def slurm(self, *overrides: str) -> str:
        job = self.folder / "job.toml"
        job.write_text(JOB.format(logs=self.folder / "logs").replace("processes_per_node = 2", "nodes = 3"))
        words = ["preflight", job, "--on", "slurm", f"run.dir={self.folder / 'run'}", *overrides]
        return self.script("slurm_cluster.sh", "on", sys.executable, "-m", "cluster", *words)

    def start(self, name: str, timeout: int, without: str = "", run: object = None) -> list[subprocess.Popen]:
        """A rank on each node but `without`; its output goes to the file `name`.NODE."""
        words = ["-m", "mvlm", "preflight", "mvlm/configs/tiny.toml", "--timeout", str(timeout)]
        words += ["--json", str(self.folder / f"{name}.json"), f"run.dir={run or self.folder / 'run'}"]
        ranks = []
        for rank, node in enumerate(NODES):
            if node != without:
                place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "n1"}
                command = [HERE / "nodes.sh", "on", self.folder, node, sys.executable, *words]
                with open(self.folder / f"{name}.{node}", "w") as out:
                    environment = os.environ | ENVIRONMENT | place | {"MASTER_PORT": "29500"}
                    ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out))
        return ranks

    def output(self, name: str, node: str = "n1") -> str:
        return (self.folder / f"{name}.{node}").read_text()


def codes(ranks: list[subprocess.Popen]) -> list[int]:
    return [rank.wait(PATIENCE) for rank in ranks]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("preflight"))
    up = nodes.script("slurm_cluster.sh", "up", 3, 1)
    try:
        assert "exit code 0" in up, up
        yield nodes
    finally:
        nodes.script("slurm_cluster.sh", "down")


def test_all_is_well_on_nodes_that_slurm_gives(nodes):
    said = nodes.slurm("job.nodes=2", "job.network=ethernet", "job.environment.NCCL_DEBUG=INFO")
    assert said.endswith("preflight: all is well\nexit code 0\n"), said
    assert "GLOO_SOCKET_IFNAME=eth0 NCCL_DEBUG=INFO NCCL_NET=Socket NCCL_SOCKET_IFNAME=^lo,docker," in said
    assert "ranks: 2  nodes: 2  rounds of pairs: 1" in said and "all 2 ranks: " in said


@pytest.mark.campaign
def test_a_dead_node_that_slurm_still_believes_alive_is_named(nodes):
    nodes.script("nodes.sh", "kill", "n3")
    said = nodes.slurm()
    assert "cluster: SLURM does not reach n3: have it repaired" in said and said.endswith("exit code 1\n"), said
    nodes.script("slurm_cluster.sh", "boot", "n3")


def test_a_slow_link_and_an_unshared_run_folder_are_named(nodes):
    nodes.script("nodes.sh", "on", "sw", *SLOW_LINK)
    ranks = nodes.start("slow", 60, run="/run/mvlm")  # in memory of each node's own
    assert codes(ranks) == [1, 1, 1]
    nodes.script("nodes.sh", "on", "sw", "tc", "qdisc", "del", "dev", "p-n3", "root")
    assert "mvlm: The run folder /run/mvlm of rank 0 on n1 is not the one that is seen on n2" in nodes.output("slow")
    assert "also: n3 (rank 2) is slow: 0.00" in nodes.output("slow"), nodes.output("slow")
    report = json.loads((nodes.folder / "slow.json").read_text())
    speeds = {tuple(sorted(pair["nodes"])): pair["bytes_per_s"] for pair in report["pairs"]}
    assert len(report["findings"]) == 2 and speeds.keys() == {("n1", "n2"), ("n1", "n3"), ("n2", "n3")}
    assert max(speeds["n1", "n3"], speeds["n2", "n3"]) < 20e6 / 8 * 1.5 < speeds["n1", "n2"] / 10
    assert [node["host"] for node in report["nodes"]] == list(NODES)


@pytest.mark.campaign
def test_an_absent_node_is_named_within_the_timeout(nodes):
    ranks = nodes.start("absent", 10, without="n3")
    assert codes(ranks) == [1, 1]
    assert "mvlm: rank 2 did not join within 10 s, as n1, n2 did" in nodes.output("absent"), nodes.output("absent")


def test_a_node_that_falls_silent_is_named_and_ends_itself(nodes):
    ranks = nodes.start("cut", 8)
    deadline = time.monotonic() + PATIENCE
    while "ranks: 3" not in nodes.output("cut"):
        assert time.monotonic() < deadline and ranks[0].poll() is None, nodes.output("cut")
        time.sleep(0.05)
    nodes.script("nodes.sh", "cut", "n3")
    began = time.monotonic()
    assert codes(ranks[:2]) == [1, 1]
    assert time.monotonic() - began < 60
    assert "mvlm: n3 (rank 2) joined and then stopped" in nodes.output("cut"), nodes.output("cut")
    assert codes(ranks[2:]) == [1]
    assert "mvlm: rank 2 on n3 does not reach rank 0 at n1:29500" in nodes.output("cut", "n3")
    nodes.script("nodes.sh", "heal", "n3")
