"""The examples for Ray, read as Ray reads them; nothing is started."""

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.job import load_job
from cluster.ray import backend as ray_backend
from tests.conftest import ROOT

EXAMPLES = ROOT / "cluster/examples/ray"
AUTOSCALED = ["aws.yaml", "gcp.yaml", "onpremise.yaml"]


def read(name):
    return yaml.safe_load((EXAMPLES / name).read_text())


@pytest.mark.parametrize("name", AUTOSCALED)
def test_ray_accepts_the_cluster_file(name):
    validate_config(prepare_config(read(name)))


def test_ray_refuses_a_cluster_file_with_a_key_it_does_not_know():
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(read("aws.yaml") | {"max_worker": 1}))


@pytest.mark.parametrize("name", AUTOSCALED)
def test_servers_want_a_token_and_the_dashboard_is_on_loopback(name):
    config = read(name)
    head, workers = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert all("RAY_AUTH_MODE=token" in command for command in (head, workers))
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_workers_have_what_the_example_job_asks_for(name):
    job, config = load_job(EXAMPLES / "job.toml"), read(name)
    node = config["available_node_types"]["gpu"]
    assert (node["min_workers"], node["max_workers"]) == (job.min_nodes, job.nodes)
    assert job.nodes <= config["max_workers"]
    assert node["resources"]["GPU"] == job.gpus_per_node
    assert node["resources"]["CPU"] >= job.gpus_per_node * job.cpus_per_process


def test_each_network_card_on_aws_has_efa_and_the_nodes_lie_close_together():
    node = read("aws.yaml")["available_node_types"]["gpu"]["node_config"]
    interfaces = node["NetworkInterfaces"]
    assert node["InstanceType"] == "p5.48xlarge" and node["Placement"]["GroupName"]
    assert [one["NetworkCardIndex"] for one in interfaces] == list(range(32))  # as that type has
    assert [one["DeviceIndex"] for one in interfaces] == [0] + [1] * 31
    # Ray wants subnet and groups in each, and in no other place.
    assert all(one["InterfaceType"] == "efa" and one["SubnetId"] and one["Groups"] for one in interfaces)
    assert not {"SubnetId", "SubnetIds", "SecurityGroupIds"} & node.keys()


def test_the_kubernetes_cluster_has_what_the_example_job_asks_for():
    documents = yaml.safe_load_all((EXAMPLES / "kuberay.yaml").read_text())
    cluster, claim = sorted(documents, key=lambda document: document["kind"], reverse=True)
    job, spec = load_job(EXAMPLES / "job.toml"), cluster["spec"]
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert spec["authOptions"] == {"mode": "token"} and spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [group] = spec["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (job.min_nodes, job.nodes)
    pods = [spec["headGroupSpec"]["template"]["spec"], group["template"]["spec"]]
    limits = pods[1]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) == job.gpus_per_node
    assert int(limits["cpu"]) >= job.gpus_per_node * job.cpus_per_process
    for pod in pods:
        [container] = pod["containers"]
        assert container["image"].startswith("mvlm:")
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]
        assert claim["metadata"]["name"] in claims


@pytest.mark.parametrize("name", ["job.toml", "sweep.toml"])
def test_the_job_files_are_what_the_back_end_takes(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    job = load_job(EXAMPLES / name, ["job.ray_address=http://127.0.0.1:8265"])
    assert "each rank" in ray_backend.render(job, [])
