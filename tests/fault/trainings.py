"""A training on two nodes of one CPU each, of which the second is harmed on the way.

python -m tests.fault.trainings PLACE HARM WORKERS TIMEOUT_S

PLACE has what `tests.ray.driver.prepare` writes. HARM is `remove` (the node of rank 1 is lost),
`drain` (with a notice before), `raylet` (that of rank 1's node is killed) or `stop` (the process of
rank 1 is stopped). What was said stands on stderr; `harmed/` gets the result. The files `struck`
and `recovered` are as old as the harm, and as the first step that was not taken before it.
"""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import _raylet
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from smt_ray.data.reader import Stream
from smt_ray.data.storage import Location
from smt_ray.terminal import configure_logging
from smt_ray.train.programs import DmtProgram
from smt_ray.train.trainer import fit
from tests.ray.driver import RUNTIME, program
from tests.samples import Around

SLOW, EVERY_S, NOTICE_S = 30, 0.2, 15.0


@dataclass(frozen=True)
class Watched(DmtProgram):
    """DMT that crawls from step SLOW on until it was harmed; each rank says where it is."""

    place: str = ""

    def stream(self, rank, world, saved, step):
        there = f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"
        (Path(self.place) / f"rank-{rank}-of-{world}").write_text(there)
        return Crawling(super().stream(rank, world, saved, step), Path(self.place))


class Crawling(Around):
    def __init__(self, stream: Stream, place: Path) -> None:
        super().__init__(stream)
        self.place = place
        self.restarted = (place / "restarted").exists()

    def batch(self, step):
        if step >= SLOW and not (self.place / "restarted").exists():
            (self.place / "slow").write_text(str(step))
            time.sleep(EVERY_S * (10 if (self.place / "noticed").exists() else 1))
        recovered = self.place / "recovered"
        new = self.restarted and step > int((self.place / "slow").read_text())
        if new and not recovered.exists():
            recovered.touch()
        return self.stream.batch(step)


def harm(place: Path, what: str, cluster: Any, nodes: list[Any]) -> None:
    """Harm rank 1 once the training is slow and its checkpoint is there."""
    while not ((place / "slow").exists() and any(place.glob("harmed/train/step-*25"))):
        time.sleep(0.1)
    node, pid = (place / "rank-1-of-2").read_text().split()
    (victim,) = (one for one in nodes if one.node_id == node)
    if what == "stop":
        (place / "struck").touch()
        (place / "stopped").write_text(pid)
        os.kill(int(pid), signal.SIGSTOP)
        (place / "restarted").touch()
        return
    if what == "raylet":
        (place / "struck").touch()
        (raylet,) = victim.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        (place / "restarted").touch()
        return
    if what == "drain":
        drain(node)
        (place / "noticed").touch()
        time.sleep(NOTICE_S)
    (place / "struck").touch()
    cluster.remove_node(victim, allow_graceful=False)
    (place / "restarted").touch()


def drain(node: str) -> None:
    """Give notice that a node is taken away in NOTICE_S seconds."""
    reason = autoscaler_pb2.DrainNodeReason.Value(  # type: ignore[attr-defined]
        "DRAIN_NODE_REASON_PREEMPTION"
    )
    deadline = int((time.time() + NOTICE_S) * 1000)
    client = _raylet.GcsClient(  # type: ignore[attr-defined]
        address=ray.get_runtime_context().gcs_address
    )
    accepted, why = client.drain_node(node, reason, "spot", deadline)
    assert accepted, why


def main(place: Path, what: str, workers: str, timeout_s: float) -> int:
    """Train on a cluster of its own."""
    configure_logging()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(cluster.address, log_to_driver=False)
    whole = program(place)
    watched = Watched(
        whole.config, whole.labels, whole.teacher, whole.transition, whole.vocabulary,
        place=str(place),
    )  # fmt: skip
    threading.Thread(target=harm, args=(place, what, cluster, nodes), daemon=True).start()
    budget = 0 if what == "drain" else 1
    runtime = replace(RUNTIME, workers=workers, timeout_s=timeout_s, max_failures=budget)
    try:
        fit(watched, runtime, Location.of(place / "harmed").make_dir())
        stopped = place / "stopped"
        assert not (stopped.exists() and psutil.pid_exists(int(stopped.read_text())))
    finally:
        ray.shutdown()
        cluster.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])))
