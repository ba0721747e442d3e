"""Synthetic tasks that ask for memory: seeded sequences with reference answers. Torch only."""

from smt_ray.tasks.registry import TASKS
from smt_ray.tasks.task import MARKER, Task

__all__ = ["MARKER", "TASKS", "Task"]
