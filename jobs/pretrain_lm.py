"""Pretrain an RNN on text: tokens, teacher, labels, transition, DMT, export, evaluation.

python jobs/pretrain_lm.py [PRESET] [--name N] [--storage DIR_OR_URI] [--data.source S] [--plan]
"""

import sys
from collections.abc import Sequence

from smt_ray.pipeline.command_line import Options, parse_run
from smt_ray.pipeline.job import run_job
from smt_ray.pipeline.recipes import on_text


def parse(arguments: Sequence[str]) -> Options:
    """Parse the job's arguments."""
    return parse_run(arguments, "Pretrain an RNN on text by Supervised Memory Training.", on_text)


if __name__ == "__main__":
    print(run_job(parse, sys.argv[1:]))
