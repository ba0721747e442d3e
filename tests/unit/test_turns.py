"""Sides of a benchmark take steps in turns; one that has died is not waited for.

As a program it is such a side: python -m tests.unit.test_turns --part work --place DIR
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.turns import Gate, Side, add_part

MODULE, STEP_S, STEPS = "tests.unit.test_turns", 0.02, 8


def work(place):
    """Take steps of some rows and seconds."""
    gate = Gate(place)
    for step in range(STEPS):
        gate.wait(step, rows=3)
        time.sleep(STEP_S)
    return {"steps": STEPS}


def test_sides_take_steps_in_turns(tmp_path):
    with Side(MODULE, "work", tmp_path) as one, Side(MODULE, "work", tmp_path) as other:
        for _ in range(2):
            for side in (one, other):
                taken = side.take(3)
                assert taken.rows == 9
                assert all(seconds >= STEP_S for seconds in taken.seconds)
                assert taken.rate <= 3 / STEP_S
        opened = sorted(
            (note.at, name)
            for name, side in (("one", one), ("other", other))
            for note in side.notes()
            if note.what == "open"
        )
        turn = ["one"] * 3 + ["other"] * 3
        assert [name for _, name in opened] == turn + turn
        assert one.result() == {"steps": STEPS}
        worker = other.wait("open", 5).process
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(AssertionError, match="has ended"):
            other.take(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_part(parser, ["work"])
    place: Path = parser.parse_args().place
    sys.stdout.write(json.dumps(work(place)))
