"""Pretrain an RNN on text: tokens, teacher, labels, transition, DMT, export, evaluation.

python jobs/pretrain_lm.py [PRESET] [--name N] [--storage DIR_OR_URI] [--data.source S] [--plan]
"""

import sys

from smt_ray.command_line import parse_run, reported
from smt_ray.data.storage import Location
from smt_ray.distributed.session import configure_logging
from smt_ray.distributed.trainer import Stopped
from smt_ray.evaluation.table import summary_table
from smt_ray.pipeline import run
from smt_ray.planning import plan


def main() -> int:
    """Parse, run, print."""
    configure_logging()
    with reported():
        options = parse_run(sys.argv[1:], "Pretrain an RNN on text, without unrolling it.")
        if options.plan:
            print(plan(options.run))
            return 0
        try:
            summary = run(options.run, overwrite=options.overwrite)
        except Stopped as stopped:
            print(f"{stopped}; the same command goes on from there", file=sys.stderr)
            return 143
    directory = Location.of(options.run.storage) / options.run.name
    print(summary_table(summary))
    print(f"report: {directory / 'report.html'}\nmodel:  {directory / 'rnn'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
