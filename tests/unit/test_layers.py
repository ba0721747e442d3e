"""Imports point down the layers; below `distributed` there is no Ray and no DeepSpeed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Top to bottom; a module belongs to the longest name that it starts with, so that a new one outside
# the named packages counts as top, and nothing below may import it.
LAYERS = (
    ("jobs", "benchmarks", "smt_ray"),
    ("smt_ray.distributed",),
    ("smt_ray.data", "smt_ray.evaluation"),
    ("smt_ray.model", "smt_ray.objectives", "smt_ray.tasks", "smt_ray.config"),
)
CLUSTER = {"ray", "deepspeed"}
CLUSTER_LAYER, PURE_LAYER = 1, 3
PURE_LIBRARIES = {"einops", "jaxtyping", "numpy", "torch"}


def _layer(module: str) -> int | None:
    """Return the layer of `module`, or None if it is not one of the project's."""
    depths = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    owners = [name for name in depths if f"{module}.".startswith(f"{name}.")]
    return depths[max(owners, key=len)] if owners else None


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


def _violations(module: str, source: str) -> list[str]:
    own = _layer(module)
    assert own is not None
    wrong = []
    for name in _imports(source):
        layer, library = _layer(name), name.partition(".")[0]
        if layer is not None:
            bad = layer < own
        elif library in CLUSTER:
            bad = own > CLUSTER_LAYER
        else:
            pure = library in PURE_LIBRARIES or library in sys.stdlib_module_names
            bad = own == PURE_LAYER and not pure
        if bad:
            wrong.append(f"{module} imports {name}")
    return wrong


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
        ("smt_ray.distributed.loop", "import ray.train\nfrom smt_ray import objectives", 0),
        ("smt_ray.model.rnn", "from smt_ray.data import storage", 1),
        ("smt_ray.model.rnn", "import pyarrow as pa\nimport math", 1),
        ("smt_ray.data.reader", "def read():\n    import ray.data, deepspeed", 2),
        ("smt_ray.distributed.loop", "from smt_ray.pipeline import run", 1),
        ("smt_ray.evaluation.scores", "from smt_ray import load_rnn", 1),
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


def test_lower_layers_leave_ray_and_deepspeed_unloaded():
    lower = [name for name in _modules() if (_layer(name) or 0) > CLUSTER_LAYER]
    assert not _loaded("smt_ray", *lower) & CLUSTER


def test_training_jobs_read_their_arguments_without_ray():
    jobs = [f"jobs.{name}" for name in ("pretrain_lm", "pretrain_pixels", "solve_task")]
    assert not _loaded(*jobs) & CLUSTER
