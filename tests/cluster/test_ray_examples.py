"""The examples for Ray, read as Ray reads them; nothing is started."""

import os
import shlex
from pathlib import Path

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
def test_servers_require_a_token_and_the_dashboard_listens_on_loopback(name):
    config = read(name)
    head, workers = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert all("RAY_AUTH_MODE=token" in command for command in (head, workers))
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_workers_have_the_resources_the_example_job_asks_for(name):
    job, config = load_job(EXAMPLES / "job.toml"), read(name)
    node = config["available_node_types"]["gpu"]
    assert (node["min_workers"], node["max_workers"]) == (job.min_nodes, job.nodes)
    assert job.nodes <= config["max_workers"]
    assert node["resources"]["GPU"] == job.gpus_per_node
    assert node["resources"]["CPU"] >= job.gpus_per_node * job.cpus_per_process


def test_each_network_card_on_aws_has_efa_and_the_nodes_are_placed_close_together():
    node = read("aws.yaml")["available_node_types"]["gpu"]["node_config"]
    interfaces = node["NetworkInterfaces"]
    assert node["InstanceType"] == "p5.48xlarge" and node["Placement"]["GroupName"]
    assert [one["NetworkCardIndex"] for one in interfaces] == list(range(32))  # as that type has
    assert [one["DeviceIndex"] for one in interfaces] == [0] + [1] * 31
    # Ray wants subnet and groups in each, and in no other place.
    assert all(one["InterfaceType"] == "efa" and one["SubnetId"] and one["Groups"] for one in interfaces)
    assert not {"SubnetId", "SubnetIds", "SecurityGroupIds"} & node.keys()


def test_the_kubernetes_cluster_has_the_resources_the_example_job_asks_for():
    documents = on_kubernetes("kuberay.yaml")
    cluster, claim = documents["RayCluster"], documents["PersistentVolumeClaim"]
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


def on_kubernetes(name):
    """The documents of a file by kind, one of each."""
    documents = list(yaml.safe_load_all((EXAMPLES / name).read_text()))
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


def test_the_kubernetes_cluster_keeps_its_state_in_the_redis_beside_it():
    documents = on_kubernetes("kuberay.yaml")
    options = documents["RayCluster"]["spec"]["gcsFaultToleranceOptions"]
    service, redis = documents["Service"], documents["StatefulSet"]
    [port] = service["spec"]["ports"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{port['port']}"
    template = redis["spec"]["template"]
    labels = [service["spec"]["selector"], redis["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]]
    assert labels == labels[:1] * 3 and redis["spec"]["serviceName"] == service["metadata"]["name"]
    [container] = template["spec"]["containers"]
    [password], [listens] = container["env"], container["ports"]
    assert password["valueFrom"] == options["redisPassword"]["valueFrom"]
    assert container["args"][:2] == ["--requirepass", f"$({password['name']})"]
    assert (listens["name"], listens["containerPort"]) == (port["targetPort"], port["port"])
    [volume], [claim] = container["volumeMounts"], redis["spec"]["volumeClaimTemplates"]
    assert volume["name"] == claim["metadata"]["name"] and volume["mountPath"] == container["args"][-1]
    secret = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    created = f"kubectl create secret generic {secret['name']} --from-literal={secret['key']}="
    assert created in (EXAMPLES / "kuberay.yaml").read_text()


def test_the_cluster_on_aws_keeps_its_state_in_a_redis_and_its_head_keeps_its_address():
    config = read("aws.yaml")
    head, workers = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    variables = dict(word.split("=", 1) for word in shlex.split(head) if word.startswith("RAY_"))
    assert variables["RAY_REDIS_ADDRESS"].endswith(":6379") and variables["RAY_external_storage_namespace"] == "mvlm"
    assert "--redis-password=$(cat ~/.ray/redis_password)" in shlex.split(head)
    assert config["file_mounts"]["~/.ray/redis_password"] == "~/.ray/redis_password"
    assert "RAY_gcs_rpc_server_reconnect_timeout_s=600 ray start" in workers
    node = config["available_node_types"]["head"]["node_config"]
    interfaces = config["available_node_types"]["gpu"]["node_config"]["NetworkInterfaces"]
    assert node["PrivateIpAddress"] and node["SubnetIds"] == [interfaces[0]["SubnetId"]]
    assert node["SecurityGroupIds"] == interfaces[0]["Groups"]


def strict(schema):
    """A definition that refuses every key that it does not name, as Kubernetes does with --validate=strict."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("anyOf", None)
    return closed


@pytest.mark.campaign
@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder of KubeRay's definitions")
@pytest.mark.parametrize(("name", "kind"), [("kuberay.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")])
def test_the_kubernetes_files_match_the_definitions_of_kuberay(name, kind):
    """Those in helm-chart/kuberay-operator/crds of KubeRay's repository."""
    definition = yaml.safe_load((Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{kind.lower()}s.yaml").read_text())
    document = on_kubernetes(name)[kind]
    group, version = document["apiVersion"].split("/")
    assert definition["spec"]["group"] == group and definition["spec"]["names"]["kind"] == kind
    [schema] = [one["schema"] for one in definition["spec"]["versions"] if one["name"] == version]
    closed = strict(schema["openAPIV3Schema"])
    closed["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(document, closed)
    with pytest.raises(jsonschema.ValidationError, match="misspelt"):
        jsonschema.validate(document | {"spec": document["spec"] | {"misspelt": 1}}, closed)


@pytest.mark.parametrize("name", ["job.toml", "sweep.toml"])
def test_the_back_end_takes_the_job_files(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    job = load_job(EXAMPLES / name, ["job.ray_address=http://127.0.0.1:8265"])
    assert "each rank" in ray_backend.render(job, [])
