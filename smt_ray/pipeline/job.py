"""What the training jobs share: parse, run, describe what came out."""

from collections.abc import Callable, Sequence

from smt_ray.cluster.launcher import leave_to_first_task
from smt_ray.data.storage import Location
from smt_ray.pipeline.command_line import GOES_ON, Options, reported
from smt_ray.report.table import summary_table
from smt_ray.terminal import configure_logging


def run_job(parse: Callable[[Sequence[str]], Options], arguments: Sequence[str]) -> str:
    """Run what the arguments ask for; return the plan, or the figures and where the results are.

    Raises:
        SystemExit: with status 2 for a mistake of the user, 143 after SIGTERM, 130 after Ctrl-C;
            with 0 in all but the first of several tasks of a launcher.
    """
    configure_logging()
    leave_to_first_task()
    with reported(GOES_ON):
        options = parse(arguments)
        # Imported late: `--help` and a mistake in the arguments need not wait for Ray.
        if options.plan:
            from smt_ray.pipeline.planning import plan

            return plan(options.run)
        from smt_ray.pipeline.run import run

        summary = run(options.run, overwrite=options.overwrite)
    directory = Location.of(options.run.storage) / options.run.name
    places = f"report: {directory / 'report.html'}\nmodel:  {directory / 'rnn'}"
    return f"{summary_table(summary)}\n{places}"
