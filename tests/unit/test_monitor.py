"""What the terminal is told of a training: where it is, that it stands still, that it restarts."""

import dataclasses

import pytest

from smt_ray.distributed.monitor import PLAIN_EVERY_S, STALL_S, Progress, _View

AT = Progress("dmt", step=20, steps=100, loss=2.5, rate=50.0, start=0, attempt="first")


@pytest.fixture
def view(caplog):
    """A view that was begun at time 0, on no terminal."""
    caplog.set_level("INFO")
    return _View(0.0, terminal=False)


def test_a_line_is_said_when_there_is_a_step_and_not_again_without_one(view, caplog):
    view.show(AT, [], 1.0)
    later = dataclasses.replace(AT, step=40)
    for now in (PLAIN_EVERY_S + 1, PLAIN_EVERY_S + 5, 2 * PLAIN_EVERY_S + 5):
        view.show(later, [], now)
    assert caplog.messages == [
        "dmt        40 of 100  loss 2.5000  50 tokens/s  30.0 s left",
    ]


def test_standing_still_is_said_each_time_that_a_while_has_passed(view, caplog):
    view.show(AT, [], 1.0)
    for second in range(2, int(2 * STALL_S) + 4):
        view.show(AT, [], float(second))
    after = "after step 20 of 100; a worker is stopped, slow, or validating"
    assert caplog.messages == [
        f"dmt: no step for 31.0 s, {after}",
        f"dmt: no step for 1 min 2 s, {after}",
    ]


def test_slow_steps_are_waited_for_longer(view, caplog):
    view.show(AT, [], 0.0)
    view.show(dataclasses.replace(AT, step=21), [], 20.0)
    caplog.clear()
    view.show(dataclasses.replace(AT, step=21), [], 20.0 + 9 * 20)
    assert caplog.messages == []
    view.show(dataclasses.replace(AT, step=21), [], 20.0 + 11 * 20)
    assert caplog.messages[0].startswith("dmt: no step for 3 min 40 s, after step 21")


def test_other_workers_are_told_from_the_first_ones_wherever_they_have_got_to(view, caplog):
    view.show(AT, [], 1.0)
    for now in (2.0, 3.0):
        view.show(dataclasses.replace(AT, step=24, start=10, attempt="second"), [20], now)
    assert caplog.messages == ["dmt: lost a worker after step 20; going on from step 10"]
