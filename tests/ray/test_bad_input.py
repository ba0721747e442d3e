"""What the preflight answers to a cluster that a run does not fit."""

import re

import pytest

from smt_ray.cluster.session import check_shared, preflight
from smt_ray.config import RunConfig, RuntimeConfig
from smt_ray.data.storage import Location

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def config(tmp_path):
    runtime = RuntimeConfig(device="cpu", workers=2, gang_ranks=2)
    return RunConfig(storage=str(tmp_path), runtime=runtime)


def refused(config):
    """Return the one line with which the preflight refuses."""
    with pytest.raises(ValueError, match=r"^(runtime|storage)\S*=") as caught:
        preflight(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_too_few_cpus_are_named_with_their_number(config):
    said = refused(config.override("runtime.gangs", 4).override("runtime.gang-ranks", 3))
    assert said == (
        "runtime.workers=2, runtime.gangs=4, runtime.gang-ranks=3: need 14 CPUs, the cluster has "
        "8; give --runtime.gangs 2, or start Ray with --num-cpus 14"
    )
    preflight(config.override("runtime.gangs", 3))


def test_gpus_that_are_not_there_are_named(config):
    said = refused(config.override("runtime.device", "gpu"))
    assert re.fullmatch(
        r"runtime.device=gpu, runtime.workers=2, .*: need 2 GPUs, the cluster has 0( \(.*\))?; "
        "give --runtime.device cpu",
        said,
    )


def test_storage_that_a_node_does_not_see_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Location.of("/proc/self/cwd/runs")  # another directory in every process
    with pytest.raises(ValueError, match=r"^storage=/proc/self/cwd/runs: node [\d.]+ does not see"):
        check_shared(place)
    assert list((tmp_path / "runs").iterdir()) == []


def test_storage_that_all_nodes_see_is_left_as_it_was(tmp_path):
    check_shared(Location.of(tmp_path))
    assert list(tmp_path.iterdir()) == []
