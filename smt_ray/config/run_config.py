"""One run: every configuration in one, and what must agree between them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import gcd
from typing import Any

from smt_ray.config.build import build, merge
from smt_ray.config.checks import require
from smt_ray.config.credentials import masked, on_texts
from smt_ray.config.data import DataConfig
from smt_ray.config.methods import (
    DmtConfig,
    EvaluationConfig,
    ExperimentalConfig,
    LabelConfig,
    LossConfig,
    OptionalStageConfig,
    TeacherConfig,
    TransitionConfig,
    UnrollConfig,
)
from smt_ray.config.model import ModelConfig
from smt_ray.config.optimizer import OptimizerConfig, StageConfig, TrainConfig
from smt_ray.config.runtime import RuntimeConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything one run is made from."""

    preset: str = "tiny"
    """Preset that the other fields started from."""
    name: str = "tiny"
    """Name of the run: its directory under `storage`."""
    storage: str = "./runs"
    """Directory or URI, shared by all nodes, for artifacts and runs."""
    seed: int = 0
    """Seed of initial weights, data order and sampling; the split of the data stays."""
    data: DataConfig = field(default_factory=DataConfig)
    """Tokens."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Shapes."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How all stages are optimised."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """Training of encoder, decoder and cell."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The teacher's loss."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """Memory labels."""
    transition: TransitionConfig = field(default_factory=TransitionConfig)
    """Fitting the cell to the labels."""
    dmt: DmtConfig = field(default_factory=DmtConfig)
    """Training the RNN on its own memories."""
    finetune: OptionalStageConfig = field(default_factory=OptionalStageConfig)
    """BPTT of the finished RNN, after DMT."""
    bptt: OptionalStageConfig = field(default_factory=OptionalStageConfig)
    """The baseline: BPTT of the same cell and readout from fresh weights."""
    unroll: UnrollConfig = field(default_factory=UnrollConfig)
    """How `bptt` and `finetune` unroll the RNN."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scores and the sample."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Workers, devices, batches in flight."""
    experimental: ExperimentalConfig = field(default_factory=ExperimentalConfig)
    """What only ablations change."""

    def __post_init__(self) -> None:
        """Check the fields that must agree with each other."""
        ok = bool(self.name) and not set(self.name) & set("/\\") and self.name not in {".", ".."}
        ok = ok and self.name != "artifacts"
        require(ok, "name", repr(self.name), "must be a plain directory name, not `artifacts`")
        require(self.seed >= 0, "seed", self.seed, "must be >= 0")
        length = self.data.sequence_length
        rule = f"must be <= data.sequence-length={length}"
        require(self.loss.timesteps <= length, "loss.timesteps", self.loss.timesteps, rule)
        require(self.loss.horizon <= length, "loss.horizon", self.loss.horizon, rule)
        for name in ("finetune", "bptt"):
            getattr(self, name).check(name)
        rule = "needs model.encoder=causal and experimental.dense; give --loss.no-dense-dynamics"
        ok = self.dense or not self.loss.dense_dynamics
        require(ok, "loss.dense-dynamics", self.loss.dense_dynamics, rule)
        most, workers = self.most_workers, self.runtime.workers
        for stage, train in self.stages().items():
            batch = f"{stage}.global-batch={train.global_batch}"
            rule = f"{batch} has a sequence for so many only; lower the one or raise the other"
            require(train.global_batch >= most, "runtime.workers", workers, rule)
        if self.loss.whiten_dynamics == "slots":
            rule = (
                "needs two sequences that are compared: loss.group and teacher.global-batch="
                f"{self.teacher.global_batch} must have a divisor above 1 that leaves a group for "
                f"each of runtime.workers={workers}"
            )
            require(self.group > 1, "loss.whiten-dynamics", "slots", rule)

    @property
    def dense(self) -> bool:
        """Whether the teacher's loss sees the memories of all timesteps."""
        return self.experimental.dense and self.model.encoder == "causal"

    @property
    def group(self) -> int:
        """Sequences that Eq. 4 and whitening compare: `loss.group`, or the largest part of it.

        It divides the teacher's batch, and leaves a group for each worker.
        """
        batch = self.teacher.global_batch
        common = gcd(self.loss.group, batch)
        fitting = (n for n in range(1, common + 1) if common % n == 0)
        return max(n for n in fitting if batch // n >= self.most_workers or n == 1)

    @property
    def most_workers(self) -> int:
        """Training workers at most; 1 where `auto` is to find a number that changes nothing."""
        return 1 if self.runtime.workers == "auto" else self.runtime.worker_count

    @property
    def rnn_model(self) -> ModelConfig:
        """Shapes of the RNN: the teacher's, with the cell that `transition` gives it."""
        own, model = self.transition, self.model
        return replace(
            model, cell=own.cell or model.cell, cell_depth=own.cell_depth or model.cell_depth
        )

    @property
    def warm_start(self) -> bool:
        """Whether the RNN's cell begins as the teacher's: where it is asked for, and the same."""
        return self.transition.warm_start and self.rnn_model == self.model

    def stages(self) -> dict[str, TrainConfig]:
        """Return how each trained stage of this run is optimised, in order."""
        found: dict[str, StageConfig] = {
            "teacher": self.teacher,
            "transition": self.transition,
            "dmt": self.dmt,
            "finetune": self.finetune,
            "bptt": self.bptt,
        }
        return {name: self._train(name, stage) for name, stage in found.items() if stage.steps}

    def _train(self, name: str, stage: StageConfig) -> TrainConfig:
        schedule = self.optimizer.schedule if name in {"teacher", "bptt"} else "cosine"
        own = {key: getattr(stage, key) for key in ("steps", "global_batch", "learning_rate")}
        shared = asdict(self.optimizer) | {"schedule": schedule}
        return TrainConfig(**shared, **own, seed=self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dictionaries, ready for YAML or JSON, with credentials masked."""
        return on_texts(masked, asdict(self))

    def __repr__(self) -> str:
        """Return the fields, with credentials masked."""
        return f"RunConfig({self.to_dict()})"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Build a config from `to_dict` output; missing fields take their defaults.

        Raises:
            ValueError: for an unknown key (the nearest known one is named) or a bad value.
        """
        return build(cls, values, "")

    def update(self, values: Mapping[str, Any]) -> "RunConfig":
        """Return a copy with the nested fields of `values` in place of this one's.

        Raises:
            ValueError: for an unknown key (the nearest known one is named) or a bad value.
        """
        return self.from_dict(merge(asdict(self), values))

    def override(self, key: str, value: Any) -> "RunConfig":
        """Return a copy with the dotted field `key` (dashes or underscores) set to `value`.

        Raises:
            ValueError: for an unknown key (the nearest known one is named) or a bad value.
        """
        for name in reversed(key.split(".")):
            value = {name: value}
        return self.update(value)
