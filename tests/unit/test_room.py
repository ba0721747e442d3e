"""What a cluster without room for a run is answered with: flags that can be followed."""

import re
import shlex

import pytest

from smt_ray.cluster.session import check_room, cpus_needed, gpus_needed
from smt_ray.config import RunConfig
from smt_ray.pipeline.command_line import Options, parse_run
from smt_ray.pipeline.recipes import on_text
from smt_ray.pipeline.run_directory import trained_tokens

ENOUGH = 1000


def run_of(words: str) -> RunConfig:
    parsed: Options = parse_run(shlex.split(words), "", on_text)
    return parsed.run


def refused(config: RunConfig, **resources: float) -> str:
    with pytest.raises(ValueError, match=r"^runtime\.[^\n]+$") as caught:
        check_room(config, resources)
    return str(caught.value)


def test_one_gpu(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    said = refused(run_of("--runtime.gpu"), CPU=ENOUGH, GPU=1)
    assert said == (
        "runtime.gpu=True, runtime.workers=2, runtime.gangs=1, runtime.gang-ranks=2: need 2 GPUs, "
        "the cluster has 1; give --runtime.workers 1 --runtime.gang-ranks 1, or --runtime.no-gpu"
    )


def test_no_gpu_or_hidden_ones(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = refused(run_of("--runtime.gpu"), CPU=ENOUGH)
    assert said.endswith("the cluster has 0 (CUDA_VISIBLE_DEVICES=''); give --runtime.no-gpu")


@pytest.mark.parametrize("gpus", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("preset", ["small", "large"])
def test_the_flags_that_are_named_fit(preset, gpus):
    words = f"{preset} --runtime.workers 8 --runtime.gangs 2 --runtime.gang-ranks 4"
    said = refused(run_of(words), CPU=ENOUGH, GPU=gpus)
    (flags,) = re.findall(r"; give (--.*), or ", said)
    smaller = run_of(f"{words} {flags}")
    check_room(smaller, {"CPU": ENOUGH, "GPU": gpus})
    assert gpus / 2 < gpus_needed(smaller.runtime) <= gpus


@pytest.mark.parametrize("cpus", [3, 4, 6, 9])
def test_too_few_cpus(cpus):
    words = "--runtime.workers 8"
    said = refused(run_of(words), CPU=cpus)
    flags, need = re.findall(r"; give (--.*), or start Ray with --num-cpus (\d+)$", said)[0]
    check_room(run_of(f"{words} {flags}"), {"CPU": cpus})
    check_room(run_of(words), {"CPU": int(need)})


def test_cpus_for_no_run_at_all():
    run = run_of("")
    assert refused(run, CPU=2).endswith(
        f"has 2; start Ray with --num-cpus {cpus_needed(run.runtime)}"
    )


def test_tokens_that_are_trained_on_are_those_of_all_steps():
    run = run_of("--bptt.enabled --bptt.train.steps 3")
    assert trained_tokens(run) == {
        "teacher": 1800 * 8 * 128,
        "transition": 250 * 16 * 128,
        "dmt": 1100 * 16 * 128,
        "bptt": 3 * run.bptt.train.global_batch * 128,
    }
