"""What the scaling benchmark makes of its points, where these follow a known law."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import paper, scaling
from benchmarks.scaling import QUICK, SIZES, STAGES, scaling_figures
from smt_ray.studies.flops import networks, sequence_flops, validation_flops
from smt_ray.studies.measurements import Point

FIXED_S, S_PER_FLOP, CHECKPOINT_S, WEAK = 0.05, 2e-10, 0.3, 0.8


def point(one, steps):
    """Return the point of a machine whose steps take `FIXED_S`, and time for their FLOPs."""
    config, labels = one.config, one.stage == "labels"
    length = config.data.sequence_length
    batch = config.runtime.gang_batch
    if not labels:
        batch = config.stages()[one.stage].global_batch // one.count
    flops = batch * sequence_flops(config, paper.VOCABULARY)[one.stage]
    checked = 0.0 if labels else batch * validation_flops(config, paper.VOCABULARY)[one.stage]
    step_s = (FIXED_S + S_PER_FLOP * flops) / (1.0 if one.count == 1 else WEAK)
    validation_s = S_PER_FLOP * checked
    beside = 0.0 if labels else 2 * (validation_s + CHECKPOINT_S)
    return Point(
        stage=one.stage,
        scaling=one.scaling,
        count=one.count,
        processes=one.count,
        batch=batch * one.count,
        per_s=batch * one.count * length / step_s,
        step_s=step_s,
        step_flops=flops,
        peak_flops_per_s=1e11,
        startup_s=30.0,
        tokens=steps * batch * one.count * length,
        seconds=steps * step_s + beside,
        checkpoint_s=0.0 if labels else CHECKPOINT_S,
        validation_s=validation_s,
        validation_flops=checked,
        parameters=networks(config, paper.VOCABULARY).parameters[one.stage],
    )


def test_figures_of_a_known_machine(monkeypatch, tmp_path: Path):
    made = []

    def measure(config, place, planned, steps):
        made.extend(planned)
        return [point(one, steps) for one in planned]

    monkeypatch.setattr(scaling, "_measure", measure)
    figures = scaling_figures(tmp_path, replace(QUICK, turns=3), SIZES["tiny"])
    assert {one.stage for one in made} == set(STAGES)
    assert len(made) == 3 * 3 * 2 + 3 + 3
    for stage in STAGES:
        assert figures[f"weak_efficiency_2_{stage}"] == pytest.approx(WEAK)
        assert figures[f"cost_model_error_{stage}"] < 0.02
    errors = [figures[f"cost_model_error_{stage}"] for stage in STAGES]
    assert figures["cost_model_error"] == max(errors)
