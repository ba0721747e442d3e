"""Train an RNN to solve a synthetic task that asks for memory.

python jobs/solve_task.py [PRESET] --task NAME --length L [--FIELD VALUE ...]
"""

import sys
from collections.abc import Sequence

from smt_ray.pipeline.command_line import Options, parse_run
from smt_ray.pipeline.job import run_job
from smt_ray.pipeline.recipes import on_task
from smt_ray.tasks import TASKS

SHORT = {"--task": "--data.source=task:", "--length": "--data.sequence-length="}


def parse(arguments: Sequence[str]) -> Options:
    """Parse the job's arguments."""
    about = (
        "Train an RNN to solve a synthetic task by Supervised Memory Training.\n\n"
        f"--task NAME (one of {', '.join(TASKS)}) is short for --data.source task:NAME, "
        "--length L for --data.sequence-length L."
    )
    return parse_run(arguments, about, on_task, SHORT)


if __name__ == "__main__":
    print(run_job(parse, sys.argv[1:]))
