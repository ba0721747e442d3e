"""Time by work: the probe's own work takes its seconds; waiting and the probes take none."""

import time

import torch

from benchmarks.timer import REFERENCE, Timer


def test_work_takes_its_seconds_of_the_reference_core():
    timer = Timer()
    began = timer.now()
    timer.work(100)
    assert 0.5 < (timer.now() - began) / (100 / REFERENCE) < 2
    assert 0.5 < timer.speed / (REFERENCE * timer.worth) < 2


def test_waiting_takes_no_time():
    timer = Timer()
    began = timer.now()
    time.sleep(0.3)
    assert timer.now() - began < 0.1


def test_probes_take_no_time(monkeypatch):
    timer = Timer()
    monkeypatch.setattr("benchmarks.timer.EVERY", 0.0)
    began, used = timer.now(), time.process_time()
    for _ in range(5):
        timer.now()
    probed = (time.process_time() - used) * timer.worth
    assert timer.now() - began < 0.2 * probed


def test_random_numbers_of_others_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Timer()
    assert torch.equal(torch.rand(2), expected)


def test_what_takes_no_gradient_is_timed():
    with torch.inference_mode():
        timer = Timer()
        timer.probe()
        assert timer.now() > 0
