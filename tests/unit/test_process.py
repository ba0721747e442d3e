"""What one process asks for on the nodes that trained."""

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
    assert cpus_at_most(RuntimeConfig(workers=workers), there) == expected


def test_one_cpu_is_enough_beside_a_gpu():
    assert cpus_at_most(RuntimeConfig(workers=8, gpu=True), nodes(64)) == 1
