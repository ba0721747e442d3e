"""What a cluster without room for a run is answered with: flags that can be followed."""

import re
import shlex

import pytest

from smt_ray.cluster.resources import check_room, cpus_needed, gpus_needed, resolved
from smt_ray.config import RunConfig
from smt_ray.pipeline.command_line import Options, parse_run
from smt_ray.pipeline.recipes import on_text
from smt_ray.pipeline.run_directory import trained_tokens

ENOUGH = 1000


def run_of(words: str, cpus: float = ENOUGH, gpus: float = 0) -> RunConfig:
    """Return the run that flags give, with numbers for such a cluster in place of `auto`."""
    parsed: Options = parse_run(shlex.split(words), "", on_text)
    return resolved(parsed.run, {"CPU": cpus, "GPU": gpus})


def refused(config: RunConfig, **resources: float) -> str:
    with pytest.raises(ValueError, match=r"^runtime\.[^\n]+$") as caught:
        check_room(config, resources)
    return str(caught.value)


def test_one_gpu(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    words = "--runtime.device gpu --runtime.workers 2 --runtime.gang-ranks 2"
    said = refused(run_of(words, gpus=1), CPU=ENOUGH, GPU=1)
    assert said == (
        "runtime.device=gpu, runtime.workers=2, runtime.gangs=1, runtime.gang-ranks=2: need 2 GPUs,"
        " the cluster has 1; give --runtime.workers 1 --runtime.gang-ranks 1, or --runtime.device "
        "cpu"
    )
    check_room(run_of(f"{words} --runtime.device cpu", gpus=1), {"CPU": ENOUGH, "GPU": 1})


def test_no_gpu_or_hidden_ones(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = refused(run_of("--runtime.device gpu"), CPU=ENOUGH)
    assert said.endswith("the cluster has 0 (CUDA_VISIBLE_DEVICES=''); give --runtime.device cpu")


@pytest.mark.parametrize("gpus", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("preset", ["small", "large"])
def test_the_flags_that_are_named_fit(preset, gpus):
    words = f"{preset} --runtime.workers 8 --runtime.gangs 2 --runtime.gang-ranks 4"
    said = refused(run_of(words, gpus=gpus), CPU=ENOUGH, GPU=gpus)
    (flags,) = re.findall(r"; give (--.*), or ", said)
    smaller = run_of(f"{words} {flags}", gpus=gpus)
    check_room(smaller, {"CPU": ENOUGH, "GPU": gpus})
    assert gpus / 2 < gpus_needed(smaller) <= gpus


@pytest.mark.parametrize("cpus", [3, 4, 6, 9])
def test_too_few_cpus(cpus):
    words = "--runtime.workers 8"
    said = refused(run_of(words, cpus), CPU=cpus)
    flags, need = re.findall(r"; give (--.*), or start Ray with --num-cpus (\d+)$", said)[0]
    check_room(run_of(f"{words} {flags}", cpus), {"CPU": cpus})
    check_room(run_of(words, int(need)), {"CPU": int(need)})


def test_threads_are_counted():
    words = "--runtime.workers 4 --runtime.threads 4"
    said = refused(run_of(words), CPU=12)
    assert said == (
        "runtime.workers=4, runtime.gangs=1, runtime.gang-ranks=2, runtime.threads=4: need 18 CPUs,"
        " the cluster has 12; give --runtime.workers 2, or start Ray with --num-cpus 18"
    )
    check_room(run_of(f"{words} --runtime.workers 2"), {"CPU": 12})


def test_cpus_for_no_run_at_all():
    run = run_of("", cpus=2)
    assert refused(run, CPU=2).endswith(f"has 2; start Ray with --num-cpus {cpus_needed(run)}")


def test_tokens_that_are_trained_on_are_those_of_all_steps():
    run = run_of("--bptt.steps 3")
    assert trained_tokens(run) == {
        "teacher": 1800 * 8 * 128,
        "transition": 250 * 16 * 128,
        "dmt": 1100 * 16 * 128,
        "bptt": 3 * run.bptt.global_batch * 128,
    }
