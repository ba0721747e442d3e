"""A small run up to one of its stages, as a program that faults are injected into.

python -m tests.fault.driver STORAGE SOURCE STAGE
"""

import sys
from dataclasses import replace

from smt_ray.cluster.launcher import leave_to_first_task
from smt_ray.cluster.refusals import explained
from smt_ray.cluster.session import check_storage, connect, preflight
from smt_ray.config import (
    DataConfig,
    DmtConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    RuntimeConfig,
)
from smt_ray.config.methods import LabelConfig, TeacherConfig, TransitionConfig
from smt_ray.data import pieces
from smt_ray.data.storage import Location
from smt_ray.labels import label_shards
from smt_ray.pipeline.command_line import GOES_ON, reported
from smt_ray.pipeline.locks import locked
from smt_ray.pipeline.run import Run
from smt_ray.terminal import configure_logging

L, STEPS, EVERY = 16, 120, 10
UNIT_BYTES = 2000
CONFIG = RunConfig(
    name="fault",
    data=DataConfig(sequence_length=L, validation_fraction=0.2),
    model=ModelConfig(width=8, memory_tokens=2, heads=2, encoder_depth=1),
    loss=LossConfig(horizon=2, timesteps=1),
    optimizer=OptimizerConfig(validate_every=STEPS, validation_sequences=16),
    teacher=TeacherConfig(steps=STEPS, global_batch=8),
    labels=LabelConfig(fraction=1.0),
    transition=TransitionConfig(steps=STEPS, global_batch=8),
    dmt=DmtConfig(steps=STEPS, global_batch=8),
    runtime=RuntimeConfig(
        device="cpu",
        workers=1,
        gang_ranks=2,
        gang_batch=16,
        checkpoint_every=EVERY,
        log_every=1,
        timeout_s=30.0,
    ),
)


def main(storage: str, source: str, last: str) -> int:
    """Make the stages up to `last`; what is there already is used."""
    configure_logging()
    leave_to_first_task()
    pieces.UNIT_BYTES = UNIT_BYTES  # many small units and label shards: a fault hits one of them
    label_shards.LEAST = 16
    with reported(GOES_ON):
        config = replace(CONFIG, storage=storage, data=replace(CONFIG.data, source=source))
        this = Run.of(config)
        check_storage(this.storage, 0)
        this = replace(this, storage=Location.of(storage))
        with explained(this.storage), locked(this.directory, config.name):
            this = replace(this, config=connect(this.config))
            preflight(this.config)
            stages = this.stages()
            for stage in stages.upstream:
                getattr(stages, stage)()
                if stage == last:
                    break
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
