"""One run: every configuration in one, and what must agree between them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from smt_ray.config.build import build, merge
from smt_ray.config.checks import at_least, flag, require
from smt_ray.config.credentials import masked, on_texts
from smt_ray.config.data import DataConfig
from smt_ray.config.methods import (
    BpttConfig,
    DmtConfig,
    EvaluationConfig,
    LabelConfig,
    LossConfig,
    TransitionConfig,
)
from smt_ray.config.model import ModelConfig
from smt_ray.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """Where and how fast it runs.

    No field changes the result beyond rounding, but that `workers` and `micro_batch` say which
    sequences Eq. 4 and whitened dynamics compare.
    """

    workers: int = 2
    """Training workers, one process each."""
    gpu: bool = False
    """Give each worker and each gang rank one GPU."""
    threads: int = 1
    """CPU threads of one worker or rank."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage of training."""
    micro_batch: int = 16
    """Sequences in one forward of one worker, at most; the rest of the batch is accumulated."""
    gangs: int = 1
    """Encoder gangs side by side; each is one DeepSpeed ZeRO-3 engine."""
    gang_ranks: int = 2
    """Ranks (processes) of one encoder gang."""
    gang_batch: int = 64
    """Sequences that a gang encodes at once."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 25
    """Steps between lines of metrics.jsonl."""
    wandb_project: str = ""
    """Weights & Biases project that every stage's metrics also go to; needs the extra `wandb`."""
    max_failures: int = 3
    """Times that a stage restarts after a failed worker, or a batch after a failed rank."""

    def __post_init__(self) -> None:
        """Check every field."""
        names = ("workers", "threads", "micro_batch", "gangs", "gang_ranks", "gang_batch")
        at_least(1, "runtime", self, *names, "checkpoint_every", "log_every")
        at_least(0, "runtime", self, "max_failures")

    def rows(self, train: TrainConfig, workers: int) -> int:
        """Return the sequences of one forward of one of `workers`.

        They are the largest divisor of its share of the global batch that is <= `micro_batch`.
        """
        share = max(1, train.global_batch // workers)
        return max(n for n in range(1, min(share, self.micro_batch) + 1) if share % n == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything one run is made from."""

    preset: str = "tiny"
    """Preset that the other fields started from."""
    name: str = "tiny"
    """Name of the run: its directory under `storage`."""
    storage: str = "./runs"
    """Directory or URI, shared by all nodes, for artifacts and runs."""
    data: DataConfig = field(default_factory=DataConfig)
    """Tokens."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Shapes."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The teacher's loss."""
    teacher: TrainConfig = field(default_factory=TrainConfig)
    """Training of encoder, decoder and cell."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """Memory labels."""
    transition: TransitionConfig = field(default_factory=TransitionConfig)
    """Fitting the cell to the labels."""
    dmt: DmtConfig = field(default_factory=DmtConfig)
    """Training the RNN on its own memories."""
    finetune: BpttConfig = field(default_factory=BpttConfig)
    """BPTT of the finished RNN, after DMT."""
    bptt: BpttConfig = field(default_factory=BpttConfig)
    """The baseline: BPTT of the same cell and readout from fresh weights."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scores and the sample."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Workers, devices, batches in flight."""

    def __post_init__(self) -> None:
        """Check the fields that must agree with each other."""
        ok = bool(self.name) and not set(self.name) & set("/\\") and self.name not in {".", ".."}
        ok = ok and self.name != "artifacts"
        require(ok, "name", repr(self.name), "must be a plain directory name, not `artifacts`")
        length = self.data.sequence_length
        rule = f"must be <= data.sequence-length={length}"
        require(self.loss.timesteps <= length, "loss.timesteps", self.loss.timesteps, rule)
        require(self.loss.horizon <= length, "loss.horizon", self.loss.horizon, rule)
        for name in ("finetune", "bptt"):
            getattr(self, name).check(name)
        rule = "has an unnormalised state, which labels cannot teach; benchmarks train it by BPTT"
        require(self.model.cell != "lstm", "model.cell", self.model.cell, rule)
        require(self.transition.cell != "lstm", "transition.cell", self.transition.cell, rule)
        causal = self.model.encoder == "causal"
        rule = "needs the memories of all timesteps, so model.encoder=causal; give --loss.no-"
        for name in ("dense", "dense_dynamics"):
            value = getattr(self.loss, name)
            require(causal or not value, f"loss.{flag(name)}", value, rule + flag(name))
        rule = "needs the memories of all timesteps; give --loss.dense as well"
        both = self.loss.dense or not self.loss.dense_dynamics
        require(both, "loss.dense-dynamics", self.loss.dense_dynamics, rule)
        if self.loss.whiten_dynamics == "slots":
            runtime, batch = self.runtime, self.teacher.global_batch
            alone = runtime.rows(self.teacher, runtime.workers) == 1
            rule = (
                f"needs two sequences in a forward, teacher.global-batch={batch} over "
                f"runtime.workers={runtime.workers} with runtime.micro-batch={runtime.micro_batch} "
                "gives one; change one of them"
            )
            require(not alone, "loss.whiten-dynamics", "slots", rule)
        for stage, train in self.stages().items():
            train.check(stage)
            workers, batch = self.runtime.workers, train.global_batch
            rule = f"must divide {stage}.global-batch={batch} into equal shares"
            require(batch % workers == 0, "runtime.workers", workers, rule)

    @property
    def rnn_model(self) -> ModelConfig:
        """Shapes of the RNN: the teacher's, with the cell that `transition` gives it."""
        own, model = self.transition, self.model
        return replace(
            model,
            cell=own.cell or model.cell,
            cell_depth=own.cell_depth or model.cell_depth,
            write_gate=own.write_gate if own.cell else model.write_gate,
        )

    @property
    def warm_start(self) -> bool:
        """Whether the RNN's cell begins as the teacher's: where it is asked for, and the same."""
        return self.transition.warm_start and self.rnn_model == self.model

    def stages(self) -> dict[str, TrainConfig]:
        """Return the trained stages by dotted name, in order."""
        unrolled = {"finetune": self.finetune, "bptt": self.bptt}
        return {
            "teacher": self.teacher,
            "transition.train": self.transition.train,
            "dmt.train": self.dmt.train,
            **{f"{name}.train": stage.train for name, stage in unrolled.items() if stage.enabled},
        }

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
