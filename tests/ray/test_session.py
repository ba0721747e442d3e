"""The session: what is checked and waited for before work, and what Prometheus reads meanwhile."""

import re
import time
import urllib.request
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated import autoscaler_pb2

from smt_ray.cluster import session
from smt_ray.cluster.prometheus import count, show
from smt_ray.config import RunConfig, RuntimeConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def can_grow():
    """Tell the cluster what an autoscaler would: up to four nodes with 5 CPUs each."""
    messages: Any = autoscaler_pb2
    client = GcsClient(ray.get_runtime_context().gcs_address)
    group = messages.NodeGroupConfig(name="worker", resources={"CPU": 5}, max_count=4)
    limits = messages.ClusterConfig(node_group_configs=[group])
    client.report_cluster_config(limits.SerializeToString())
    yield
    client.report_cluster_config(messages.ClusterConfig().SerializeToString())


def config(storage, workers):
    runtime = RuntimeConfig(device="cpu", workers=workers, gang_ranks=2)
    return RunConfig(storage=str(storage), runtime=runtime)


def test_a_cluster_that_can_grow_is_measured_by_its_limits(can_grow, tmp_path, monkeypatch):
    waited: list[RunConfig] = []
    monkeypatch.setattr(session, "_wait_for_nodes", waited.append)
    enough = config(tmp_path, 16)  # 18 CPUs, of which there are 8 yet
    session.preflight(enough)
    assert waited == [enough]
    with pytest.raises(
        ValueError, match=r"need 34 CPUs, the cluster has 20; give --runtime.workers 18, or"
    ):
        session.preflight(config(tmp_path, 32))


def test_a_cluster_that_cannot_grow_is_not_waited_for(tmp_path):
    with pytest.raises(
        ValueError, match=r"need 18 CPUs, the cluster has 8; give --runtime.workers 6, or"
    ):
        session.preflight(config(tmp_path, 16))


def test_auto_becomes_what_the_cluster_has_room_for(tmp_path):
    runtime = RuntimeConfig(device="cpu")
    joined = session.connect(RunConfig(storage=str(tmp_path), runtime=runtime))
    assert (joined.runtime.workers, joined.runtime.gang_ranks) == (2, 2)
    session.preflight(joined)


def test_the_wait_ends_when_the_nodes_are_there_and_leaves_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(session, "PATIENCE_S", 1)
    monkeypatch.setattr(session.logger, "propagate", True)

    @ray.remote(num_cpus=7)
    def busy():
        (tmp_path / "busy").touch()
        time.sleep(4)

    running = busy.remote()
    until = time.monotonic() + 60
    while not (tmp_path / "busy").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    with caplog.at_level("INFO"):
        session._wait_for_nodes(config(tmp_path, 2))
    assert ray.wait([running], timeout=0)[0]
    said = r"waiting for nodes for \d+ s: need 4 CPUs and 0 GPUs, the cluster has 8 and 0"
    assert re.search(said, caplog.text)
    states = {group["state"] for group in ray.util.placement_group_table().values()}
    assert states <= {"REMOVED"}


def test_prometheus_reads_the_series_from_the_node():
    show(
        {"step": 25, "loss/total": 2.5, "rate/tokens_per_s": 1000.0, "loss/dyn": 1}, "a", "teacher"
    )
    count("smt_ray_labels", "a", "labels", 7)
    count("smt_ray_labels", "a", "labels", 5)
    count("smt_ray_gang_rebuilds", "a", "labels", 1)
    count("smt_ray_training_failures", "a", "teacher", 1)
    expected = {
        ("ray_smt_ray_step", "teacher"): 25.0,
        ("ray_smt_ray_loss", "teacher"): 2.5,
        ("ray_smt_ray_tokens_per_second", "teacher"): 1000.0,
        ("ray_smt_ray_labels_total", "labels"): 12.0,
        ("ray_smt_ray_gang_rebuilds_total", "labels"): 1.0,
        ("ray_smt_ray_training_failures_total", "teacher"): 1.0,
    }
    until = time.monotonic() + 60  # Ray's processes report every 10 s
    while (found := scrape("a")) != expected:
        assert time.monotonic() < until, found
        time.sleep(1)


def scrape(run):
    """Return the project's series of a run by name and stage."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("ray_smt_ray_") and f'run="{run}"' in line:
            name, rest = line.split("{", 1)
            stage = rest.split('stage="', 1)[1].split('"', 1)[0]
            found[name, stage] = float(rest.rsplit(" ", 1)[1])
    return found
