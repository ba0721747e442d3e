"""Run configuration: frozen dataclasses, one per concern, inside one `RunConfig`.

Every value is validated once, when its dataclass is built; an error names the field as it is typed
on the command line, its value and the rule. Fields are *scientific* (they decide the result and
enter an artifact's fingerprint) unless they stand in `RuntimeConfig` or are `name` and `storage`.
"""

import difflib
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

Precision = Literal["float32", "bfloat16"]
CellKind = Literal["transformer", "mlp", "gru"]
EncoderKind = Literal["causal"]
Schedule = Literal["constant", "cosine"]


def _require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raise `ValueError` with the field, the value and the rule unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value}: {rule}")


def _at_least(minimum: float, prefix: str, config: object, *names: str) -> None:
    """Require each of the fields `names` of `config` to be >= `minimum`."""
    for name in names:
        value = getattr(config, name)
        _require(value >= minimum, f"{prefix}.{_flag(name)}", value, f"must be >= {minimum:g}")


def _flag(name: str) -> str:
    return name.replace("_", "-")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the tokens come from and how they are cut into sequences."""

    source: str = "stdlib"
    """`stdlib` (the Python library's own source text), a path, glob or URI of .txt, .jsonl,
    .parquet or .npy files, or `hf:NAME` (a Hugging Face data set or a directory with one)."""
    tokenizer: str = "bytes"
    """`bytes` (vocabulary 256) or the path of a Hugging Face `tokenizers` JSON file."""
    sequence_length: int = 128
    """L: input tokens in one sequence."""
    text_field: str = "text"
    """Column that holds the text in .jsonl, .parquet and `hf:` sources."""
    validation_fraction: float = 0.05
    """Share of the documents held out, by file or, inside one file, by document. In (0, 0.5]."""
    seed: int = 0
    """Seed of the split."""

    def __post_init__(self) -> None:
        """Check every field."""
        _require(bool(self.source), "data.source", repr(self.source), "must not be empty")
        _at_least(2, "data", self, "sequence_length")
        ok = 0 < self.validation_fraction <= 0.5
        _require(ok, "data.validation-fraction", self.validation_fraction, "must be in (0, 0.5]")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shapes of the encoder, the decoder and the cell."""

    width: int = 64
    """D: width of every residual stream and of one memory token."""
    memory_tokens: int = 8
    """K: memory tokens; the RNN's state is K * D numbers."""
    heads: int = 4
    """Attention heads; must divide `width`."""
    encoder: EncoderKind = "causal"
    """Kind of encoder: `causal` makes all memories of a sequence in one pass."""
    encoder_depth: int = 3
    """Blocks of the encoder's causal trunk."""
    register_depth: int = 2
    """R: blocks in which the K registers of each timestep read the trunk."""
    project_registers: bool = True
    """Add a projection of the trunk state at t to the registers of timestep t."""
    decoder_depth: int = 1
    """Blocks of the decoder, and of the readout that is copied from it."""
    cell: CellKind = "transformer"
    """Kind of RNN cell: `transformer`, `mlp` or `gru`."""
    cell_depth: int = 1
    """Blocks of the cell."""
    mlp_ratio: int = 4
    """Hidden width of every MLP over `width`."""

    def __post_init__(self) -> None:
        """Check every field."""
        names = ("width", "memory_tokens", "heads", "encoder_depth", "register_depth")
        _at_least(1, "model", self, *names, "decoder_depth", "cell_depth", "mlp_ratio")
        rule = f"must divide model.width={self.width}"
        _require(self.width % self.heads == 0, "model.heads", self.heads, rule)
        rule = f"model.width / model.heads must be even (rotary positions), width={self.width}"
        _require(self.width // self.heads % 2 == 0, "model.heads", self.heads, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights and sampling of the teacher's loss (Eq. 5, arXiv:2606.06479)."""

    decoding: float = 1.0
    """Weight of Eq. 2, the cross-entropy of the decoder."""
    dynamics: float = 0.1
    """Weight of Eq. 3, the mean squared error of the cell on the encoder's memories."""
    uniformity: float = 0.001
    """Weight of Eq. 4, which keeps memories apart."""
    per_slot: bool = False
    """Compare only equal memory slots in Eq. 4."""
    dense: bool = True
    """Also decode the next target alone (F = 1) at every timestep."""
    detach_dynamics: bool = False
    """Cut the gradient of Eq. 3 to the encoder."""
    timesteps: int = 4
    """S: timesteps of a sequence decoded over the whole horizon; the last is always one of them."""
    horizon: int = 16
    """F: targets that each sampled memory must predict."""

    def __post_init__(self) -> None:
        """Check every field."""
        _at_least(0, "loss", self, "decoding", "dynamics", "uniformity")
        _at_least(1, "loss", self, "timesteps", "horizon")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How one stage is optimised: AdamW with warm-up and gradient clipping."""

    steps: int = 1000
    """Optimizer steps."""
    global_batch: int = 32
    """Sequences in one optimizer step, over all workers and accumulation."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """Learning rate after the warm-up: `constant`, or `cosine` to zero."""
    warmup_fraction: float = 0.01
    """Share of the steps with a linear warm-up."""
    weight_decay: float = 0.01
    """AdamW weight decay, on matrices only."""
    beta1: float = 0.9
    """AdamW decay of the gradient's mean."""
    beta2: float = 0.95
    """AdamW decay of the gradient's square."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all parameters."""
    precision: Precision = "float32"
    """Arithmetic of matrix products: `float32` or `bfloat16` (weights and moments stay fp32)."""
    validate_every: int = 500
    """Steps between validations; the checkpoint with the lowest validation loss is the result."""
    validation_batches: int = 8
    """Global batches in one validation."""
    seed: int = 0
    """Seed of the initial weights, the data order and all sampling."""

    def check(self, prefix: str) -> None:
        """Check every field; `prefix` is the stage's dotted name, known to the owner only."""
        _at_least(1, prefix, self, "steps", "global_batch", "validate_every", "validation_batches")
        _at_least(0, prefix, self, "weight_decay", "warmup_fraction", "beta1", "beta2", "seed")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            _require(value > 0, f"{prefix}.{_flag(name)}", value, "must be > 0")
        for name in ("warmup_fraction", "beta1", "beta2"):
            value = getattr(self, name)
            _require(value < 1, f"{prefix}.{_flag(name)}", value, "must be < 1")

    @property
    def lanes(self) -> int:
        """Streams that make up a global batch: its largest divisor <= 64; workers divide it."""
        return max(n for n in range(1, 65) if self.global_batch % n == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig:
    """Which sequences are labelled, and how a label is stored."""

    dtype: Precision = "bfloat16"
    """Number format of stored memories."""
    fraction: float = 1.0
    """Share of the token sequences that get labels, chosen by a hash of their ids. In (0, 1]."""

    def __post_init__(self) -> None:
        """Check every field."""
        _require(0 < self.fraction <= 1, "labels.fraction", self.fraction, "must be in (0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransitionConfig:
    """Fitting the cell on the label shards (Eq. 3)."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    warm_start: bool = True
    """Begin with the teacher's cell; otherwise with fresh weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DmtConfig:
    """Dagger memory training (Eq. 6): the RNN on its own memories, against the stored labels."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(schedule="cosine", learning_rate=3e-5)
    )
    """Optimisation."""
    mode: Literal["parallel"] = "parallel"
    """`parallel`: all timesteps of a window advance at once, by one step a visit."""
    visits: float = 12.0
    """Mean number of visits before a window is replaced by a fresh one."""
    windows: int = 8
    """Windows in flight for each sequence of a batch (P / B)."""
    dynamics: float = 10.0
    """Weight of the memory's squared error."""
    readout: float = 1.0
    """Weight of the readout's cross-entropy."""

    def __post_init__(self) -> None:
        """Check every field."""
        _at_least(1, "dmt", self, "visits", "windows")
        _at_least(0, "dmt", self, "dynamics", "readout")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What is scored and sampled at the end."""

    sequences: int = 1024
    """Validation sequences that are scored, at most."""
    prompt_length: int = 64
    """Tokens of a validation sequence that begin the sample."""
    sample_length: int = 512
    """Tokens sampled after the prompt."""
    temperature: float = 0.7
    """Softmax temperature of the sample; 0 takes the likeliest token."""

    def __post_init__(self) -> None:
        """Check every field."""
        _at_least(1, "evaluation", self, "sequences", "prompt_length")
        _at_least(0, "evaluation", self, "sample_length", "temperature")


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """Where and how fast it runs; no field here may change the result beyond rounding."""

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
    max_failures: int = 3
    """Times that a stage restarts after a failed worker, or a batch after a failed rank."""

    def __post_init__(self) -> None:
        """Check every field."""
        names = ("workers", "threads", "micro_batch", "gangs", "gang_ranks", "gang_batch")
        _at_least(1, "runtime", self, *names, "checkpoint_every", "log_every")
        _at_least(0, "runtime", self, "max_failures")


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
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scores and the sample."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Workers, devices, batches in flight."""

    def __post_init__(self) -> None:
        """Check the fields that must agree with each other."""
        ok = bool(self.name) and not set(self.name) & set("/\\") and self.name not in {".", ".."}
        ok = ok and self.name != "artifacts"
        _require(ok, "name", repr(self.name), "must be a plain directory name, not `artifacts`")
        length = self.data.sequence_length
        rule = f"must be <= data.sequence-length={length}"
        _require(self.loss.timesteps <= length, "loss.timesteps", self.loss.timesteps, rule)
        _require(self.loss.horizon <= length, "loss.horizon", self.loss.horizon, rule)
        for stage, train in self.stages().items():
            train.check(stage)
            rule = (
                f"must divide {stage}.global-batch={train.global_batch} into equal streams "
                f"(one of {[n for n in range(1, train.lanes + 1) if train.lanes % n == 0]})"
            )
            _require(
                train.lanes % self.runtime.workers == 0,
                "runtime.workers",
                self.runtime.workers,
                rule,
            )

    def stages(self) -> dict[str, TrainConfig]:
        """Return the trained stages by name, in order."""
        return {
            "teacher": self.teacher,
            "transition.train": self.transition.train,
            "dmt.train": self.dmt.train,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dictionaries, ready for YAML or JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Build a config from `to_dict` output; missing fields take their defaults.

        Raises:
            ValueError: for an unknown key (the nearest known one is named) or a bad value.
        """
        return _build(cls, values, "")

    def update(self, values: Mapping[str, Any]) -> "RunConfig":
        """Return a copy with the nested fields of `values` in place of this one's.

        Raises:
            ValueError: for an unknown key (the nearest known one is named) or a bad value.
        """
        return self.from_dict(_merge(self.to_dict(), values))

    def override(self, key: str, value: Any) -> "RunConfig":
        """Return a copy with the dotted field `key` (dashes or underscores) set to `value`.

        Raises:
            ValueError: for an unknown key (the nearest known one is named) or a bad value.
        """
        for name in reversed(key.split(".")):
            value = {name: value}
        return self.update(value)


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with nested `values` in its place, dashes in names as underscores."""
    merged = dict(base)
    for key, value in values.items():
        name = str(key).replace("-", "_")
        inner = merged.get(name)
        merged[name] = (
            _merge(inner, value)
            if isinstance(inner, dict) and isinstance(value, Mapping)
            else value
        )
    return merged


def _build(cls: Any, values: Any, prefix: str) -> Any:
    """Build a dataclass from nested mappings, checking names and types."""
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{prefix.rstrip('.') or 'config'}={values!r}: must be a mapping of fields"
        )
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        flag = f"{prefix}{_flag(name)}"
        if name not in hints:
            near = difflib.get_close_matches(name, list(hints), n=1, cutoff=0.0)
            raise ValueError(f"{flag}: unknown field; did you mean {prefix}{_flag(near[0])}?")
        kind = hints[name]
        arguments[name] = (
            _build(kind, value, f"{flag}.") if is_dataclass(kind) else _coerce(kind, value, flag)
        )
    return cls(**arguments)


def _coerce(kind: Any, value: Any, name: str) -> Any:
    """Return `value` as `kind`; an integer becomes a float where a float is asked for."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        known = any(value == choice and type(value) is type(choice) for choice in choices)
        _require(known, name, repr(value), f"must be one of {', '.join(map(str, choices))}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(value, Mapping):
        raise ValueError(
            f"{name}: is a single value, it has no fields such as {next(iter(value))!r}"
        )
    _require(type(value) is kind, name, repr(value), f"must be of type {kind.__name__}")
    return value


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return all fields of a dataclass as {dotted-flag: value}, nested ones included."""
    found: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        name = f"{prefix}{_flag(item.name)}"
        found |= leaves(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found
