"""Settings of the network that ranks communicate over."""

import os
from typing import get_args, get_type_hints

import pytest

from cluster.environment import NETWORK_VARIABLES
from cluster.job import Job
from mvlm.runtime import network


def adapter(folder, name, driver, layer):
    port = folder / name / "ports/1"
    port.mkdir(parents=True)
    (port / "link_layer").write_text(layer + "\n")
    (folder / name / "device").mkdir()
    (folder.parent / "drivers" / driver).mkdir(parents=True, exist_ok=True)
    (folder / name / "device/driver").symlink_to(folder.parent / "drivers" / driver)


def test_adapters_are_recognised_by_driver_and_link_layer(tmp_path):
    folder = tmp_path / "infiniband"
    assert network.adapters(folder) == "Ethernet"
    adapter(folder, "mlx5_0", "mlx5_core", "InfiniBand")
    adapter(folder, "mlx5_1", "mlx5_core", "InfiniBand")
    adapter(folder, "mlx5_2", "mlx5_core", "Ethernet")
    adapter(folder, "rdmap0s6", "efa", "Unspecified")
    assert network.adapters(folder) == "1 EFA adapter, 2 InfiniBand adapters, 1 RoCE adapter"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "no.such.host.invalid"])
def test_no_interface_is_chosen_on_a_single_machine_or_for_an_unknown_host(monkeypatch, host):
    monkeypatch.setenv("MASTER_ADDR", host)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    network.prepare()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_settings_of_the_user_are_kept(monkeypatch):
    monkeypatch.setattr(network, "interface_towards", lambda host: "eth7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    network.prepare()
    assert "GLOO_SOCKET_IFNAME=mine NCCL_DEBUG=INFO" in network.describe()


def test_every_network_of_a_job_file_has_its_variables():
    assert NETWORK_VARIABLES.keys() == set(get_args(get_type_hints(Job)["network"]))
    assert NETWORK_VARIABLES["auto"] == {} and NETWORK_VARIABLES["infiniband"]["NCCL_NET"] == "IB"
    assert NETWORK_VARIABLES["ethernet"]["NCCL_SOCKET_IFNAME"].startswith("^lo,docker,")
    assert NETWORK_VARIABLES["efa"]["FI_PROVIDER"] == "efa"
