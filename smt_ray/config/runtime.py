"""Where a run is executed, and how fast."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

from smt_ray.config.checks import at_least, require

Count = int | Literal["auto"]
Device = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """Where and how fast it runs. No field changes a result beyond rounding.

    One exception: with more workers than the teacher's batch has groups of `loss.group`, the groups
    are smaller. The teacher's fingerprint knows.
    """

    device: Device = "auto"
    """`cpu`, `gpu` (one for each worker and gang rank), or `auto`: the GPUs that are there."""
    workers: int | str = "auto"
    """Training workers, one process each, at most as many as a batch has sequences. `auto`: as many
    as there are GPUs, on a CPU two. `MIN:MAX`, as in 2:8: as many as the cluster has room for, now
    and later; a change of their number goes on from the last checkpoint."""
    threads: int = 1
    """CPU threads of one worker or rank, reserved in Ray. Raise it for wide models on a CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage of training. Raise it when a worker runs out of memory: 1 shards the
    optimizer's state over the workers, 2 the gradients too, 3 the weights too."""
    micro_batch: int = 16
    """Sequences in one forward of one worker; the rest of its share is accumulated. A forward has
    one group of the teacher at least. All workers take equally many forwards: where shares are
    uneven, one may have more sequences. Lower it when a worker runs out of memory."""
    gangs: int = 1
    """Encoder gangs side by side, each one DeepSpeed ZeRO-3 engine over `gang-ranks` processes.
    More gangs label faster."""
    gang_ranks: Count = "auto"
    """Processes of one gang. More of them hold a larger encoder. `auto`: as many as workers
    would be, shared among the gangs."""
    gang_batch: int = 64
    """Sequences that a gang encodes at once."""
    checkpoint_every: int = 500
    """Steps between checkpoints: what a lost worker costs at most."""
    log_every: int = 25
    """Steps between lines of metrics.jsonl."""
    wandb_project: str = ""
    """Weights & Biases project that every stage's metrics also go to; needs the extra `wandb`."""
    timeout_s: float = 600.0
    """Seconds that a wait for other processes lasts at most: a collective, a batch of labels, the
    start of a gang. A process that hangs then counts as lost."""
    max_failures: int = 3
    """Times that a stage restarts after a failed worker, or a batch after a failed rank."""

    def __post_init__(self) -> None:
        """Check every field."""
        ok = self.workers == "auto" or 1 <= self.fewest_workers <= self.worker_count
        rule = "must be a whole number >= 1, auto, or MIN:MAX as in 2:8"
        require(ok, "runtime.workers", self.workers, rule)
        ok = self.gang_ranks == "auto" or self.gang_ranks >= 1
        require(ok, "runtime.gang-ranks", self.gang_ranks, "must be >= 1, or auto")
        names = ("threads", "micro_batch", "gangs", "gang_batch")
        at_least(1, "runtime", self, *names, "checkpoint_every", "log_every")
        at_least(0, "runtime", self, "max_failures")
        require(self.timeout_s > 0, "runtime.timeout-s", self.timeout_s, "must be above 0")

    @property
    def gpu(self) -> bool:
        """Whether workers and gang ranks have a GPU each; known once `auto` is resolved."""
        assert self.device != "auto"
        return self.device == "gpu"

    @property
    def worker_count(self) -> int:
        """Number of training workers, at most; known once `auto` is resolved."""
        return self._range[1]

    @property
    def fewest_workers(self) -> int:
        """Number of training workers without which none of them starts."""
        return self._range[0]

    @property
    def _range(self) -> tuple[int, int]:
        assert self.workers != "auto"
        ends = [int(end) if end.isdecimal() else 0 for end in str(self.workers).split(":")]
        return (ends[0], ends[-1]) if len(ends) <= 2 else (0, 0)

    @property
    def rank_count(self) -> int:
        """Number of processes of a gang; known once `auto` is resolved."""
        assert self.gang_ranks != "auto"
        return self.gang_ranks

    @property
    def resolved(self) -> bool:
        """Whether no field is `auto`."""
        return "auto" not in {self.device, self.workers, self.gang_ranks}

    @property
    def resources(self) -> dict[str, float]:
        """What a worker or gang rank reserves in Ray."""
        return {"CPU": float(self.threads), **({"GPU": 1.0} if self.gpu else {})}

    def pieces(self, global_batch: int, workers: int, group: int = 1) -> int:
        """Return the forwards of one optimizer step, the same of each of `workers`.

        Args:
            global_batch: sequences in one optimizer step.
            workers: who share them.
            group: consecutive sequences that stay in one forward.
        """
        groups = global_batch // group
        forwards = ceil(ceil(groups / workers) / max(1, self.micro_batch // group))
        return min(forwards, max(1, groups // workers))
