"""Commands of the README and of docs/cluster.md are parsed; the modules that it names are there."""

import itertools
import re
import shlex
import subprocess
from functools import partial
from pathlib import Path

import pytest

from jobs import evaluate, generate, pretrain_lm, pretrain_pixels, scaling_study, solve_task
from smt_ray.cluster.prometheus import COUNTERS, GAUGES
from smt_ray.pipeline.command_line import Options, parse, parse_run
from smt_ray.pipeline.recipes import on_source
from smt_ray.studies.options import Sweeper
from smt_ray.studies.tuning import Sweep
from smt_ray.tasks import TASKS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CLUSTER = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README + CLUSTER, re.DOTALL)
LINES = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
COMMANDS = [words for line in LINES if (words := shlex.split(line, comments=True))]

JOBS = {
    "pretrain_lm": pretrain_lm.parse,
    "pretrain_pixels": pretrain_pixels.parse,
    "solve_task": solve_task.parse,
    "scaling_study": scaling_study.parse,
    "sweep": lambda arguments: Sweep(Sweeper(arguments)),
    "generate": lambda arguments: parse(generate.GenerateOptions, arguments, ""),
    "evaluate": lambda arguments: parse(evaluate.EvaluateOptions, arguments, ""),
}


def test_the_blocks_are_found():
    assert ["make", "pretrain"] in COMMANDS
    assert ["make", "test"] in COMMANDS
    assert ["ray", "up", "--yes", "cluster.yaml"] in COMMANDS


def test_every_series_is_documented():
    named = dict(GAUGES.values())
    rows = [f"| `ray_{name}` | gauge |" for name in named]
    rows += [f"| `ray_{name}_total` | counter |" for name in COUNTERS]
    assert all(row in CLUSTER for row in rows)
    assert CLUSTER.count("| `ray_smt_ray_") == len(rows)


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if any(word.startswith("jobs/") for word in words)]
)
def test_a_job_takes_its_arguments(words):
    at = next(n for n, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word))
    arguments = words[at + 1 :]
    job = JOBS[words[at].removeprefix("jobs/").removesuffix(".py")]
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stop:
            job(arguments)
        assert stop.value.code == 0
    else:
        job(arguments)
    for option, value in itertools.pairwise(words):
        if option == "--runtime-env":
            assert (ROOT / value).exists()


@pytest.mark.parametrize("source", ["stdlib", "pixels:digits", *(f"task:{task}" for task in TASKS)])
def test_the_papers_own_encoder_and_dmt_are_the_flags_that_are_named(source):
    inline = re.findall(r"`(--[^`]+ --[^`]+)`", README)
    encoder, dmt = (
        next(flags.split() for flags in inline if flags.startswith(f"--{name}"))
        for name in ("model.encoder", "dmt.mode")
    )
    parsed: Options = parse_run([*encoder, *dmt], "", partial(on_source, source=source))
    run = parsed.run
    assert (run.model.encoder, run.dmt.mode) == ("bidirectional", "sequential")
    assert not run.dense
    assert (run.dmt.unroll, run.dmt.dynamics, run.dmt.fade) == (False, 10.0, 0.0)


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "make"])
def test_a_make_target_is_there(words):
    result = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True)
    assert result.returncode == 0


def test_the_modules_of_the_table_are_the_modules_of_the_project():
    table = README[README.index("## Where things are") :]
    named = set(re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", table))
    found = {
        path.name
        for folder in ("smt_ray", "jobs", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert named == found
