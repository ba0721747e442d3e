"""Imports point down the floors of the house; the lower ones have neither Ray nor DeepSpeed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Top to bottom. A module may import its own folder and the floors below, no other folder of its own
# floor. The package's own names are above all
# its folders: none of them imports `smt_ray.load_rnn`.
FLOORS = (
    ("jobs", "benchmarks"),
    ("smt_ray",),
    ("smt_ray.studies",),
    ("smt_ray.pipeline",),
    ("smt_ray.labels", "smt_ray.train", "smt_ray.evaluation"),
    ("smt_ray.cluster", "smt_ray.report"),
    ("smt_ray.data",),
    ("smt_ray.tasks",),
    ("smt_ray.objectives",),
    ("smt_ray.model",),
    ("smt_ray.terminal",),
    ("smt_ray.config",),
)
REPORTING = ("jobs", "benchmarks", "smt_ray.studies", "smt_ray.pipeline", "smt_ray.report")
"""Who may import `smt_ray.report`; all others make numbers, and draw nothing."""
PURE = ("smt_ray.config", "smt_ray.model", "smt_ray.objectives", "smt_ray.tasks")
PURE_LIBRARIES = {"einops", "jaxtyping", "numpy", "torch", "yaml"}
CLUSTER = {"ray", "deepspeed"}
WITHOUT_CLUSTER = (*PURE, "smt_ray.terminal", "smt_ray.report")
"""Folders of which no module imports Ray or DeepSpeed."""
ON_CLUSTER = ("smt_ray.data.tokens", "smt_ray.evaluation.evaluator")
"""The only modules of their folders that do."""


def _folder(module: str) -> str:
    """Return the name in `FLOORS` that `module` belongs to; "" if it is not the project's."""
    names = [name for floor in FLOORS for name in floor]
    return max((n for n in names if f"{module}.".startswith(f"{n}.")), key=len, default="")


def _floor(folder: str) -> int:
    return next(n for n, floor in enumerate(FLOORS) if folder in floor)


def _imports(source: str) -> list[str]:
    """Return the dotted names that `source` imports, wherever in it the statement stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _allowed(module: str, name: str) -> bool:
    """Return whether `module` may import the dotted `name`."""
    own, other, library = _folder(module), _folder(name), name.partition(".")[0]
    if other == "smt_ray.report":
        return own in REPORTING
    if other:
        return own == other or _floor(other) > _floor(own)
    if library in CLUSTER:
        alone = own in {"smt_ray.data", "smt_ray.evaluation"} and module not in ON_CLUSTER
        return own not in WITHOUT_CLUSTER and not alone
    return own not in PURE or library in PURE_LIBRARIES | sys.stdlib_module_names


def _violations(module: str, source: str) -> list[str]:
    return [f"{module} imports {n}" for n in _imports(source) if not _allowed(module, n)]


def _modules() -> dict[str, Path]:
    """Return the project's modules outside the tests, by dotted name."""
    folders = ("smt_ray", "jobs", "benchmarks")
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }


def test_imports_point_down():
    modules = _modules()
    assert "smt_ray.config" in modules
    wrong = [line for name, path in modules.items() for line in _violations(name, path.read_text())]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("smt_ray.model.rnn", "from smt_ray.config import ModelConfig", 0),
        ("smt_ray.train.loop", "import ray.train\nfrom smt_ray import objectives", 0),
        ("smt_ray.pipeline.run", "from smt_ray.report.table import LABELS", 0),
        ("smt_ray.model.rnn", "from smt_ray.data import storage", 1),
        ("smt_ray.model.rnn", "import pyarrow as pa\nimport math", 1),
        ("smt_ray.data.reader", "def read():\n    import ray.data, deepspeed", 2),
        ("smt_ray.train.loop", "from smt_ray.pipeline.run import run", 1),
        ("smt_ray.labels.gang", "from smt_ray.train.engine import training_engine", 1),
        ("smt_ray.cluster.view", "from smt_ray.report.table import LABELS", 1),
        ("smt_ray.evaluation.scores", "from smt_ray import load_rnn", 1),
        ("smt_ray.evaluation.scores", "import ray", 1),
    ],
)
def test_violations_are_seen(module, source, count):
    assert len(_violations(module, source)) == count


def _loaded(*modules: str) -> set[str]:
    """Return the top-level modules in a fresh interpreter after it imported `modules`."""
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", script, *modules]
    return set(subprocess.check_output(command, cwd=ROOT, text=True).split())


def test_package_imports_nothing_heavy():
    assert not _loaded("smt_ray") & {"torch", "pyarrow", *CLUSTER}


def test_lower_floors_leave_ray_and_deepspeed_unloaded():
    folders = {*WITHOUT_CLUSTER, "smt_ray.data", "smt_ray.evaluation"}
    lower = [n for n in _modules() if _folder(n) in folders and n not in ON_CLUSTER]
    assert not _loaded("smt_ray", *lower) & CLUSTER


def test_training_jobs_read_their_arguments_without_ray():
    jobs = [f"jobs.{name}" for name in ("pretrain_lm", "pretrain_pixels", "solve_task")]
    assert not _loaded(*jobs) & CLUSTER


def test_no_two_modules_of_the_package_have_one_name():
    names = [n.rpartition(".")[2] for n in _modules() if n.startswith("smt_ray.")]
    folders = {n.removeprefix("smt_ray.") for floor in FLOORS for n in floor}
    twice = {name for name in names if names.count(name) > 1}
    assert not twice - folders


def test_no_two_public_classes_have_one_name():
    owners: dict[str, set[str]] = {}
    for module, path in _modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, set()).add(module)
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}
