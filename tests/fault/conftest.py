"""What the tests of faults share: a source, an undisturbed run, and a table of what faults cost."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from smt_ray.data.storage import Location
from tests.fault.runs import Child, Cost

_COSTS: dict[str, Cost] = {}
Make = Callable[..., Child]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text for many units of tokens."""
    place = tmp_path_factory.mktemp("fault") / "text.txt"
    place.write_text("".join(f"{n}: the line of number {n * n}\n" for n in range(1500)))
    return place


@pytest.fixture(scope="session")
def whole(source: Path) -> Iterator[Child]:
    """An undisturbed run of all stages but the evaluation."""
    with tempfile.TemporaryDirectory(prefix="f-", ignore_cleanup_errors=True) as place:
        child = Child(Path(place), f"{place}/runs", source, "export")
        child.start()
        assert child.wait() == 0, child.said
        yield child
        child.end()


@pytest.fixture
def child(source: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make a run up to a stage that has what an undisturbed one made before that stage."""
    with tempfile.TemporaryDirectory(prefix="f-", ignore_cleanup_errors=True) as place:
        made: list[Child] = []

        def make(last: str, storage: str = "", **environment: str) -> Child:
            new = Child(Path(place), storage or f"{place}/runs", source, last, environment)
            made.append(new)
            for before in _before(last):
                found = request.getfixturevalue("whole").artifact(before)
                place_of = Location.of(new.storage) / "artifacts" / found.name
                found.copy_to(place_of.make_dir())
            return new

        yield make
        for one in made:
            one.end()


def _before(stage: str) -> list[str]:
    order = ["tokens", "teacher", "labels", "transition", "dmt", "export"]
    return order[: order.index(stage)]


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep what a fault has cost for the table; no row may be lost or there twice."""

    def keep(cost: Cost, fault: str = "") -> None:
        _COSTS[f"{request.node.name} {fault}".strip()] = cost
        assert (cost.rows_lost, cost.rows_twice) == (0, 0)

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if _COSTS:
        terminalreporter.section("what faults cost")
        for name, cost in _COSTS.items():
            values = " ".join(f"{key}={value}" for key, value in asdict(cost).items())
            terminalreporter.write_line(f"{name}: {values}")
