"""What the terminal is told of a long stage: where it is, and that it stands still."""

import dataclasses

import pytest

from smt_ray.cluster.view import PLAIN_EVERY_S, STALL_S, Progress, View

AT = Progress(stage="dmt", step=20, steps=100, loss=2.5, rate=50.0)


@pytest.fixture
def view(caplog):
    """A view that was begun at time 0, on no terminal."""
    caplog.set_level("INFO")
    return View(0.0, terminal=False)


def test_a_line_is_said_when_there_is_a_step_and_not_again_without_one(view, caplog):
    view.show(AT, 1.0)
    later = dataclasses.replace(AT, step=40)
    for now in (PLAIN_EVERY_S + 1, PLAIN_EVERY_S + 5, 2 * PLAIN_EVERY_S + 5):
        view.show(later, now)
    assert caplog.messages == ["dmt        40 of 100  loss 2.5000  50 tokens/s  30.0 s left"]


def test_a_stage_without_a_loss_shows_none(view, caplog):
    view.show(Progress(stage="labels", step=0, steps=4000, rate=0.0, unit="labels"), 1.0)
    view.show(Progress(stage="labels", step=1000, steps=4000, rate=100.0, unit="labels"), 11.0)
    assert caplog.messages == ["labels     1,000 of 4,000  100 labels/s  30.0 s left"]


def test_standing_still_is_said_each_time_that_a_while_has_passed(view, caplog):
    view.show(AT, 1.0)
    for second in range(2, int(2 * STALL_S) + 4):
        view.show(AT, float(second))
    after = "at 20 of 100; a worker is stopped, slow, or validating"
    assert caplog.messages == [
        f"dmt: no step for 31.0 s, {after}",
        f"dmt: no step for 1 min 2 s, {after}",
    ]


def test_slow_steps_are_waited_for_longer(view, caplog):
    view.show(AT, 0.0)
    slow = dataclasses.replace(AT, step=21)
    view.show(slow, 20.0)
    caplog.clear()
    view.show(slow, 20.0 + 9 * 20)
    assert caplog.messages == []
    view.show(slow, 20.0 + 11 * 20)
    assert caplog.messages[0].startswith("dmt: no step for 3 min 40 s, at 21 of 100")


def test_the_time_left_is_that_of_the_workers_that_are_there(view, caplog):
    view.show(AT, 1.0)
    view.restart()
    view.show(dataclasses.replace(AT, step=10), 5.0)
    view.show(dataclasses.replace(AT, step=20), 15.0)
    assert caplog.messages == ["dmt        20 of 100  loss 2.5000  50 tokens/s  1 min 20 s left"]
