"""Pretrain an RNN on images, pixel by pixel: scikit-learn's digits, or an IDX file such as MNIST's.

python jobs/pretrain_pixels.py [PRESET] [--data.source pixels:PATH] [--FIELD VALUE ...]
"""

import sys
from collections.abc import Sequence

from smt_ray.pipeline.command_line import Options, parse_run
from smt_ray.pipeline.job import run_job
from smt_ray.pipeline.recipes import on_pixels


def parse(arguments: Sequence[str]) -> Options:
    """Parse the job's arguments."""
    about = (
        "Pretrain an RNN on images, pixel by pixel, by Supervised Memory Training. --data.source "
        "is pixels:digits or pixels:PATH (an IDX file); a sequence is one image."
    )
    return parse_run(arguments, about, on_pixels)


if __name__ == "__main__":
    print(run_job(parse, sys.argv[1:]))
