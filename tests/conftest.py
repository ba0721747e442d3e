"""Set-up of all tests: one torch thread, fixed seeds, shapes checked at run time, one Ray."""

import logging
import os
from collections.abc import Iterator

import joblib
import pytest
import torch
from jaxtyping import install_import_hook

if not torch.cuda.is_available():
    # Read at the first import of deepspeed, here and in workers.
    os.environ["DS_ACCELERATOR"] = "cpu"

torch.set_num_threads(1)

# Every annotated call into these packages is checked; it must be on before their first import.
install_import_hook(["smt_ray.model", "smt_ray.objectives"], "beartype.beartype")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden from this run's losses"
    )


def pytest_xdist_auto_num_workers() -> int:
    """Let `-n auto` start as many processes as this one may use CPUs."""
    return joblib.cpu_count()


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten rather than compared."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start one local Ray for all tests that ask for it; logical CPUs may exceed the cores."""
    import ray

    # Ray Train looks for reports more often, here and in its workers: each report waits for it.
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.25"
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # as in a Ray of a run's own
    ray.init(
        num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
    )
    yield
    ray.shutdown()
