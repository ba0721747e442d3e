"""Launchers around a driver: one task runs it, and Ray's processes do not see their ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smt_ray.cluster.launcher import forget_ranks, leave_to_first_task

ROOT = Path(__file__).parents[2]
ALONE = {
    "nothing": {},
    "task 0 of srun": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"},
    "an sbatch script of four tasks": {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
    "one task of a larger allotment": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    "torchrun of one": {"RANK": "0", "WORLD_SIZE": "1"},
    "a stale export": {"RANK": "3"},
    "a submitted job on a node of srun": {
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "4",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}",
    },
}
ONE_OF_MANY = {
    "srun": {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"},
    "torchrun": {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
    "mpirun": {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
}


@pytest.fixture(autouse=True)
def nothing(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "RAY_JOB")):
            monkeypatch.delenv(name)
    forget_ranks(os.environ)


@pytest.mark.parametrize("variables", ALONE.values(), ids=ALONE)
def test_the_first_or_only_task_runs_the_driver(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    leave_to_first_task()


@pytest.mark.parametrize("variables", ONE_OF_MANY.values(), ids=ONE_OF_MANY)
def test_the_others_leave(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        leave_to_first_task()
    assert caught.value.code == 0


def test_a_job_that_is_not_the_first_task_says_so_before_work_starts(tmp_path):
    command = [sys.executable, "jobs/pretrain_lm.py", "--storage", str(tmp_path / "runs")]
    environment = os.environ | ONE_OF_MANY["srun"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("the run is one driver, of task 0; this one has nothing to do\n")
    assert list(tmp_path.iterdir()) == []


def test_ranks_are_forgotten_and_the_machine_is_not():
    kept = {
        "SLURM_CPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "7",
        "CUDA_VISIBLE_DEVICES": "0",
        "PATH": "/bin",
    }
    environment = kept | {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "elsewhere",
        "MASTER_PORT": "1",
        "SLURM_PROCID": "1",
        "SLURM_NTASKS": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMPI_COMM_WORLD_SIZE": "2",
    }
    forget_ranks(environment)
    assert environment == kept
