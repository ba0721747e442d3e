"""Trials of a sweep that share a teacher and its labels, one of which fails."""

import csv
import re
import sysconfig
from pathlib import Path

import pytest
import torch
import yaml

from smt_ray import load_rnn
from smt_ray.config import RunConfig
from smt_ray.pipeline.run import run
from smt_ray.studies.options import Sweeper
from smt_ray.studies.tuning import Sweep

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SMALL = (
    *("--data.sequence-length=16", "--loss.horizon=2", "--loss.timesteps=1", "--model.width=8"),
    *("--model.memory-tokens=2", "--model.heads=2", "--model.encoder-depth=1"),
    *("--model.register-depth=1", "--model.cell-depth=1", "--teacher.steps=6"),
    *("--optimizer.validate-every=3", "--optimizer.validation-sequences=16"),
    *("--transition.steps=4", "--dmt.steps=4", "--labels.fraction=0.1"),
    *("--evaluation.sequences=16", "--evaluation.sample-length=8"),
    *("--runtime.device=cpu", "--runtime.workers=1", "--runtime.gang-ranks=1"),
)
FAILS = "1e+30"


def test_trials_share_a_teacher_and_one_that_fails_stops_no_other(tmp_path, caplog):
    code = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes()
    (tmp_path / "argparse.txt").write_bytes(code)
    words = ["--data.source", str(tmp_path / "argparse.txt"), "--storage", str(tmp_path), *SMALL]
    words += ["--name", "cells", "--space", "transition.cell=gru"]
    words += ["--space", f"transition.learning-rate={FAILS},1e-3"]
    sweep = Sweep(Sweeper(words))
    assert sweep.plan().splitlines()[-1] == "2 trials; teachers: 1, label sets: 1"
    with caplog.at_level("INFO", "smt_ray"):
        summary = sweep.run()
    counts = {name: summary[name] for name in ("trials", "finished", "failed", "stopped")}
    assert counts == {"trials": 2, "finished": 1, "failed": 1, "stopped": 0}
    assert (summary["teachers"], summary["label_sets"], summary["best"]) == (1, 1, "001")
    made = [path.name.partition("-")[0] for path in (tmp_path / "artifacts").iterdir()]
    assert all(made.count(stage) == 1 for stage in ("tokens", "teacher", "labels", "dmt"))
    assert re.search(r"made by run .cells-00\d. \(.*\) since .*; waiting for it", caplog.text)
    with open(tmp_path / "cells" / "sweep.csv") as file:
        failed, finished = csv.DictReader(file)
    assert failed["status"] == "failed"
    assert failed["error"].startswith("transition: loss/total")
    assert float(finished["rnn_bits"]) == summary["best_rnn_bits"] < 9
    assert (tmp_path / "cells" / "report.html").exists()

    rnn = load_rnn(tmp_path / "cells" / "rnn")
    assert rnn.config.cell == "gru"
    assert rnn.step(rnn.initial(2), torch.tensor([1, 2])).isfinite().all()
    best = RunConfig.from_dict(yaml.safe_load((tmp_path / "cells" / "best.yaml").read_text()))
    assert best.name == "cells-001"
    assert run(best)["resumed"]
    assert sum("found: " in record.message for record in caplog.records) >= 3

    again = Sweep(Sweeper(["--resume", "--name", "cells", "--storage", str(tmp_path)]))
    assert [entry.status for entry in again.records.all()] == ["failed", "finished"]
