"""A cluster of several nodes on this machine, as a program whose input adds and removes them.

python -m tests.cluster.nodes PLACE DASHBOARD_PORT

The head has no CPU. Each line of input is answered by one of output: `add CPUS` starts a node and
answers its id, `remove ID` kills all processes of that node at once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster


def main(arguments: Sequence[str]) -> None:
    """Obey until the input ends."""
    place, dashboard = Path(arguments[0]), int(arguments[1])
    head = {
        "num_cpus": 0,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": dashboard,
        "dashboard_agent_listen_port": 0,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: dict[str, Any] = {}
    answer("ready")
    for line in sys.stdin:
        what, value = line.split()
        if what == "add":
            # Files of its own: nodes unpack a job's code over what others of the same place run.
            node = cluster.add_node(num_cpus=int(value), temp_dir=str(place / str(len(nodes))))
            nodes[node.node_id] = node
            answer(node.node_id)
        else:
            cluster.remove_node(nodes[value], allow_graceful=False)
            answer("removed")
    cluster.shutdown()


def answer(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
