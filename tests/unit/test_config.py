"""The configuration: round trips, overrides, and the message of every rule."""

import json
import re

import pytest

from smt_ray.config import ModelConfig, RunConfig, RuntimeConfig, leaves

CHANGED = {
    "name": "first",
    "data.sequence-length": 320,
    "model.memory-tokens": 16,
    "model.cell": "gru",
    "teacher.learning-rate": 1e-3,
    "transition.steps": 7,
    "dmt.visits": 3.5,
    "runtime.workers": 2,
    "runtime.zero-stage": 3,
    "experimental.dense": False,
}


def test_round_trip_through_json():
    config = RunConfig()
    for key, value in CHANGED.items():
        config = config.override(key, value)
    assert {key: leaves(config)[key] for key in CHANGED} == CHANGED
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_leaf_can_be_overridden_by_its_own_value():
    config = RunConfig()
    for key, value in leaves(config).items():
        assert config.override(key, value) == config


def test_override_takes_dashes_and_underscores_and_changes_nothing_else():
    config = RunConfig()
    changed = config.override("model.memory-tokens", 16)
    assert changed == config.override("model.memory_tokens", 16)
    assert leaves(changed) == leaves(config) | {"model.memory-tokens": 16}
    assert config == RunConfig()


def test_missing_fields_take_their_defaults():
    assert RunConfig.from_dict({"model": {"width": 32}}) == RunConfig().override("model.width", 32)


@pytest.mark.parametrize("key", ["loss.uniformity", "teacher.learning-rate", "dmt.visits"])
def test_integers_become_floats(key):
    value = leaves(RunConfig().override(key, 1))[key]
    assert value == 1.0
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("teacher.learning-rate", "1e-3", 1e-3),
        ("teacher.learning-rate", "1E-3", 1e-3),
        ("teacher.learning-rate", ".5", 0.5),
        ("teacher.learning-rate", "2", 2.0),
        ("model.width", "64", 64),
        ("model.width", 64.0, 64),
        ("model.width", "64.0", 64),
        ("teacher.steps", "1_000", 1000),
        ("teacher.steps", "1e3", 1000),
        ("seed", 2**60 + 1, 2**60 + 1),
        ("runtime.zero-stage", "3", 3),
        ("runtime.zero-stage", 3.0, 3),
        ("runtime.workers", "2", 2),
        ("runtime.workers", 2.0, 2),
        ("runtime.workers", "auto", "auto"),
        ("runtime.workers", "1:4", "1:4"),
    ],
)
def test_an_obvious_number_is_taken(key, given, value):
    taken = leaves(RunConfig().override(key, given))[key]
    assert (taken, type(taken)) == (value, type(value))


def _refused(message):
    """Expect a `ValueError` that says `message` and no more."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "model.memory-token",
            "model.memory-token: unknown field; did you mean model.memory-tokens?",
        ),
        ("modle.width", "modle: unknown field; did you mean model?"),
        ("data.task.pair", "data.task.pair: unknown field; did you mean data.task.pairs?"),
    ],
)
def test_an_unknown_field_names_the_nearest(key, message):
    with _refused(message):
        RunConfig().override(key, 8)


def test_whitening_needs_sequences_to_compare():
    runs = RunConfig().update(
        {"loss": {"whiten_dynamics": "slots"}, "teacher": {"global_batch": 4}}
    )
    assert runs.group == 4
    assert runs.override("runtime.workers", 2).group == 2
    message = (
        "loss.whiten-dynamics=slots: needs two sequences that are compared: loss.group and "
        "teacher.global-batch=4 must have a divisor above 1 that leaves a group for each of "
        "runtime.workers="
    )
    for key, value, workers in (("runtime.workers", 3, 3), ("loss.group", 3, "auto")):
        with _refused(f"{message}{workers}"):
            runs.override(key, value)


@pytest.mark.parametrize(
    ("batch", "workers", "most", "group", "pieces"),
    [
        (16, 2, 16, 1, 1),
        (16, 2, 3, 1, 3),
        (48, 2, 16, 1, 2),
        (7, 2, 2, 1, 2),
        (7, 3, 1, 1, 2),  # the third has three sequences, the others two
        (48, 2, 16, 8, 2),
        (48, 2, 1, 8, 3),  # one group at least
        (20, 3, 4, 4, 1),  # five groups: one worker has one alone
        (8, 4, 16, 4, 1),
    ],
)
def test_all_workers_take_the_same_number_of_forwards(batch, workers, most, group, pieces):
    assert RuntimeConfig(micro_batch=most).pieces(batch, workers, group) == pieces


def test_an_unknown_field_of_a_dictionary_names_the_nearest():
    with _refused("dmt.visit: unknown field; did you mean dmt.visits?"):
        RunConfig.from_dict({"dmt": {"visit": 1}})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        # The type of a value.
        ("model.width", "wide", "model.width='wide': must be a whole number"),
        ("model.width", "64 bits", "model.width='64 bits': must be a whole number"),
        ("model.width", "64.5", "model.width='64.5': must be a whole number"),
        ("model.width", "1e400", "model.width='1e400': must be a whole number"),
        ("model.width", 64.5, "model.width=64.5: must be a whole number"),
        ("model.width", float("nan"), "model.width=nan: must be a whole number"),
        ("model.width", float("inf"), "model.width=inf: must be a whole number"),
        ("model.width", True, "model.width=True: must be a whole number"),
        ("model.width", None, "model.width=None: must be a whole number"),
        ("model.width", [64], "model.width=[64]: must be a whole number"),
        ("dmt.unroll", 1, "dmt.unroll=1: must be true or false"),
        ("dmt.unroll", "no", "dmt.unroll='no': must be true or false"),
        ("loss.dynamics", True, "loss.dynamics=True: must be a number"),
        ("loss.dynamics", "fast", "loss.dynamics='fast': must be a number"),
        ("loss.dynamics", None, "loss.dynamics=None: must be a number"),
        ("loss.dynamics", float("inf"), "loss.dynamics=inf: must be finite"),
        ("name", 7, "name=7: must be text; put it in quotes"),
        ("runtime.gang-ranks", 1.5, "runtime.gang-ranks=1.5: must be a whole number, or 'auto'"),
        *(
            (
                "runtime.workers",
                workers,
                f"runtime.workers={workers}: must be a whole number >= 1, auto, or MIN:MAX as in "
                "2:8",
            )
            for workers in ("many", 1.5, True, "2:", "0:2", "3:2", "1:2:3", "-1:2", "")
        ),
        ("runtime.device", "tpu", "runtime.device='tpu': must be one of auto, cpu, gpu"),
        ("runtime.zero-stage", True, "runtime.zero-stage=True: must be one of 0, 1, 2, 3"),
        (
            "model.cell",
            "rwkv",
            "model.cell='rwkv': must be one of transformer, gated, mlp, gru, or module:Class",
        ),
        ("runtime.zero-stage", 4, "runtime.zero-stage=4: must be one of 0, 1, 2, 3"),
        # Its range.
        ("data.source", "", "data.source='': must not be empty"),
        ("data.source", "hf:", "data.source='hf:': must name a data set, as hf:NAME or hf:DIR"),
        ("data.sequence-length", 1, "data.sequence-length=1: must be >= 2"),
        ("data.validation-fraction", 0.0, "data.validation-fraction=0.0: must be in (0, 0.5]"),
        ("data.validation-fraction", 0.6, "data.validation-fraction=0.6: must be in (0, 0.5]"),
        ("model.width", 0, "model.width=0: must be >= 1"),
        ("model.memory-tokens", 0, "model.memory-tokens=0: must be >= 1"),
        ("model.heads", 0, "model.heads=0: must be >= 1"),
        ("model.encoder-depth", 0, "model.encoder-depth=0: must be >= 1"),
        ("model.register-depth", 0, "model.register-depth=0: must be >= 1"),
        ("model.decoder-depth", 0, "model.decoder-depth=0: must be >= 1"),
        ("model.cell-depth", 0, "model.cell-depth=0: must be >= 1"),
        ("loss.dynamics", -1, "loss.dynamics=-1.0: must be >= 0"),
        ("loss.uniformity", -1, "loss.uniformity=-1.0: must be >= 0"),
        ("loss.timesteps", 0, "loss.timesteps=0: must be >= 1"),
        ("loss.horizon", 0, "loss.horizon=0: must be >= 1"),
        ("loss.group", 0, "loss.group=0: must be >= 1"),
        ("teacher.steps", 0, "teacher.steps=0: must be >= 1"),
        ("teacher.global-batch", 0, "teacher.global-batch=0: must be >= 1"),
        ("optimizer.validate-every", 0, "optimizer.validate-every=0: must be >= 1"),
        (
            "optimizer.validation-sequences",
            0,
            "optimizer.validation-sequences=0: must be >= 1",
        ),
        ("optimizer.weight-decay", -0.1, "optimizer.weight-decay=-0.1: must be >= 0"),
        ("seed", -1, "seed=-1: must be >= 0"),
        ("teacher.learning-rate", 0.0, "teacher.learning-rate=0.0: must be > 0"),
        ("teacher.learning-rate", float("nan"), "teacher.learning-rate=nan: must be > 0"),
        ("teacher.learning-rate", float("inf"), "teacher.learning-rate=inf: must be finite"),
        ("optimizer.clip-norm", 0.0, "optimizer.clip-norm=0.0: must be > 0"),
        ("optimizer.warmup-fraction", -0.1, "optimizer.warmup-fraction=-0.1: must be >= 0"),
        ("optimizer.warmup-fraction", 1.0, "optimizer.warmup-fraction=1.0: must be < 1"),
        ("optimizer.beta1", 1.0, "optimizer.beta1=1.0: must be < 1"),
        ("optimizer.beta2", 1.0, "optimizer.beta2=1.0: must be < 1"),
        ("transition.steps", 0, "transition.steps=0: must be >= 1"),
        ("dmt.steps", 0, "dmt.steps=0: must be >= 1"),
        ("labels.fraction", 0.0, "labels.fraction=0.0: must be in (0, 1]"),
        ("labels.fraction", 1.5, "labels.fraction=1.5: must be in (0, 1]"),
        ("dmt.visits", 0.5, "dmt.visits=0.5: must be >= 1"),
        ("dmt.depth", 0, "dmt.depth=0: must be >= 1"),
        ("dmt.dynamics", -1, "dmt.dynamics=-1.0: must be >= 0"),
        ("bptt.steps", -1, "bptt.steps=-1: must be >= 0"),
        ("finetune.steps", -1, "finetune.steps=-1: must be >= 0"),
        ("unroll.span", 0, "unroll.span=0: must be >= 1"),
        ("unroll.visits", 0.5, "unroll.visits=0.5: must be >= 1"),
        ("experimental.readout", -1, "experimental.readout=-1.0: must be >= 0"),
        (
            "runtime.workers",
            0,
            "runtime.workers=0: must be a whole number >= 1, auto, or MIN:MAX as in 2:8",
        ),
        ("runtime.threads", 0, "runtime.threads=0: must be >= 1"),
        ("runtime.micro-batch", 0, "runtime.micro-batch=0: must be >= 1"),
        ("runtime.gangs", 0, "runtime.gangs=0: must be >= 1"),
        ("runtime.gang-ranks", 0, "runtime.gang-ranks=0: must be >= 1, or auto"),
        ("runtime.gang-batch", 0, "runtime.gang-batch=0: must be >= 1"),
        ("runtime.checkpoint-every", 0, "runtime.checkpoint-every=0: must be >= 1"),
        ("runtime.log-every", 0, "runtime.log-every=0: must be >= 1"),
        ("runtime.max-failures", -1, "runtime.max-failures=-1: must be >= 0"),
        ("name", "", "name='': must be a plain directory name, not `artifacts`"),
        ("name", "a/b", "name='a/b': must be a plain directory name, not `artifacts`"),
        ("name", "..", "name='..': must be a plain directory name, not `artifacts`"),
        ("name", "artifacts", "name='artifacts': must be a plain directory name, not `artifacts`"),
        ("transition.cell-depth", -1, "transition.cell-depth=-1: must be >= 0"),
        (
            "transition.cell",
            "rwkv",
            "transition.cell='rwkv': must be one of transformer, gated, mlp, gru, or module:Class",
        ),
        # Its agreement with other fields.
        ("model.heads", 3, "model.heads=3: must divide model.width=64"),
        (
            "model.heads",
            64,
            "model.heads=64: model.width / model.heads must be even (rotary positions), width=64",
        ),
        ("loss.timesteps", 129, "loss.timesteps=129: must be <= data.sequence-length=128"),
        ("loss.horizon", 129, "loss.horizon=129: must be <= data.sequence-length=128"),
        (
            "runtime.workers",
            33,
            "runtime.workers=33: teacher.global-batch=32 has a sequence for so many only; lower "
            "the one or raise the other",
        ),
    ],
)
def test_a_bad_value_is_refused_in_one_line(key, value, message):
    with _refused(message):
        RunConfig().override(key, value)


def test_a_section_must_be_a_mapping():
    with _refused("model=3: must be a mapping of fields"):
        RunConfig.from_dict({"model": 3})


def test_a_bidirectional_encoder_turns_dense_off_by_itself():
    run = RunConfig()
    assert run.dense
    paper = run.override("model.encoder", "bidirectional")
    assert not paper.dense
    message = (
        "loss.dense-dynamics=True: needs model.encoder=causal and experimental.dense; give "
        "--loss.no-dense-dynamics"
    )
    for sparse in (paper, run.override("experimental.dense", False)):
        assert not sparse.dense
        with _refused(message):
            sparse.override("loss.dense-dynamics", True)


def test_a_stage_that_is_left_out_is_not_checked():
    run = RunConfig().update({"bptt": {"global_batch": 7}, "runtime": {"workers": 8}})
    assert "bptt" not in run.stages()
    message = (
        "runtime.workers=8: bptt.global-batch=7 has a sequence for so many only; lower the one or "
        "raise the other"
    )
    with _refused(message):
        run.override("bptt.steps", 1)
    with _refused("finetune.learning-rate=0.0: must be > 0"):
        run.update({"finetune": {"steps": 1, "learning_rate": 0}})


def test_stages_share_the_optimizer_and_later_ones_go_to_zero():
    run = RunConfig().update(
        {
            "seed": 5,
            "optimizer": {"schedule": "constant", "beta2": 0.9, "validation_sequences": 100},
            "dmt": {"steps": 7, "global_batch": 16, "learning_rate": 0.5},
            "finetune": {"steps": 3},
            "bptt": {"steps": 4},
        }
    )
    stages = run.stages()
    assert list(stages) == ["teacher", "transition", "dmt", "finetune", "bptt"]
    assert [train.schedule for train in stages.values()] == [
        "constant", "cosine", "cosine", "cosine", "constant"
    ]  # fmt: skip
    assert {(train.seed, train.beta2) for train in stages.values()} == {(5, 0.9)}
    dmt = stages["dmt"]
    assert (dmt.steps, dmt.global_batch, dmt.learning_rate) == (7, 16, 0.5)
    assert dmt.validation_batches == 6
    larger = run.override("dmt.global-batch", 128).stages()["dmt"]
    assert larger.validation_batches == 1


def test_the_rnn_has_the_teachers_cell_or_its_own():
    run = RunConfig().update({"model": {"cell": "gated", "cell_depth": 3}})
    assert run.rnn_model == run.model
    assert run.warm_start
    assert not run.override("transition.warm-start", False).warm_start
    own = run.override("transition.cell", "gru")
    assert own.rnn_model == ModelConfig(cell="gru", cell_depth=3)
    assert own.model == run.model
    assert not own.warm_start
    gated = own.override("transition.cell", "gated")
    assert gated.rnn_model == run.model
    assert gated.warm_start
    assert run.override("transition.cell-depth", 1).rnn_model.cell_depth == 1
