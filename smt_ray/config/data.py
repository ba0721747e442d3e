"""Where tokens come from."""

from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from smt_ray.config.checks import at_least, require
from smt_ray.config.credentials import masked, on_texts


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """What a synthetic task (`data.source=task:NAME`) draws its sequences from."""

    symbols: int = 16
    """N: symbols 1..N of `retrieval`, `copy`, `stack` and `keysvalues`; 0 is the marker."""
    pairs: int = 8
    """Key and value pairs of a `keysvalues` sequence, and the keys that it asks for."""
    fewest_pairs: int = 0
    """A training sequence of `keysvalues` has 1, 2, 3, 4, 6 or 8 eighths of `pairs`, but at least
    this many: many pairs are learned after few. What is held out has all; 0: training, too."""
    sequences: int = 65_536
    """Training sequences; `data.validation-fraction` of their number is held out beside them."""

    def __post_init__(self) -> None:
        """Check every field."""
        at_least(1, "data.task", self, "pairs", "sequences")
        at_least(2, "data.task", self, "symbols")
        at_least(0, "data.task", self, "fewest_pairs")
        rule = f"must be <= data.task.pairs={self.pairs}"
        require(self.fewest_pairs <= self.pairs, "data.task.fewest-pairs", self.fewest_pairs, rule)

    @property
    def held_out(self) -> "TaskConfig":
        """The task without its easier sequences."""
        return replace(self, fewest_pairs=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the tokens come from and how they are cut into sequences."""

    source: str = "stdlib"
    """`stdlib` (Python's own source text); a path, glob or URI of .txt, .jsonl (also .gz, .zst),
    .parquet or .npy files; `hf:NAME` (a Hugging Face data set, or a directory with one);
    `task:NAME`; `pixels:NAME` (digits, or the path of an IDX file)."""
    subset: str = ""
    """Subset (configuration) of an `hf:` data set that has several."""
    revision: str = ""
    """Branch, tag or commit of an `hf:` data set on the hub; its main branch unless given."""
    tokenizer: str = "bytes"
    """`bytes` (vocabulary 256) or the path of a Hugging Face `tokenizers` JSON file."""
    sequence_length: int = 128
    """L: input tokens in one sequence. Longer ones ask for more memory, time and `dmt.depth`."""
    text_field: str = "text"
    """Column that holds the text in .jsonl, .parquet and `hf:` sources."""
    validation_fraction: float = 0.05
    """Share of the documents held out, in (0, 0.5]: by file or, in one file, by document."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """Sizes of a synthetic task."""

    def __post_init__(self) -> None:
        """Check every field."""
        require(bool(self.source), "data.source", repr(self.source), "must not be empty")
        rule = "must name a data set, as hf:NAME or hf:DIR"
        require(self.source != "hf:", "data.source", repr(self.source), rule)
        for name in ("subset", "revision"):
            rule = f"is for hf: sources, not {self.source!r}; leave it out"
            given = getattr(self, name)
            require(not given or self.source.startswith("hf:"), f"data.{name}", repr(given), rule)
        at_least(2, "data", self, "sequence_length")
        ok = 0 < self.validation_fraction <= 0.5
        require(ok, "data.validation-fraction", self.validation_fraction, "must be in (0, 0.5]")

    def __repr__(self) -> str:
        """Return the fields, with credentials masked."""
        return f"DataConfig({on_texts(masked, asdict(self))})"

    @property
    def kind(self) -> Literal["text", "task", "pixels"]:
        """What the source is made of; text unless its name says otherwise."""
        if self.source.startswith("task:"):
            return "task"
        return "pixels" if self.source.startswith("pixels:") else "text"
