"""Sweep any field of a run with Ray Tune: memory size, encoder depth, and whatever else.

python jobs/sweep.py [PRESET] --space FIELD=VALUES ... [--search grid|random|optuna] [--name N]
"""

import logging
import sys

from smt_ray.cluster.launcher import leave_to_first_task
from smt_ray.pipeline.command_line import GOES_ON, reported
from smt_ray.report.leaderboard import terminal_table
from smt_ray.studies.options import Sweeper
from smt_ray.studies.tuning import Sweep
from smt_ray.terminal import configure_logging


def main() -> int:
    """Parse, run, print."""
    configure_logging()
    leave_to_first_task()
    with reported(GOES_ON):
        sweeper = Sweeper(sys.argv[1:])
        sweep = Sweep(sweeper)
        if sweeper.options.plan:
            print(sweep.plan())
            return 0
        summary = sweep.run()
    print(terminal_table(summary["name"], sweep.records.all(), sweep.metric))
    print(f"report: {sweep.directory / 'report.html'}\ntable:  {sweep.directory / 'sweep.csv'}")
    if summary["best"]:
        print(f"best:   {sweep.directory / 'best.yaml'}\nmodel:  {sweep.directory / 'rnn'}")
        return 0
    logging.getLogger("smt_ray").error("no trial has finished")
    return 1


if __name__ == "__main__":
    sys.exit(main())
