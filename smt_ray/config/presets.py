"""Named starting points of a run, from two CPU cores to a cluster.

A preset says how large the networks are and how long they train on text; `recipes.py` turns one
into a run on any source. BPTT, the baseline, is trained as the teacher is: on as many sequences, at
its rate (on `tiny` the best of those tried, docs/results.md), in its precision. Fine-tuning has the
settings of DMT; on `tiny` they are its own, whose rate was tried on tasks and images alone.
"""

from collections.abc import Callable

from smt_ray.config import (
    BpttConfig,
    DataConfig,
    DmtConfig,
    EvaluationConfig,
    LabelConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    RuntimeConfig,
    TrainConfig,
    TransitionConfig,
)


def tiny() -> RunConfig:
    """Two CPU cores, ten to twenty minutes."""
    teacher = TrainConfig(
        steps=1800,
        global_batch=8,
        learning_rate=4e-3,
        schedule="cosine",
        warmup_fraction=0.05,
        validate_every=900,
        validation_batches=32,
    )
    return RunConfig(
        preset="tiny",
        name="tiny",
        model=ModelConfig(
            width=64,
            memory_tokens=4,
            heads=2,
            encoder_depth=3,
            short_convolution=0,  # with it the RNN is further from its better teacher: docs/log.md
            decoder_depth=1,
            cell_depth=2,
        ),
        loss=LossConfig(whiten_dynamics="directions"),
        teacher=teacher,
        labels=LabelConfig(fraction=0.03),
        transition=TransitionConfig(
            train=TrainConfig(
                steps=250,
                global_batch=16,
                learning_rate=4e-3,
                schedule="cosine",
                validate_every=250,
                validation_batches=8,
            )
        ),
        dmt=DmtConfig(
            visits=2.0,  # fresh sequences count for more than old errors: docs/log.md
            depth=8,
            unroll=True,  # a gradient of one step is 0.24 bits behind at L = 128: docs/log.md
            dynamics=1.0,
            train=TrainConfig(
                steps=1100,
                global_batch=16,
                learning_rate=8e-3,
                schedule="cosine",
                validate_every=550,
                validation_batches=8,
            ),
        ),
        finetune=BpttConfig(
            train=TrainConfig(
                steps=250,
                global_batch=16,
                learning_rate=2e-3,
                schedule="cosine",
                validate_every=125,
                validation_batches=8,
            )
        ),
        bptt=BpttConfig(train=teacher),
        evaluation=EvaluationConfig(sequences=512),
    )


def small() -> RunConfig:
    """One GPU; how long it takes was not measured."""
    teacher = TrainConfig(
        steps=20_000,
        global_batch=128,
        learning_rate=1e-3,
        schedule="cosine",
        precision="bfloat16",
        validate_every=1000,
    )
    dmt = TrainConfig(
        steps=4_000, global_batch=64, learning_rate=1e-4, schedule="cosine", precision="bfloat16"
    )
    return RunConfig(
        preset="small",
        name="small",
        data=DataConfig(sequence_length=256),
        model=ModelConfig(
            width=192, memory_tokens=8, heads=6, encoder_depth=6, decoder_depth=2, cell_depth=4
        ),
        loss=LossConfig(timesteps=8, horizon=32),
        teacher=teacher,
        transition=TransitionConfig(
            train=TrainConfig(steps=2_000, global_batch=64, precision="bfloat16", schedule="cosine")
        ),
        dmt=DmtConfig(train=dmt),
        finetune=BpttConfig(train=dmt),
        bptt=BpttConfig(train=teacher),
        runtime=RuntimeConfig(workers=1, gpu=True, gang_ranks=1, micro_batch=64),
    )


def paper() -> RunConfig:
    """The authors' sizes (arXiv:2606.06479), with our encoder and losses; one large GPU or more."""
    teacher = TrainConfig(
        steps=150_000, global_batch=128, precision="bfloat16", validate_every=2500
    )
    dmt = TrainConfig(
        steps=18_000, global_batch=32, learning_rate=3e-5, schedule="cosine", precision="bfloat16"
    )
    return RunConfig(
        preset="paper",
        name="paper",
        data=DataConfig(sequence_length=320),
        model=ModelConfig(
            width=256, memory_tokens=16, heads=8, encoder_depth=8, decoder_depth=4, cell_depth=8
        ),
        loss=LossConfig(timesteps=8, horizon=64),
        teacher=teacher,
        transition=TransitionConfig(
            train=TrainConfig(steps=5_000, global_batch=64, precision="bfloat16", schedule="cosine")
        ),
        dmt=DmtConfig(train=dmt),
        finetune=BpttConfig(train=dmt),
        bptt=BpttConfig(train=teacher),
        runtime=RuntimeConfig(workers=1, gpu=True, gang_ranks=1, micro_batch=32),
    )


def large() -> RunConfig:
    """About a billion parameters, ZeRO-3 over 8 GPUs."""
    base = paper()
    teacher = TrainConfig(
        steps=100_000,
        global_batch=512,
        learning_rate=2e-4,
        schedule="cosine",
        precision="bfloat16",
        validate_every=2500,
    )
    return RunConfig(
        preset="large",
        name="large",
        data=DataConfig(sequence_length=1024),
        model=ModelConfig(
            width=1536, memory_tokens=16, heads=12, encoder_depth=20, decoder_depth=6, cell_depth=8
        ),
        loss=base.loss,
        teacher=teacher,
        transition=base.transition,
        dmt=base.dmt,
        finetune=base.finetune,
        bptt=BpttConfig(train=teacher),
        runtime=RuntimeConfig(
            workers=8, gpu=True, zero_stage=3, micro_batch=2, gang_ranks=8, gang_batch=64
        ),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "tiny": tiny,
    "small": small,
    "paper": paper,
    "large": large,
}
