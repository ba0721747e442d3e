"""What each stage optimises: losses and how labels are made and used."""

from dataclasses import dataclass, field
from typing import Literal

from smt_ray.config.checks import at_least, require
from smt_ray.config.model import check_cell
from smt_ray.config.train import Precision, TrainConfig


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
    dense_dynamics: bool = False
    """Take Eq. 3 over all timesteps, not over the S sampled ones."""
    whiten_dynamics: Literal["none", "slots", "directions"] = "none"
    """Divide Eq. 3 by what varies among the memories of a forward, so that a collapse does not
    lower it. `slots`: by the variance of each memory slot over sequences (best with
    `dense_dynamics`: sampled timesteps differ by sequence); `directions`: by the covariance of each
    slot, so that what tells the future counts however little the memory varies with it (best with
    `dense`: the memories of a forward should outnumber `model.width`)."""
    dynamics_below: float = 0.0
    """Nats a target: the gradient of Eq. 3 reaches the encoder only through sequences that Eq. 2
    decodes better than this, the more the better they are; 0: through all of them, whole."""
    detach_dynamics: bool = False
    """Cut the gradient of Eq. 3 to the encoder."""
    timesteps: int = 4
    """S: timesteps of a sequence decoded over the whole horizon, the last always one of them; L is
    all of them."""
    horizon: int = 16
    """F: targets that each sampled memory must predict."""

    def __post_init__(self) -> None:
        """Check every field."""
        at_least(0, "loss", self, "decoding", "dynamics", "uniformity", "dynamics_below")
        at_least(1, "loss", self, "timesteps", "horizon")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig:
    """Which sequences are labelled, and how a label is stored."""

    dtype: Precision = "bfloat16"
    """Number format of stored memories."""
    fraction: float = 1.0
    """Share of the token sequences that get labels, chosen by a hash of their ids. In (0, 1]."""

    def __post_init__(self) -> None:
        """Check every field."""
        require(0 < self.fraction <= 1, "labels.fraction", self.fraction, "must be in (0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransitionConfig:
    """Fitting the cell on the label shards (Eq. 3)."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    warm_start: bool = True
    """Begin with the teacher's cell; otherwise, or if the RNN has another cell, with fresh
    weights."""
    cell: str = ""
    """Kind of the RNN's cell, as `model.cell`; empty: the teacher's. RNNs of other cells can so be
    fitted to the labels of one teacher."""
    cell_depth: int = 0
    """Blocks of the RNN's cell; 0: as many as the teacher's."""
    write_gate: bool = False
    """Give the kind of cell that `cell` names a write gate (`transformer`)."""

    def __post_init__(self) -> None:
        """Check every field."""
        at_least(0, "transition", self, "cell_depth")
        named = bool(self.cell) or not self.write_gate
        rule = "is a gate of the kind that transition.cell names; give it, or model.write-gate"
        require(named, "transition.write-gate", self.write_gate, rule)
        if self.cell:
            check_cell("transition", self.cell, self.write_gate)


@dataclass(frozen=True, kw_only=True, slots=True)
class DmtConfig:
    """Dagger memory training (Eq. 6): the RNN on its own memories, against the stored labels."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(schedule="cosine", learning_rate=3e-5)
    )
    """Optimisation."""
    mode: Literal["parallel", "sequential", "one_step"] = "parallel"
    """`parallel`: all timesteps of a window advance at once, by one step a visit; `sequential`: a
    fresh rollout every step; `one_step`: the control, from the teacher's memories (with `unroll`
    the parts begin there)."""
    visits: float = 12.0
    """Mean number of visits before a window is replaced by a fresh one, were it not for its age:
    after L / `depth` visits it is replaced, too."""
    windows: int = 8
    """Windows in flight for each sequence of a batch (P / B)."""
    depth: int = 1
    """Timesteps by which a visit rolls all parts of a window on, one after the other (`parallel`).
    States reach an age of `visits` * `depth`; sequences much longer than that need more than 1."""
    unroll: bool = False
    """Let the gradients of both losses run through the `depth` timesteps of a part, in any mode:
    truncated BPTT of all parts at once. Otherwise they run through one step, as in the paper."""
    dynamics: float = 10.0
    """Weight of the memory's squared error."""
    fade: float = 0.0
    """Share of the steps over which the weight `dynamics` falls to 0, so that the RNN may do better
    than its teacher; 0: it stays. In [0, 1]; only with `unroll`, which has another gradient."""
    readout: float = 1.0
    """Weight of the readout's cross-entropy."""

    def __post_init__(self) -> None:
        """Check every field."""
        at_least(1, "dmt", self, "visits", "windows", "depth")
        at_least(0, "dmt", self, "dynamics", "readout")
        require(0 <= self.fade <= 1, "dmt.fade", self.fade, "must be in [0, 1]")
        rule = "leaves the cell no gradient but with dmt.unroll; turn that on, or give "
        require(self.unroll or not self.fade, "dmt.fade", self.fade, rule + "0")
        require(self.unroll or self.dynamics > 0, "dmt.dynamics", self.dynamics, rule + "more")


@dataclass(frozen=True, kw_only=True, slots=True)
class BpttConfig:
    """Training of cell and readout by unrolling them from the empty memory."""

    enabled: bool = False
    """Whether this stage is run."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(schedule="cosine"))
    """Optimisation."""
    mode: Literal["full", "truncated", "parallel"] = "full"
    """`full`: gradients run through the whole sequence; `truncated`: through `span` timesteps;
    `parallel`: the same, all parts of `span` timesteps at once, each from where the visit before
    left the part before it."""
    span: int = 32
    """Timesteps between two cuts of the gradient in modes `truncated` and `parallel`."""
    visits: float = 4.0
    """Mean number of visits before a sequence is replaced by a fresh one (`parallel`), were it not
    for its age: after L / `span` visits it is replaced, too. Parts begin at the empty memory; the
    state at t comes from the beginning of the sequence after t / `span` visits."""
    windows: int = 8
    """Sequences in flight for each one of a batch (`parallel`)."""

    def check(self, prefix: str) -> None:
        """Check every field but `train`; `prefix` is the stage's name, known to the owner only."""
        at_least(1, prefix, self, "span", "visits", "windows")


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
        at_least(1, "evaluation", self, "sequences", "prompt_length")
        at_least(0, "evaluation", self, "sample_length", "temperature")
