"""The findings of a preflight, and what causes each."""

import dataclasses
import json
import shutil

import pytest

from mvlm.check.nodes import tables
from mvlm.check.nodes.check import Survey, nodes_of
from mvlm.check.nodes.fabric import NodeFabric, read_fabric
from mvlm.check.nodes.facts import RankFacts, expected_hosts
from mvlm.check.nodes.tournament import Speed, Standings
from mvlm.check.nodes.verdict import findings

FACTS = RankFacts("", {"torch": "2.13", "mvlm": "1.0"}, "NVIDIA H100", 2, 1000.0, int(1e12), 7e14)


@pytest.fixture
def found():
    """Three nodes of two GPUs with nothing wrong."""
    nodes = nodes_of({rank: f"n{1 + rank // 2}" for rank in range(6)})
    facts = {rank: dataclasses.replace(FACTS, host=node.host) for node in nodes for rank in node.ranks}
    survey = Survey(6, 60.0, {}, facts, nodes, Standings(3), whole=Speed(4e10, 2e-5))
    for pair in ((0, 1), (0, 2), (1, 2)):
        survey.standings.add(pair, Speed(5e10, 1e-5))
    return survey


def change(found, rank, **values):
    found.facts[rank] = dataclasses.replace(found.facts[rank], **values)


def test_healthy_nodes_have_no_findings(found):
    assert findings(found) == []


@pytest.mark.parametrize(
    ("rank", "values", "said"),
    [
        (4, {"versions": {"torch": "2.9", "mvlm": "1.0"}}, "n3 (ranks 4-5) has torch 2.9 where most have 2.13"),
        (4, {"versions": {"mvlm": "1.0"}}, "n3 (ranks 4-5) has torch none where most have 2.13"),
        (2, {"device": "NVIDIA A100"}, "n2 (ranks 2-3) has devices 2 x NVIDIA A100 where most have 2 x NVIDIA H100"),
        (0, {"devices": 1}, "n1 (ranks 0-1) has devices 1 x NVIDIA H100"),
        (5, {"free_bytes": 10}, "n3 (ranks 4-5) has less than 1 GB free at run.dir"),
        (3, {"flops": 5e14}, "n2 (rank 3) computes at 500 TFLOP/s, and the median rank at 700"),
        (1, {"clock": 940.0}, "The clock of n1 is -60 s off the others'"),
    ],
)
def test_a_node_that_differs_from_the_others_is_named(found, rank, values, said):
    change(found, rank, **values)
    (sentence,) = findings(found)
    assert said in sentence


def test_small_differences_are_tolerated(found):
    change(found, 3, flops=6e14, clock=1001.0, free_bytes=int(2e9))
    assert findings(found) == []


def test_a_slow_node_is_named_with_its_speed(found):
    found.standings.speeds |= {(0, 2): Speed(1e10, 1e-5), (1, 2): Speed(2e10, 1e-5)}
    (sentence,) = findings(found)
    assert sentence.startswith("n3 (ranks 4-5) is slow: 20 GB/s in its best pair, and the median node 50")


def test_missing_ranks_are_named_by_host_if_it_is_known(found):
    found.missing = {1: "", 2: "n2", 3: "n2", 5: ""}
    (sentence,) = findings(found)
    assert sentence.startswith("n2 (ranks 2-3) and ranks 1, 5 did not join within 60 s, as n1, n2, n3 did")


def test_the_most_serious_finding_comes_first(found):
    found.standings.silent = {1}
    change(found, 4, clock=0.0)
    sentences = findings(found)
    assert sentences[0].startswith("n2 (ranks 2-3) joined and then stopped") and "clock of n3" in sentences[1]


def test_a_rank_0_that_nobody_answers_suspects_itself(found):
    found.standings.silent = {1, 2}
    assert "No other node answers n1" in findings(found)[0]


def test_a_failing_link_is_distinguished_from_an_isolated_node(found):
    found.standings.speeds = {(0, 1): Speed(5e10, 1e-5)}
    found.standings.failures = {(1, 2): "timed out"}
    assert findings(found)[0].startswith("n2 (ranks 2-3), n3 (ranks 4-5) do not reach each other (timed out)")
    found.standings.failures[0, 2] = "refused"
    (sentence,) = findings(found)
    assert sentence.startswith("n3 (ranks 4-5) respond but exchange nothing with any other node")


def test_many_nodes_are_counted_instead_of_listed(found):
    found.nodes = nodes_of({rank: f"n{rank}" for rank in range(6, 30)})
    found.standings = Standings(24, silent=set(range(1, 20)))
    assert "n14 (rank 14) and 11 more joined and then" in findings(found)[0]


def test_the_table_and_the_json_list_all_pairs(found, capsys):
    found.standings.failures = {(1, 2): "timed out"}
    del found.standings.speeds[1, 2]
    tables.show(found)
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if "failed" in line] == [["n2", "n3", "failed", "-"]]
    assert "all 6 ranks: 40 GB/s, 0.02 ms" in out
    pairs = json.loads(json.dumps(tables.as_json(found, ["x"])))["pairs"]
    assert {tuple(pair["nodes"]) for pair in pairs} == {("n1", "n2"), ("n1", "n3"), ("n2", "n3")}


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="needs SLURM's scontrol")
def test_slurm_gives_the_hosts_of_ranks(monkeypatch, tmp_path):
    (tmp_path / "slurm.conf").write_text("ClusterName=test\nSlurmctldHost=localhost\nAuthType=auth/slurm\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-2],n7")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2),1")
    assert expected_hosts() == {0: "n1", 1: "n1", 2: "n2", 3: "n2", 4: "n7"}


def test_other_launchers_give_no_hosts(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    assert expected_hosts() == {}


RATED = {"links": 2, "link_rate": 5e10}


def test_a_fabric_far_below_its_rating_is_named(found):
    for rank in range(6):
        change(found, rank, **RATED)
    assert findings(found) == [], "50 GB/s of 100"
    found.standings.speeds = {pair: Speed(3e10, 1e-5) for pair in found.standings.speeds}
    assert len(findings(found)) == 3
    assert "n1 (ranks 0-1) exchanges 30 GB/s in its best pair, but its links are rated at 100" in findings(found)[0]
    for rank in range(6):
        change(found, rank, device="cpu")
    assert findings(found) == [], "gloo is not compared with a rating"


def test_a_node_whose_nccl_would_use_sockets_is_named(found):
    for rank in (2, 3):
        change(found, rank, sockets="libibverbs.so.1 cannot be loaded: install rdma-core")
    (sentence,) = findings(found)
    assert sentence.startswith("NCCL would use TCP sockets on n2 (ranks 2-3): libibverbs.so.1 cannot be loaded")


@pytest.fixture
def node(tmp_path):
    """A node with two InfiniBand ports up and one down, as Linux lists them."""
    for name, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "4: ACTIVE"), ("mlx5_2", "1: DOWN")):
        port = tmp_path / f"sys/infiniband/{name}/ports/1"
        port.mkdir(parents=True)
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
        (port / "state").write_text(f"{state}\n")
    (tmp_path / "dev/infiniband").mkdir(parents=True)
    (tmp_path / "dev/infiniband/uverbs0").touch()

    def read(environment=None, loads=lambda library: True):
        return read_fabric("localhost", tmp_path / "sys", tmp_path / "dev", environment or {}, loads)

    return read, tmp_path


def test_active_links_are_counted_with_their_rate(node):
    read, _ = node
    assert read() == NodeFabric(2, 5e10, "")


def test_the_reasons_for_nccl_to_use_sockets(node):
    read, folder = node
    assert "NCCL_IB_DISABLE" in read({"NCCL_IB_DISABLE": "1"}).sockets
    assert "NCCL_NET" in read({"NCCL_NET": "Socket"}).sockets
    assert "rdma-core" in read(loads=lambda library: library != "libibverbs.so.1").sockets
    driver = folder / "drivers/efa"
    driver.mkdir(parents=True)
    (folder / "sys/infiniband/mlx5_0/device").mkdir()
    (folder / "sys/infiniband/mlx5_0/device/driver").symlink_to(driver)
    assert "aws-ofi-nccl" in read(loads=lambda library: library == "libibverbs.so.1").sockets
    (folder / "dev/infiniband/uverbs0").unlink()
    assert "/dev/infiniband" in read().sockets


def test_a_node_without_adapters_has_the_rate_of_its_ethernet(tmp_path, monkeypatch):
    monkeypatch.setattr("mvlm.runtime.network.interface_towards", lambda host: "eth7")
    (tmp_path / "net/eth7").mkdir(parents=True)
    (tmp_path / "net/eth7/speed").write_text("25000\n")
    assert read_fabric("node1", tmp_path, tmp_path) == NodeFabric(1, 25e9 / 8, "")
    (tmp_path / "net/eth7/speed").write_text("-1\n")
    assert read_fabric("node1", tmp_path, tmp_path) == NodeFabric()
