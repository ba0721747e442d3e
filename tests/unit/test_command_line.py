"""The command line: presets, files and flags, and what each mistake is answered with."""

import gzip
import json
import re
import struct
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from jobs import pretrain_lm, pretrain_pixels, scaling_study, solve_task
from smt_ray.config import RunConfig, leaves
from smt_ray.config.presets import PRESETS, preset
from smt_ray.pipeline.recipes import on_source
from smt_ray.pipeline.short_help import SHOWN
from smt_ray.studies.options import Sweeper
from smt_ray.tasks import TASKS

ROOT = Path(__file__).parents[2]


def parse(*arguments):
    return pretrain_lm.parse(arguments)


def test_nothing_means_the_tiny_preset():
    options = parse()
    assert options.run == preset("tiny")
    assert (options.overwrite, options.plan) == (False, False)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_named_after_itself(name):
    run = parse(name).run
    assert run == preset(name)
    assert (run.preset, run.name) == (name, name)


def test_flags_replace_the_presets_fields_and_nothing_else():
    options = parse(
        *("small", "--name", "first", "--model.memory-tokens", "16", "--data.source=a b/*.txt"),
        *("--dmt.learning-rate", "1e-4", "--transition.no-warm-start", "--plan"),
        *("--runtime.workers", "4", "--runtime.gang-ranks=auto"),
    )
    changed = {
        "name": "first",
        "model.memory-tokens": 16,
        "data.source": "a b/*.txt",
        "dmt.learning-rate": 1e-4,
        "transition.warm-start": False,
        "runtime.workers": 4,
    }
    assert leaves(options.run) == leaves(preset("small")) | changed
    assert options.plan


def test_a_file_lies_between_the_preset_and_the_flags(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {memory-tokens: 4, width: 96, heads: 3}\nteacher: {steps: 7}\n")
    run = parse("paper", "--config", str(file), "--teacher.steps", "9").run
    changed = {"model.memory-tokens": 4, "model.width": 96, "model.heads": 3, "teacher.steps": 9}
    assert leaves(run) == leaves(preset("paper")) | changed
    assert parse("paper", f"--config={file}", "--teacher.steps=9").run == run


@pytest.mark.parametrize(
    "given", [["--preset", "large"], ["--preset=large"], ["large", "--preset", "large"]]
)
def test_a_preset_that_is_a_flag_is_the_preset(given):
    assert parse(*given).run == preset("large")


def test_a_preset_in_a_file_is_the_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("preset: large\nteacher: {steps: 7}\n")
    run = preset("large").override("teacher.steps", 7)
    assert parse("--config", str(file)).run == run
    assert parse("large", "--config", str(file)).run == run


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_copy_of_a_presets_file_gives_its_run(name, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text((files("smt_ray.config.presets") / f"{name}.yaml").read_text())
    assert parse("--config", str(file)).run == preset(name)


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", "+1e-3", ".1e-2", "0.001", "'1e-3'"])
def test_a_number_in_a_file_is_one_however_it_is_written(number, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"teacher: {{learning_rate: {number}, steps: 1_000}}\n")
    teacher = parse("--config", str(file)).run.teacher
    assert (teacher.learning_rate, teacher.steps) == (1e-3, 1000)


def test_the_config_of_a_run_makes_it_again(tmp_path):
    run = parse("small", "--name", "mine", "--loss.timesteps", "3", "--runtime.zero-stage", "2").run
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(run.to_dict(), sort_keys=False))
    assert parse("--config", str(file)).run == run
    assert RunConfig.from_dict(yaml.safe_load(file.read_text())) == run


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_task_lies_between_the_preset_and_the_flags(name):
    given = (name, "--task", "copy", "--length=48")
    run = solve_task.parse(given).run
    assert (run.data.source, run.data.sequence_length) == ("task:copy", 48)
    assert (run.loss.horizon, run.name, run.preset) == (48, f"copy-48-{name}", name)
    spelled = (name, "--data.source=task:copy", "--data.sequence_length", "48")
    assert solve_task.parse(spelled).run == run
    changed = {"loss.horizon": 8, "model.memory-tokens": 3, "name": "mine"}
    flags = ("--loss.horizon", "8", "--model.memory-tokens=3", "--name", "mine")
    assert leaves(solve_task.parse((*given, *flags)).run) == leaves(run) | changed


def test_text_takes_its_source_and_lowers_what_a_short_length_bounds():
    run = pretrain_lm.parse(["--data.source=books/*.txt", "--data.sequence-length", "8"]).run
    assert (run.data.source, run.loss.horizon, run.loss.timesteps) == ("books/*.txt", 8, 4)
    assert on_source("tiny", "books/*.txt", sequence_length=8) == run
    assert on_source("small") == preset("small")


@pytest.mark.parametrize(("job", "errors"), [(pretrain_lm, 0), (solve_task, 1)])
def test_the_flags_that_errors_tell_to_give_mend_them(job, errors):
    flags = ["--model.encoder", "bidirectional", *(["--task=copy"] if job is solve_task else [])]
    for _ in range(errors):
        with pytest.raises(ValueError, match=r"give --\S+") as refused:
            job.parse(flags)
        flags.append(str(refused.value).rsplit(" ", 1)[1])
    run = job.parse(flags).run
    assert (run.dense, run.loss.dense_dynamics) == (False, False)


def bptt_steps(name, kind):
    """Return the steps that a preset's file gives BPTT, in the comment beside its fields."""
    own = f"{name}-{kind}" if name == "tiny" and kind != "text" else name
    text = (files("smt_ray.config.presets") / f"{own}.yaml").read_text()
    (steps,) = re.findall(r"^bptt: .*# --bptt\.steps (\d+)", text, re.MULTILINE)
    return int(steps)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("source", ["stdlib", "pixels:digits", *(f"task:{task}" for task in TASKS)])
def test_bptt_has_as_many_sequences_as_the_teacher_and_its_precision(name, source):
    run = on_source(name, source)
    assert "bptt" not in run.stages()
    run = run.override("bptt.steps", bptt_steps(name, run.data.kind))
    bptt, teacher = run.stages()["bptt"], run.stages()["teacher"]
    assert bptt.steps * bptt.global_batch >= teacher.steps * teacher.global_batch
    assert (bptt.precision, bptt.schedule) == (teacher.precision, teacher.schedule)


@pytest.mark.parametrize("task", TASKS)
def test_bptt_on_tiny_has_the_rate_that_was_best_at_the_length_of_the_preset(task):
    run = on_source("tiny", f"task:{task}")
    cells = json.loads((ROOT / "docs" / "results" / "tasks.json").read_text()).values()
    bits = {
        cell["rate"]: round(cell["bits"], 3)
        for cell in cells
        if (cell["task"], cell["method"], cell["seconds"]) == (task, "bptt", 300)
        and (cell["length"], cell["seed"]) == (run.data.sequence_length, 0)
    }
    learned = {"copy", "modular", "parity", "stack"}  # retrieval and keysvalues stay at chance
    assert len(bits) > 2
    assert bits.get(run.bptt.learning_rate) == min(bits.values()) or task not in learned


def test_a_short_task_lowers_what_its_length_bounds():
    run = solve_task.parse(["--task", "parity", "--length", "2"]).run
    assert (run.loss.horizon, run.loss.timesteps, run.data.sequence_length) == (2, 2, 2)


def test_a_task_may_be_longer_than_the_preset_is():
    run = solve_task.parse(["--task", "retrieval", "--length", "256"]).run
    assert (run.loss.horizon, run.data.sequence_length) == (256, 256)


def test_the_config_of_a_tasks_run_makes_it_again(tmp_path):
    run = solve_task.parse(["--task=stack", "--length=20", "--data.task.sequences=3000"]).run
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(run.to_dict(), sort_keys=False))
    assert solve_task.parse(["--config", str(file)]).run == run
    longer = solve_task.parse(["--config", str(file), "--length", "40"]).run
    assert leaves(longer) == leaves(run) | {"data.sequence-length": 40}


def test_images_give_the_sequence_its_length(tmp_path):
    run = pretrain_pixels.parse([]).run
    assert (run.data.source, run.data.sequence_length) == ("pixels:digits", 64)
    assert (run.name, run.loss.horizon) == ("digits-tiny", 10)
    file = tmp_path / "train-images.idx.gz"
    file.write_bytes(struct.pack(">IIII", 0x803, 40_000, 2, 3) + bytes(6 * 40_000))
    given = ["--data.source", f"pixels:{file}"]
    other = pretrain_pixels.parse(given).run
    assert (other.name, other.loss.horizon) == ("train-images-tiny", 5)
    assert other.data.sequence_length == 6
    assert other.labels.fraction == pytest.approx(2048 / 40_000)
    assert (run.teacher.global_batch, other.dmt.global_batch) == (4, 16)
    assert run.bptt.global_batch == 16
    large = tmp_path / "large.idx.gz"
    content = struct.pack(">IIII", 0x803, 1000, 28, 28) + bytes(784_000)
    large.write_bytes(gzip.compress(content))
    run = pretrain_pixels.parse(["--data.source", f"pixels:{large}"]).run
    assert (run.loss.horizon, run.loss.timesteps) == (32, 16)
    assert (run.teacher.global_batch, run.dmt.global_batch, run.dmt.depth) == (2, 4, 28)
    assert {run.bptt.global_batch, run.finetune.global_batch} == {4}
    assert run.labels.fraction == pytest.approx(512 / 1000)
    (tmp_path / "mine.yaml").write_text(f"data: {{source: 'pixels:{file}'}}")
    assert pretrain_pixels.parse(["--config", str(tmp_path / "mine.yaml")]).run == other
    assert pretrain_pixels.parse([*given, "--data.sequence-length=5"]).run.data.sequence_length == 5


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_the_help_is_short_and_says_something_of_every_flag(word, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("tiny", word)
    assert stop.value.code == 0
    said, err = capsys.readouterr()
    assert err == ""
    assert len(said.splitlines()) <= 100
    flags = re.findall(r"^  --(\S+) *\n? +[\w`]", said, re.MULTILINE)
    assert flags == [name for names in SHOWN.values() for name in names]
    assert 30 <= len(flags) <= 40
    assert all(f"[{value}]" in said for value in (1800, 0.004, "auto", "stdlib"))
    assert "--help-all" in said


@pytest.mark.parametrize(
    ("parse_job", "own"),
    [
        (solve_task.parse, set()),
        (pretrain_pixels.parse, set()),
        (scaling_study.parse, {"workers", "gangs", "quality", "cost"}),
        (Sweeper, {"space", "search", "trials", "early-stop", "resume"}),
    ],
)
def test_the_help_of_every_job_is_short(parse_job, own, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_job(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 100
    flags = re.findall(r"^  --(\S+) *\n? +[\w`]", said, re.MULTILINE)
    assert flags == re.findall(r"^  --(\S+)", said, re.MULTILINE)
    assert {*own, *SHOWN["the run"], *SHOWN["machine"]} <= {*flags}
    assert len({*flags}) == len(flags)


def test_what_the_help_shows_is_a_field_and_a_run_has_few_of_them():
    known = leaves(RunConfig())
    assert {name for names in SHOWN.values() for name in names} <= {
        *known, "config", "overwrite", "plan"
    }  # fmt: skip
    assert len(known) <= 95


def test_the_long_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help-all")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    given = set(re.findall(r"--([a-z0-9.-]+)", said))
    assert {*leaves(RunConfig()), "config", "overwrite", "plan"} <= given


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        (solve_task, ["--task", "cpoy"], "data.source='task:cpoy': no such task; give one of .*"),
        (solve_task, ["--task", "a/b"], "data.source='task:a/b': no such task; give one of .*"),
        (solve_task, ["--task"], "--task: needs a value"),
        (solve_task, ["--length", "1"], "data.sequence-length=1: must be >= 2"),
        (solve_task, ["--length", "long"], ".*--data.sequence-length.*'long'"),
        (
            solve_task,
            ["--data.source", "stdlib"],
            "data.source='stdlib': is for jobs/pretrain_lm.py",
        ),
        (
            pretrain_lm,
            ["--data.source=task:copy"],
            "data.source='task:copy': is for jobs/solve_task.py",
        ),
        (pretrain_lm, ["--task", "copy"], "--task: unknown argument.*"),
        (pretrain_pixels, ["--data.source=pixels:"], "data.source='pixels:': .*no such file; .*"),
        (
            pretrain_pixels,
            ["--data.source=a.txt"],
            "data.source='a.txt': is for jobs/pretrain_lm.py",
        ),
    ],
)
def test_what_is_for_another_job_or_for_none_is_answered_in_one_line(job, arguments, message):
    pattern = re.escape(message).replace(r"\.\*", "[^\n]*")
    with pytest.raises(ValueError, match=f"^{pattern}$"):
        job.parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["huge"], "preset='huge': must be one of tiny, small, paper, large"),
        (["--model.memory-token", "3"], "--model.memory-token.*--model.memory-tokens.*"),
        (["--modle.width", "3"], "--modle.width.*did you mean.*"),
        (["--model.memory-tokens", "0"], "model.memory-tokens=0: must be >= 1"),
        (["--model.width=64", "--model.heads=3"], "model.heads=3: must divide model.width=64"),
        (["--model.width=64", "--model.heads=64"], "model.heads=64: .* must be even .*"),
        (["--model.width", "wide"], ".*model.width.*wide.*"),
        (["--model.width"], ".*model.width.*"),
        (["--model.cell", "rwkv"], "model.cell='rwkv': must be one of transformer, .*"),
        (["--runtime.zero-stage", "4"], ".*'4'.*--runtime.zero-stage.*one of .*'3'.*"),
        (["--data.source", ""], "data.source='': must not be empty"),
        (["--data.sequence-length", "1"], "data.sequence-length=1: must be >= 2"),
        (["--loss.horizon", "99999"], "loss.horizon=99999: must be <= data.sequence-length=.*"),
        (["--teacher.learning-rate", "0"], "teacher.learning-rate=0.0: must be > 0"),
        (["--dmt.steps", "0"], "dmt.steps=0: must be >= 1"),
        (["--labels.fraction", "2"], "labels.fraction=2.0: must be in (0, 1]"),
        (["--runtime.workers", "9"], "runtime.workers=9: teacher.global-batch=8 has a sequence .*"),
        (["--runtime.workers", "many"], ".*many.*"),
        (["--name", "a/b"], "name='a/b': must be a plain directory name, not `artifacts`"),
        (["--config", "{}/none.yaml"], "config={}/none.yaml: cannot be read .*"),
        (["--config", "{}/list.yaml"], "config={}/list.yaml: must hold fields, as .*"),
        (["--config", "{}/broken.yaml"], "config={}/broken.yaml: cannot be read (line 2: .*)"),
        (["--config", "{}/binary.yaml"], "config={}/binary.yaml: cannot be read .*"),
        (
            ["--config", "{}/unknown.yaml"],
            "model.memory: unknown field; did you mean model.memory-tokens?",
        ),
        (["--config", "{}/typed.yaml"], "model.width='wide': must be a whole number"),
        (
            ["--config", "{}/twice.yaml"],
            "config={}/twice.yaml: cannot be read (line 3: 'memory-tokens' is given twice; "
            "give it once)",
        ),
        (["--preset", "foo"], "preset='foo': must be one of tiny, small, paper, large"),
        (["small", "--preset=foo"], "preset='foo': must be one of tiny, small, paper, large"),
        (
            ["small", "--preset", "large"],
            "preset: is small by the first argument, large by --preset; give one of them",
        ),
        (
            ["small", "--config", "{}/preset.yaml"],
            "preset: is small by the first argument, large by config={}/preset.yaml; give one .*",
        ),
        (
            ["--config", "{}/no-preset.yaml"],
            "preset='foo', in config={}/no-preset.yaml: must be one of tiny, small, paper, large",
        ),
    ],
)
def test_a_mistake_is_answered_in_one_line(arguments, message, tmp_path):
    given = {
        "list.yaml": b"- 1\n",
        "broken.yaml": b"model: {width: 64\n",
        "binary.yaml": b"\xff\xfe\x00",
        "unknown.yaml": b"model: {memory: 64}\n",
        "typed.yaml": b"model: {width: wide}\n",
        "twice.yaml": b"model:\n  memory_tokens: 8\n  memory-tokens: 4\n",
        "preset.yaml": b"preset: large\n",
        "no-preset.yaml": b"preset: foo\n",
    }
    for name, content in given.items():
        (tmp_path / name).write_bytes(content)
    pattern = re.escape(message).replace(r"\.\*", "[^\n]*").replace(r"\{\}", str(tmp_path))
    with pytest.raises(ValueError, match=f"^{pattern}$") as caught:
        parse(*(argument.replace("{}", str(tmp_path)) for argument in arguments))
    assert "\u2502" not in str(caught.value)  # none of the parser's frame


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("pretrain_lm", "tiny --model.memory-tokens 0", "model.memory-tokens=0: must be >= 1"),
        ("pretrain_lm", "--data.source none/*.txt", "data.source='none/*.txt': .*; give .*"),
        ("solve_task", "--task copy --length 1", "data.sequence-length=1: must be >= 2"),
        ("solve_task", "--task modular --length 4", "data.sequence-length=4: .* at least 5 inputs"),
        ("pretrain_pixels", "--data.sequence-length 63", "data.sequence-length=63: .*; give 64"),
    ],
)
def test_the_job_exits_with_status_2_and_one_line(job, arguments, message, tmp_path):
    command = [sys.executable, f"jobs/{job}.py", *arguments.split(), "--storage", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: {re.escape(message)}\n".replace(r"\.\*", "[^\n]*"), done.stderr)
    assert list(tmp_path.iterdir()) == []
