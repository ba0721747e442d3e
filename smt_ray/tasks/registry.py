"""All tasks by name; a new one is one class and one line here."""

from smt_ray.tasks.compute import Modular, Parity, Stack
from smt_ray.tasks.recall import Copy, KeysValues, Retrieval
from smt_ray.tasks.task import Task

TASKS: dict[str, Task] = {
    "retrieval": Retrieval(),
    "copy": Copy(),
    "stack": Stack(),
    "keysvalues": KeysValues(),
    "modular": Modular(),
    "parity": Parity(),
}
