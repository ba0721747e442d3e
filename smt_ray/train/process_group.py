"""Ray Train's set-up of a process group, but for the place where its ranks meet."""

from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from smt_ray.cluster.local import LOOPBACK
from smt_ray.cluster.rendezvous import meeting_point


class GroupConfig(TorchConfig):
    """Lets the ranks meet on loopback where Ray is there, too; elsewhere where Ray Train does."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What makes the process group."""
        return _Backend if ray.util.get_node_ip_address() == LOOPBACK else _TorchBackend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        workers: Any = _Workers(worker_group)
        super().on_start(workers, backend_config)


class _Workers:
    """A worker group that is asked for its meeting point in place of a free port."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def __len__(self) -> int:
        return len(self._group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def execute_single(self, rank: int, function: Any, *args: Any, **kwargs: Any) -> Any:
        asked = meeting_point if function is get_address_and_port else function
        return self._group.execute_single(rank, asked, *args, **kwargs)
