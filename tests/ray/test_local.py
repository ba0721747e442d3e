"""A Ray of a run's own on a machine like others': few CPUs, others' variables, a long TMPDIR."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
LAUNCHER = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "MASTER_ADDR": "nowhere.invalid",
    "MASTER_PORT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SCRIPT = """
import json, os, sys
import psutil, ray
from smt_ray.config import RuntimeConfig
from smt_ray.distributed.session import connect

os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
connect(RuntimeConfig(workers=1, gang_ranks=1))

@ray.remote(num_cpus=1)
class Worker:
    def environment(self):
        return dict(os.environ)

workers = [Worker.remote() for _ in range(2)]
seen = ray.get([worker.environment.remote() for worker in workers])[0]
own = psutil.Process()
processes = [own, *own.children(recursive=True)]
listening = [
    (found.laddr.ip, " ".join(process.cmdline())[:80])
    for process in processes
    for found in process.net_connections("inet")
    if found.status == psutil.CONN_LISTEN
]
print(json.dumps({
    "listening": listening,
    "cpus": ray.cluster_resources()["CPU"],
    "node": ray.util.get_node_ip_address(),
    "environment": seen,
}))
"""


@pytest.mark.ray
def test_a_ray_of_ones_own_keeps_to_itself(tmp_path):
    long = tmp_path / ("long" * 20)
    long.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | LAUNCHER | {"TMPDIR": str(long), "RAY_ADDRESS": "local"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    servers = " ".join(name for _, name in found["listening"])
    assert all(name in servers for name in ("gcs_server", "raylet", "ray::Worker", "Agent"))
    assert {ip.removeprefix("::ffff:") for ip, _ in found["listening"]} == {"127.0.0.1"}
    assert found["node"] == "127.0.0.1"
    assert found["cpus"] == 3  # what the run needs, more than the one that it may use
    assert not found["environment"].keys() & LAUNCHER.keys()
    interface = found["environment"]["GLOO_SOCKET_IFNAME"]
    assert "127.0.0.1" in [address.address for address in psutil.net_if_addrs()[interface]]
