"""What the training jobs share: parse, run, print."""

import sys
from collections.abc import Callable, Sequence

from smt_ray.command_line import Options, reported
from smt_ray.data.storage import Location
from smt_ray.distributed.session import configure_logging
from smt_ray.distributed.trainer import Stopped
from smt_ray.evaluation.table import summary_table
from smt_ray.pipeline import run
from smt_ray.planning import plan


def run_job(parse: Callable[[Sequence[str]], Options], arguments: Sequence[str]) -> int:
    """Run what the arguments ask for and print its figures; return the exit status."""
    configure_logging()
    with reported():
        options = parse(arguments)
        if options.plan:
            print(plan(options.run))  # noqa: T201
            return 0
        try:
            summary = run(options.run, overwrite=options.overwrite)
        except Stopped as stopped:
            print(f"{stopped}; the same command goes on from there", file=sys.stderr)  # noqa: T201
            return 143
    directory = Location.of(options.run.storage) / options.run.name
    places = f"report: {directory / 'report.html'}\nmodel:  {directory / 'rnn'}"
    print(f"{summary_table(summary)}\n{places}")  # noqa: T201
    return 0
