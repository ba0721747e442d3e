"""A sweep before it runs: its command line, what it goes on with, whom it asks for trials."""

import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import yaml

from smt_ray.config import RunConfig, RuntimeConfig
from smt_ray.data.storage import Location
from smt_ray.pipeline.locks import locked
from smt_ray.report.ranking import Entry, Status
from smt_ray.studies.options import RECORD, Sweeper
from smt_ray.studies.search import Suggestions
from smt_ray.studies.space import nested, parse_space
from smt_ray.studies.trials import Planner, Records
from smt_ray.studies.tuning import Sweep, slots

TASK = ("--task", "parity", "--length", "16")
SPACE = ("--space", "model.memory-tokens=4,8")


def sweep(storage, *words):
    return Sweep(Sweeper([*TASK, "--storage", str(storage), *words]))


def begun(storage, *words):
    """Return a sweep of which the first trial is finished and the second was killed."""
    found = sweep(storage, *words)
    record = {"arguments": found.sweeper.arguments, "identity": found._identity()}
    found.directory.make_dir()
    (found.directory / RECORD).write_text(yaml.safe_dump(record))
    ends: tuple[Status, ...] = ("finished", "running")
    for status, trial in zip(ends, found.trials, strict=False):
        found.records.write(Entry(id=trial.id, status=status, fields=trial.entry.fields))
    return found


def test_fields_that_are_not_swept_hold_for_all_trials(tmp_path):
    found = sweep(tmp_path, *SPACE, "--space", "dmt.visits=4,8", "--teacher.steps=7")
    assert [trial.config.teacher.steps for trial in found.trials] == [7] * 4
    assert found.options.run.name == "parity-16-tiny-sweep"
    assert found.metric == "rnn_accuracy"
    assert not found.options.early_stop
    assert found.plan().splitlines()[-1] == "4 trials; teachers: 2, label sets: 2"
    assert list(tmp_path.iterdir()) == []


def test_a_random_search_stops_trials_early_unless_it_is_told_not_to(tmp_path):
    words = ("--space", "dmt.visits=4..8", "--search", "random", "--trials", "3")
    assert sweep(tmp_path, *words).options.early_stop
    assert not sweep(tmp_path, *words, "--no-early-stop").options.early_stop
    assert len(sweep(tmp_path, *words).trials) == 3


def test_the_seed_of_the_run_is_that_of_the_search(tmp_path):
    words = ("--space", "dmt.visits=4..8", "--search", "random", "--trials", "3")
    zero, five = sweep(tmp_path, *words).trials, sweep(tmp_path, *words, "--seed", "5").trials
    assert {trial.config.seed for trial in five} == {5}
    drawn = [[trial.config.dmt.visits for trial in found] for found in (zero, five)]
    assert not set(drawn[0]) & set(drawn[1])


def test_presets_follow_a_source_and_a_length_that_are_swept(tmp_path):
    words = ["--storage", str(tmp_path), "--space", "data.source=task:copy,task:parity"]
    words += ["--data.source", "task:copy", "--space", "data.sequence-length=24,48"]
    trials = Sweep(Sweeper(words)).trials
    assert [(t.config.data.source, t.config.loss.horizon) for t in trials] == [
        ("task:copy", 24), ("task:copy", 48), ("task:parity", 24), ("task:parity", 48),
    ]  # fmt: skip


def test_a_sweep_waits_for_another_of_its_name_and_is_then_compared_with_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, "smt_ray")
    waiting = sweep(tmp_path, *SPACE, "--name", "one")
    with ThreadPoolExecutor(1) as pool:
        with locked(waiting.directory, "another"):
            running = pool.submit(waiting.run)
            while not any("waiting for it" in line for line in caplog.messages):
                time.sleep(0.05)
            begun(tmp_path, "--space", "model.memory-tokens=4,16", "--name", "one")
        with pytest.raises(ValueError, match=r"^space=.*tokens=4,8'\]: sweep 'one' has"):
            running.result(timeout=60)


def test_a_sweep_is_gone_on_with_from_its_record(tmp_path):
    before = begun(tmp_path, *SPACE, "--name", "first", "--teacher.steps=7")
    words = ["--resume", "--name", "first", "--storage", str(tmp_path)]
    again = Sweep(Sweeper(words))
    assert again._identity() == before._identity()
    assert [trial.config for trial in again.trials] == [trial.config for trial in before.trials]
    same = begun(tmp_path, *SPACE, "--name", "first", "--teacher.steps=7", "--runtime.workers=1")
    assert same._identity() == before._identity()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher.steps=8", "--name=first"],
         "teacher.steps=8: sweep 'first' has teacher.steps=4000; choose .*"),
        (["--space=dmt.visits=4,8", "--name=first"],
         "space=['model.memory-tokens=4,8', 'dmt.visits=4.0,8.0']: sweep 'first' has space=.*"),
        (["--resume", "--name=other"], "resume=True: there is no sweep 'other' in .*"),
        (["--resume", "--overwrite", "--name=first"], "overwrite=True: begins anew what .*"),
        (["--metric", "rnn_bit"], "metric='rnn_bit': must be one of order0_bits, .*"),
        (["--trials", "0"], "trials=0: must be >= 1"),
        (["--concurrent=-1"], "concurrent=-1: must be >= 0"),
        (["--space", "model.memory-token=4"], "space=model.memory-token: unknown field; did .*"),
        (["--name", "a-run"], "name='a-run': is a run, not a sweep; choose another --name"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line(words, message, tmp_path):
    begun(tmp_path, *SPACE, "--name", "first")
    (tmp_path / "a-run").mkdir()
    (tmp_path / "a-run" / "config.yaml").touch()
    pattern = re.escape(message).replace(r"\.\*", "[^\n]*")
    with pytest.raises(ValueError, match=f"^{pattern}$"):
        sweep(tmp_path, *SPACE, *words)


def test_another_sweep_takes_the_name_only_with_overwrite(tmp_path):
    begun(tmp_path, *SPACE, "--name", "first")
    other = sweep(tmp_path, *SPACE, "--name", "first", "--teacher.steps=8", "--overwrite")
    assert other.options.run.teacher.steps == 8


def test_resume_needs_a_name_and_a_sweep(tmp_path):
    with pytest.raises(ValueError, match=r"^resume=True: needs the --name of the sweep"):
        Sweeper(["--resume"])
    with pytest.raises(ValueError, match=r"^resume=True: there is no sweep 'none' in storage="):
        Sweeper(["--resume", "--name", "none", "--storage", str(tmp_path)])


@pytest.mark.parametrize(
    ("resources", "runtime", "expected"),
    [
        ({"CPU": 8.0}, RuntimeConfig(workers=1, gang_ranks=1), 2),
        ({"CPU": 8.0}, RuntimeConfig(workers=2, gang_ranks=6), 1),
        ({"CPU": 12.0}, RuntimeConfig(workers=2, gang_ranks=1, threads=2), 2),
        ({"CPU": 3.9}, RuntimeConfig(workers=2, gang_ranks=2), 0),
        ({"CPU": 64.0, "GPU": 8.0}, RuntimeConfig(workers=2, gang_ranks=2, device="gpu"), 4),
        ({"CPU": 64.0}, RuntimeConfig(workers=2, gang_ranks=2, device="gpu"), 0),
    ],
)
def test_slots_are_what_cpus_and_gpus_have_room_for(resources, runtime, expected):
    runtime = runtime if runtime.device == "gpu" else replace(runtime, device="cpu")
    assert slots(resources, RunConfig(runtime=runtime)) == expected


def test_optuna_learns_from_trials_of_before_and_of_now(tmp_path):
    base = sweep(tmp_path, *SPACE).options.run
    planner = Planner("mine", lambda fields: base.update(nested(fields)))
    records = Records(Location.of(tmp_path) / "trials")
    space = parse_space(["dmt.visits=1..100", "model.width=60..64"])

    def entry(number, visits, **changes):
        fields = {"dmt.visits": visits, "model.width": 64}
        return Entry(**({"id": f"{number:03d}", "status": "finished", "fields": fields} | changes))

    known = [
        entry(n, visits, figures={"drift": abs(visits - 30)})
        for n, visits in enumerate(range(1, 100, 5))
    ]
    known.append(entry(20, 99.0, status="stopped"))
    suggestions = Suggestions(space, "drift", 0, planner, known)
    trials = []
    for _ in range(24):
        trial = suggestions.ask(records)
        if trial is None:
            continue
        trials.append(trial)
        score = abs(trial.entry.fields["dmt.visits"] - 30)
        done = {"status": "finished", "figures": {"drift": score}}
        suggestions.tell(Entry(**(trial.entry.to_dict() | done)))
    near = [abs(trial.config.dmt.visits - 30) < 15 for trial in trials]
    assert sum(near) / len(near) > 0.6  # a draw at random is as near in a third of the cases
    assert all(trial.config.model.width % 4 == 0 for trial in trials)
    failed = records.all()
    assert failed, "some widths cannot be divided into heads"
    assert all(one.error.startswith("model.heads=") for one in failed)
    numbers = sorted(int(one.id) for one in [*failed, *(trial.entry for trial in trials)])
    assert numbers == list(range(21, 45))
