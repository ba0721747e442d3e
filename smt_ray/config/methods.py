"""What each stage optimises: losses, and how labels are made and used."""

from dataclasses import dataclass
from typing import Literal

from smt_ray.config.checks import at_least, require
from smt_ray.config.model import check_cell
from smt_ray.config.optimizer import StageConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """The teacher's loss (Eq. 5, arXiv:2606.06479), whose Eq. 2 has the weight 1."""

    dynamics: float = 0.1
    """Weight of Eq. 3, the error of the cell on the encoder's memories. Raise it if the RNN falls
    far behind its teacher; too much collapses the memories."""
    uniformity: float = 0.001
    """Weight of Eq. 4, which keeps memories apart. Raise it if the memory variance collapses."""
    timesteps: int = 4
    """S: timesteps of a sequence whose future is decoded, the last always one of them. More teach
    more a step and take more time and memory; L is all of them."""
    horizon: int = 16
    """F: targets that each of these memories must predict. As far as the future depends on the
    past: the whole length for tasks with late answers."""
    dense_dynamics: bool = False
    """Take Eq. 3 over all timesteps, not over the S sampled ones."""
    whiten_dynamics: Literal["none", "slots", "directions"] = "none"
    """Divide Eq. 3 by what varies among the memories of a group, so that a collapse does not lower
    it. `slots`: by the variance of each memory slot over sequences (with `dense_dynamics`).
    `directions`: by the covariance of each slot, so that rare directions count as much (a group
    should have more memories than `model.width`)."""
    dynamics_below: float = 0.0
    """Decoding loss, in nats per target, below which a sequence sends the gradient of Eq. 3 to the
    encoder. It keeps memories from collapsing before they carry information. Raise it if their
    variance falls early; 0 sends the gradient from the first step."""
    group: int = 4
    """Sequences that Eq. 4 and whitening compare with each other. A micro-batch is whole groups.
    More workers than the teacher's batch has groups make the groups smaller."""

    def __post_init__(self) -> None:
        """Check every field."""
        at_least(0, "loss", self, "dynamics", "uniformity", "dynamics_below")
        at_least(1, "loss", self, "timesteps", "horizon", "group")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig(StageConfig):
    """Training of encoder, decoder and cell together."""

    curriculum: int = 1
    """Lengths of the training sequences, doubling from stage to stage up to L: 3 trains on L / 4,
    then L / 2, then L, for a third of the steps each. Raise it for tasks with far recall that are
    not learned at L."""

    def __post_init__(self) -> None:
        """Check every field."""
        self.check("teacher")
        at_least(1, "teacher", self, "curriculum")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig:
    """Which sequences are labelled, and how labels are kept."""

    mode: Literal["store", "stream"] = "store"
    """`store`: labels are written, and read by every training that uses them. `stream`: gangs feed
    the training while it runs, nothing is written; both then need their CPUs or GPUs at once, and
    each epoch is encoded again. Stream when labels do not fit the disk."""
    dtype: Literal["bfloat16", "float32", "int8"] = "bfloat16"
    """Number format of memories. `int8` has a scale for each memory token, and takes half of the
    room of `bfloat16`."""
    fraction: float = 1.0
    """Share of the sequences that get labels, in (0, 1]. Labels take K * D * 2 bytes a token: lower
    it until they fit the disk; --plan tells."""

    def __post_init__(self) -> None:
        """Check every field."""
        require(0 < self.fraction <= 1, "labels.fraction", self.fraction, "must be in (0, 1]")
        whole = self.mode == "store" or self.fraction == 1
        rule = "must be 1 when labels.mode=stream: nothing is stored, take fewer steps"
        require(whole, "labels.fraction", self.fraction, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransitionConfig(StageConfig):
    """Fitting the cell to the labels (Eq. 3)."""

    warm_start: bool = True
    """Begin with the teacher's cell. An RNN of another cell always has fresh weights."""
    cell: str = ""
    """Kind of the RNN's cell, as `model.cell`; empty: the teacher's. RNNs of other cells can so be
    fitted to the labels of one teacher."""
    cell_depth: int = 0
    """Blocks of the RNN's cell; 0: as many as the teacher's."""

    def __post_init__(self) -> None:
        """Check every field."""
        self.check("transition")
        at_least(0, "transition", self, "cell_depth")
        if self.cell:
            check_cell("transition", self.cell)


@dataclass(frozen=True, kw_only=True, slots=True)
class DmtConfig(StageConfig):
    """Dagger memory training (Eq. 6): the RNN on its own memories, against the stored labels."""

    learning_rate: float = 3e-5
    """Peak learning rate. A third of the teacher's or less, unless `unroll` is on."""
    mode: Literal["parallel", "sequential", "one_step"] = "parallel"
    """`parallel`: all timesteps of a window advance at once, by one step a visit. `sequential`: a
    fresh rollout every step, the paper's loop. `one_step`: the control, from the teacher's
    memories."""
    visits: float = 12.0
    """Mean visits of a window before a fresh one takes its place, at the latest after L / `depth`.
    States reach an age of `visits` * `depth` timesteps: it should not be far below L."""
    depth: int = 1
    """Timesteps by which a visit rolls a window on. Raise it with L, so that states grow old enough
    (see `visits`); each step then takes longer."""
    unroll: bool = False
    """Let the gradient run through the `depth` timesteps of a part: truncated BPTT of all parts at
    once. Otherwise it runs through one step, as in the paper."""
    dynamics: float = 10.0
    """Weight of the memory's squared error against the cross-entropy of the readout."""
    fade: float = 0.0
    """Share of the steps over which `dynamics` falls to 0, so that the RNN may become better than
    its teacher; 0: it stays. In [0, 1]; needs `unroll`."""

    def __post_init__(self) -> None:
        """Check every field."""
        self.check("dmt")
        at_least(1, "dmt", self, "visits", "depth")
        at_least(0, "dmt", self, "dynamics")
        require(0 <= self.fade <= 1, "dmt.fade", self.fade, "must be in [0, 1]")
        rule = "leaves the cell no gradient but with dmt.unroll; turn that on, or give "
        require(self.unroll or not self.fade, "dmt.fade", self.fade, rule + "0")
        require(self.unroll or self.dynamics > 0, "dmt.dynamics", self.dynamics, rule + "more")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionalStageConfig(StageConfig):
    """A stage that is left out unless it is given steps."""

    steps: int = 0
    """Optimizer steps; 0 leaves the stage out."""

    def check(self, prefix: str) -> None:
        """Check every field; `prefix` is the stage's name, known to the owner only."""
        at_least(0, prefix, self, "steps")
        if self.steps:
            StageConfig.check(self, prefix)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnrollConfig:
    """How `bptt` and `finetune` unroll the RNN from the empty memory."""

    mode: Literal["full", "truncated", "parallel"] = "full"
    """`full`: gradients run through the whole sequence. `truncated`: through `span` timesteps.
    `parallel`: the same, all parts of a sequence at once, each from where the visit before left the
    part before it."""
    span: int = 32
    """Timesteps between two cuts of the gradient in modes `truncated` and `parallel`."""
    visits: float = 4.0
    """Mean visits of a sequence before a fresh one takes its place (`parallel`), at the latest
    after L / `span`."""

    def __post_init__(self) -> None:
        """Check every field."""
        at_least(1, "unroll", self, "span", "visits")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What is scored and sampled at the end."""

    sequences: int = 1024
    """Validation sequences that are scored, at most."""
    sample_length: int = 512
    """Tokens of the sample in the report."""
    temperature: float = 0.7
    """Softmax temperature of the sample; 0 takes the likeliest token."""

    def __post_init__(self) -> None:
        """Check every field."""
        at_least(1, "evaluation", self, "sequences")
        at_least(0, "evaluation", self, "sample_length", "temperature")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentalConfig:
    """What only ablations change."""

    dense: bool = True
    """Also decode the next target alone at every timestep (causal encoder)."""
    readout: float = 1.0
    """Weight of the readout's cross-entropy in DMT."""

    def __post_init__(self) -> None:
        """Check every field."""
        at_least(0, "experimental", self, "readout")
