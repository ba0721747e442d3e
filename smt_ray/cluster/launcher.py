"""SLURM, torchrun and MPI around a driver: their ranks are not Ray's, and one driver is enough."""

import logging
import os
from collections.abc import MutableMapping

logger = logging.getLogger(__name__)
RANKS = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
"""Which of how many tasks a process is, by launcher; an `sbatch` script itself is in no step."""
NAMES = frozenset(
    (
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
        *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
        *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NPROCS"),
        *("SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
        *("SLURM_GTIDS", "SLURM_TASK_PID"),
    )
)
PREFIXES = ("TORCHELASTIC_", "OMPI_COMM_WORLD_", "PMI_", "PMIX_", "MV2_COMM_WORLD_")
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the driver of a submitted job, which has inherited the variables of its head."""


def leave_to_first_task() -> None:
    """End a driver that a launcher has started beside another.

    Raises:
        SystemExit: with status 0, if this is not the first of several tasks.
    """
    if SUBMITTED in os.environ:
        return
    for name, total in RANKS:
        rank, tasks = (os.environ.get(key, "") for key in (name, total))
        if rank.isdecimal() and tasks.isdecimal() and 0 < int(rank) < int(tasks):
            logger.warning(
                "%s=%s of %s tasks: the run is one driver, of task 0; this one has nothing to do",
                *(name, rank, tasks),
            )
            raise SystemExit(0)


def forget_ranks(environment: MutableMapping[str, str]) -> None:
    """Remove what speaks of a launcher's ranks; what it says of the machine stays."""
    for name in [n for n in environment if n in NAMES or n.startswith(PREFIXES)]:
        del environment[name]
