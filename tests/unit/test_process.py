"""What one process asks for on the nodes that trained."""

from dataclasses import replace

import pytest

from smt_ray.cluster.process import cpus_at_most
from smt_ray.config import RuntimeConfig


def nodes(*cpus, dead=()):
    alive = [{"Alive": True, "Resources": {"CPU": float(n)} if n else {}} for n in cpus]
    return alive + [{"Alive": False, "Resources": {"CPU": float(n)}} for n in dead]


@pytest.mark.parametrize(
    ("workers", "there", "expected"),
    [
        (2, nodes(8), 2),  # as many as trained
        (8, nodes(0, 4, 4, 4), 4),  # as many as one node has
        (8, nodes(4, 2, dead=[16]), 4),
        (8, nodes(0), 1),  # a cluster that scaled to zero has one again for this
        (8, [], 1),
        (3, nodes(2.5), 2),
    ],
)
def test_a_process_asks_for_no_more_than_one_node_has(workers, there, expected):
    assert cpus_at_most(RuntimeConfig(device="cpu", workers=workers), there) == expected


@pytest.mark.parametrize(("there", "expected"), [(nodes(64), 8), (nodes(6), 6), ([], 1)])
def test_the_threads_of_all_workers_count(there, expected):
    runtime = RuntimeConfig(device="cpu", workers=2, threads=4)
    assert cpus_at_most(runtime, there) == expected


def test_the_cpus_of_one_worker_are_enough_beside_a_gpu():
    runtime = RuntimeConfig(device="gpu", workers=8)
    assert cpus_at_most(runtime, nodes(64)) == 1
    assert cpus_at_most(replace(runtime, threads=3), nodes(64)) == 3
