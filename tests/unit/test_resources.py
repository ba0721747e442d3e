"""What `auto` comes to on a machine, and that no number of workers decides a result."""

import sys

import pytest

from smt_ray.cluster.resources import (
    check_room,
    cpus_needed,
    fewest,
    gpus_needed,
    here,
    processes,
    resolved,
)
from smt_ray.config import LabelConfig, RunConfig, RuntimeConfig, leaves
from smt_ray.config.presets import PRESETS, preset
from smt_ray.pipeline.recipes import on_source
from smt_ray.pipeline.stages import fingerprints
from smt_ray.tasks import TASKS

LAPTOP = {"CPU": 2.0}
MANY_CPUS = {"CPU": 16.0}
ONE_GPU = {"CPU": 16.0, "GPU": 1.0}
EIGHT_GPUS = {"CPU": 64.0, "GPU": 8.0}
MACHINES = (LAPTOP, MANY_CPUS, ONE_GPU, EIGHT_GPUS)


def found(config, resources):
    """Return device, workers and ranks of a gang."""
    runtime = resolved(config, resources).runtime
    assert runtime.resolved
    return runtime.device, runtime.workers, runtime.gang_ranks


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"CPU": 1.0}, ("cpu", 2, 2)),  # a Ray of the run's own then offers four logical ones
        (LAPTOP, ("cpu", 2, 2)),
        (MANY_CPUS, ("cpu", 2, 2)),
        (ONE_GPU, ("gpu", 1, 1)),
        ({"CPU": 16.0, "GPU": 2.0}, ("gpu", 2, 2)),
        (EIGHT_GPUS, ("gpu", 8, 8)),
    ],
)
@pytest.mark.parametrize("name", ["small", "paper", "large"])
def test_auto_takes_the_gpus_that_are_there(name, resources, expected):
    assert found(preset(name), resources) == expected


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (LAPTOP, ("cpu", 2, 2)),
        (MANY_CPUS, ("cpu", 2, 2)),
        (ONE_GPU, ("gpu", 1, 1)),
        (EIGHT_GPUS, ("gpu", 2, 2)),  # a batch of 8 in groups of 4
        ({"CPU": 1e6, "GPU": float(sys.maxsize)}, ("gpu", 2, 2)),  # one that grows without limit
    ],
)
def test_auto_leaves_every_worker_of_tiny_a_whole_group(resources, expected):
    assert found(preset("tiny"), resources) == expected


def test_what_is_given_stays():
    run = preset("large").update({"runtime": {"workers": 4, "gang_ranks": 3}})
    assert found(run, EIGHT_GPUS) == ("gpu", 4, 3)
    assert found(run.override("runtime.device", "cpu"), EIGHT_GPUS) == ("cpu", 4, 3)
    assert found(run.override("runtime.device", "gpu"), LAPTOP) == ("gpu", 4, 3)
    assert found(preset("large").override("runtime.device", "cpu"), EIGHT_GPUS) == ("cpu", 2, 2)


def test_workers_that_come_and_go_are_planned_for_at_their_most():
    run = resolved(preset("large").override("runtime.workers", "1:4"), LAPTOP)
    assert (run.runtime.fewest_workers, run.runtime.worker_count) == (1, 4)
    assert (processes(run), processes(fewest(run))) == (4, 2)  # of two gang ranks
    check_room(run, {"CPU": 4.0})
    with pytest.raises(ValueError, match=r"^runtime\.workers=1:4, .* need 4 CPUs, .* has 3; give "):
        check_room(run, {"CPU": 3.0})
    tiny = preset("tiny").override("runtime.workers", "1:4")
    assert tiny.group == 2
    with pytest.raises(ValueError, match=r"^runtime\.workers=1:9: teacher\.global-batch=8 "):
        tiny.override("runtime.workers", "1:9")


def test_the_gpus_are_shared_among_the_gangs():
    run = preset("large")
    assert found(run.override("runtime.gangs", 2), EIGHT_GPUS) == ("gpu", 8, 4)
    assert found(run.override("runtime.gangs", 3), EIGHT_GPUS) == ("gpu", 8, 2)
    assert found(run.override("runtime.gangs", 9), EIGHT_GPUS) == ("gpu", 8, 1)


@pytest.mark.parametrize(
    ("batches", "workers"),
    [({}, 8), ({"dmt": 12}, 8), ({"transition": 7}, 7), ({"finetune": 6}, 8), ({"bptt": 3}, 3)],
)
def test_auto_workers_share_every_batch_that_is_trained_on(batches, workers):
    run = RunConfig().update({"loss": {"group": 2}, "bptt": {"steps": 1}})
    run = run.update({stage: {"global_batch": batch} for stage, batch in batches.items()})
    assert found(run, EIGHT_GPUS)[1] == workers
    for train in run.stages().values():
        assert train.global_batch >= workers


def runs():
    """Return the run of every preset on every kind of source."""
    sources = ["stdlib", "pixels:digits", *(f"task:{task}" for task in TASKS)]
    return [on_source(name, source) for name in PRESETS for source in sources]


def test_auto_never_changes_what_is_compared_or_any_artifact():
    for run in runs():
        marks = fingerprints(run, "0123")
        for resources in MACHINES:
            other = resolved(run, resources)
            assert other.group == run.group
            assert fingerprints(other, "0123") == marks
            apart = ("runtime.device", "runtime.workers", "runtime.gang-ranks")
            kept = {k: v for k, v in leaves(run).items() if k not in apart}
            assert kept == {k: v for k, v in leaves(other).items() if k not in apart}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_any_workers_that_have_a_sequence_each_are_taken(name):
    run = preset(name)
    for stage in ("finetune", "bptt"):
        run = run.override(f"{stage}.steps", 10)
    most = min(train.global_batch for train in run.stages().values())
    for workers in range(1, most + 1):
        own = resolved(run.override("runtime.workers", workers), EIGHT_GPUS)
        assert own.runtime.worker_count == workers
        assert run.loss.group % own.group == run.teacher.global_batch % own.group == 0
        for stage, train in own.stages().items():
            group = own.group if stage == "teacher" else 1
            groups = train.global_batch // group
            assert groups >= workers
            assert 1 <= own.runtime.pieces(train.global_batch, workers, group) <= groups // workers
    with pytest.raises(ValueError, match=rf"^runtime\.workers={most + 1}: "):
        run.override("runtime.workers", most + 1)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_resolved_run_says_what_it_takes(name):
    for resources in MACHINES:
        run = resolved(preset(name), resources)
        runtime = run.runtime
        gangs = runtime.gangs * runtime.rank_count
        assert processes(run) == max(runtime.worker_count, gangs)
        assert gpus_needed(run) == (processes(run) if resources.get("GPU") else 0)
        assert gpus_needed(run) <= resources.get("GPU", 0)
        assert cpus_needed(run) == processes(run) * runtime.threads + 2
        assert resolved(run, LAPTOP).runtime == runtime


def test_streamed_labels_need_gangs_and_workers_at_once():
    runtime = RuntimeConfig(device="gpu", workers=4, gangs=2, gang_ranks=3, threads=2)
    run = RunConfig(runtime=runtime, labels=LabelConfig(mode="stream"))
    assert (processes(run), gpus_needed(run), cpus_needed(run)) == (10, 10, 22)
    with pytest.raises(ValueError, match=r"^labels.fraction=0.5: must be 1 when labels.mode=str"):
        run.override("labels.fraction", 0.5)


def test_this_machine_is_looked_at():
    resources = here()
    assert resources["CPU"] >= 1
    assert resources["GPU"] >= 0
    assert resolved(RunConfig(), resources).runtime.resolved


def test_nothing_is_known_before_it_is_resolved():
    runtime = RunConfig().runtime
    assert not runtime.resolved
    for name in ("gpu", "worker_count", "rank_count"):
        with pytest.raises(AssertionError):
            getattr(runtime, name)
