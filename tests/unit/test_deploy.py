"""What brings the project to a cloud is valid, and agrees with each other and with the code."""

import copy
import json
import re
import shlex
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs import pretrain_lm
from smt_ray.cluster.resources import cpus_needed, gpus_needed

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.33"
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
TYPES = {name: type_ for name, type_ in CLUSTER["available_node_types"].items() if name != "head"}
RAYJOB = yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())
RAY_CLUSTER = RAYJOB["spec"]["rayClusterSpec"]
GROUPS = {group["groupName"]: group for group in RAY_CLUSTER["workerGroupSpecs"]}
SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


def version(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", CONSTRAINTS, re.MULTILINE)
    assert found, package
    return found[1]


def templates():
    head = RAY_CLUSTER["headGroupSpec"]["template"]
    return {"head": head, **{name: group["template"] for name, group in GROUPS.items()}}


def as_pod(template):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}


def test_the_launcher_takes_the_cluster():
    prepared = prepare_config(copy.deepcopy(CLUSTER))
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    wrong = copy.deepcopy(CLUSTER)
    wrong["available_node_types"]["cpu"]["spot"] = True
    with pytest.raises(jsonschema.ValidationError, match="spot"):
        validate_config(prepare_config(wrong))


def test_the_launchers_limits_are_bounds():
    assert all(type_["min_workers"] == 0 < type_["max_workers"] for type_ in TYPES.values())
    assert 0 < CLUSTER["idle_timeout_minutes"] <= 30
    spot = {
        name for name, type_ in TYPES.items() if "InstanceMarketOptions" in type_["node_config"]
    }
    assert spot == TYPES.keys() - {"gpu-on-demand"}
    order = sorted((t["priority"], n) for n, t in TYPES.items() if "priority" in t)
    assert [name for _, name in order] == ["gpu-on-demand", "gpu-spot-l4", "gpu-spot-a10g"]


def test_no_work_on_the_heads():
    head = CLUSTER["available_node_types"]["head"]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert RAY_CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_every_process_asks_for_the_token():
    starts = [*CLUSTER["head_start_ray_commands"], *CLUSTER["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert CLUSTER["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert RAY_CLUSTER["authOptions"] == {"mode": "token"}


def test_versions_are_those_that_were_tried():
    python = re.search(r"on Python (\d)\.(\d+)", CONSTRAINTS)
    assert python
    image = rf"rayproject/ray:{re.escape(version('ray'))}-py{python[1]}{python[2]}-(cpu|gpu)"
    docker = (ROOT / "deploy" / "Dockerfile").read_text()
    text = (ROOT / "cluster.yaml").read_text() + docker
    images = re.findall(r"rayproject/\S+", text)
    assert len(images) == 4
    assert all(re.fullmatch(image, found) for found in images)
    assert RAY_CLUSTER["rayVersion"] == version("ray")
    assert re.findall(r"torch==(\S+)", text) == [version("torch")] * 2


def test_what_the_nodes_install_is_there():
    for local in CLUSTER["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists()
    for line in (ROOT / "deploy" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[2:-1])


def test_kubernetes_takes_the_pods():
    for template in templates().values():
        kubernetes_validate.validate(as_pod(template), KUBERNETES, strict=True)
    wrong = as_pod(copy.deepcopy(templates()["cpu"]))
    wrong["spec"]["containers"][0]["gpus"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="gpus"):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ((), None, ""),
        (("spec", "ttlSeconds"), 600, "ttlSeconds"),
        (("spec", "submissionMode"), "K8SJob", "K8SJob"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "password", "password"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), "4", "integer"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "spot"), True, "spot"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0, "string"),
    ],
)
def test_the_operator_takes_the_job(path, value, said):
    job = copy.deepcopy(RAYJOB)
    if not path:
        jsonschema.validate(job, SCHEMA)
        return
    *places, last = path
    target = job
    for place in places:
        target = target[place]
    target[last] = value
    with pytest.raises(jsonschema.ValidationError, match=said):
        jsonschema.validate(job, SCHEMA)


def test_both_have_the_same_workers():
    assert GROUPS.keys() == TYPES.keys()
    for name, group in GROUPS.items():
        type_, node = TYPES[name], group["template"]["spec"]["nodeSelector"]
        assert group["minReplicas"] == type_["min_workers"]
        assert group["maxReplicas"] == type_["max_workers"]
        assert group.get("priority") == type_.get("priority")
        instance = type_["node_config"]["InstanceType"]
        assert node["node.kubernetes.io/instance-type"] == instance
        spot = "InstanceMarketOptions" in type_["node_config"]
        assert node["eks.amazonaws.com/capacityType"] == ("SPOT" if spot else "ON_DEMAND")
        (container,) = group["template"]["spec"]["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == name.startswith("gpu")
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_command_line_takes_the_entrypoint_and_the_workers_hold_it():
    words = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert words[:2] == ["python", "/home/ray/smt-ray/jobs/pretrain_lm.py"]
    run = pretrain_lm.parse(words[2:]).run
    assert run.runtime.resolved  # a cluster without nodes says nothing of what it may grow to
    assert run.storage.startswith("s3://")
    most = {"cpu": 0, "nvidia.com/gpu": 0}
    for group in GROUPS.values():
        (container,) = group["template"]["spec"]["containers"]
        for kind in most:
            held = int(container["resources"]["limits"].get(kind, 0))
            most[kind] += held * group["maxReplicas"]
    assert 0 < gpus_needed(run) <= most["nvidia.com/gpu"]
    assert cpus_needed(run) <= most["cpu"]


def test_both_ways_to_submit_give_the_job_the_same_environment():
    submitted = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    assert yaml.safe_load(RAYJOB["spec"]["runtimeEnvYAML"])["env_vars"] == submitted["env_vars"]


class Template(yaml.SafeLoader):
    """Reads CloudFormation's YAML, its functions as their arguments."""


def _argument(loader, tag, node):
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node)
    return loader.construct_scalar(node)


Template.add_multi_constructor("!", _argument)


def test_the_account_has_the_roles_of_the_nodes():
    text = (ROOT / "deploy" / "account.yaml").read_text()
    resources = yaml.load(text, Template)["Resources"]
    profiles = {
        resource["Properties"]["InstanceProfileName"]
        for resource in resources.values()
        if resource["Type"] == "AWS::IAM::InstanceProfile"
    }
    nodes = CLUSTER["available_node_types"].values()
    used = {node["node_config"]["IamInstanceProfile"]["Name"] for node in nodes}
    assert used == profiles == {"smt-ray-head", "smt-ray-worker"}
    assert resources["Storage"]["DeletionPolicy"] == "Retain"
