"""Where the ranks of a process group meet: on a Ray of the run's own, on loopback alone.

torch's store listens on all interfaces, and takes orders from anyone who connects.
"""

import socket

import ray
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # made in C++

from smt_ray.cluster.local import LOOPBACK

_served: list[TCPStore] = []


def meeting_point() -> tuple[str, int]:
    """Return the address and the port at which this process, rank 0, meets the others.

    On loopback the store is served from now on: when rank 0 makes the process group, torch finds
    the store of its process by the port, and opens no other.
    """
    host = ray.util.get_node_ip_address()
    if host != LOOPBACK:
        with socket.socket() as free:
            free.bind(("", 0))
            return host, free.getsockname()[1]
    listening = socket.create_server((host, 0))
    port = listening.getsockname()[1]
    _served[:] = [
        TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listening.detach(),
        )
    ]
    return host, port
