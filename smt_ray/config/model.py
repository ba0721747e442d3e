"""Shapes of the networks."""

from dataclasses import dataclass
from typing import Literal

from smt_ray.config.checks import at_least, require

EncoderKind = Literal["causal", "bidirectional"]
CELLS = ("transformer", "mlp", "gru", "lstm")


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
    """Kind of encoder: `causal` makes all memories of a sequence in one pass; `bidirectional` (the
    paper's) makes one memory a pass, by full attention."""
    encoder_depth: int = 3
    """Blocks of the encoder's causal trunk, or of the bidirectional encoder."""
    short_convolution: int = 3
    """Positions before each one that every block of the causal trunk adds to it first, weighted by
    channel: a short causal convolution, without which recall is learned late."""
    absolute_positions: bool = False
    """Add sines of the absolute position to the inputs of the causal trunk and of the decoder,
    beside the rotary ones, which tell distances alone. The RNN itself has none."""
    register_depth: int = 1
    """R: blocks in which the K registers of each timestep read the trunk (`causal`). On text
    two brought little at equal time (D = 64, 128), and label at 0.6 times the speed."""
    project_registers: bool = True
    """Add a projection of the trunk state at t to the registers of timestep t (`causal`)."""
    decoder_depth: int = 1
    """Blocks of the decoder, and of the readout that is copied from it."""
    cell: str = "transformer"
    """Kind of RNN cell: `transformer`, `mlp`, `gru`, or `module:Class` of your own. (`lstm` is
    for benchmarks of BPTT: labels are normalised memories, and its state is not.)"""
    cell_depth: int = 1
    """Blocks of the cell (`transformer` and `mlp`)."""
    write_gate: bool = False
    """Let each memory token keep a learned part of its old value (`transformer` cell)."""
    mlp_ratio: int = 4
    """Hidden width of every MLP over `width`."""

    def __post_init__(self) -> None:
        """Check every field."""
        names = ("width", "memory_tokens", "heads", "encoder_depth", "register_depth")
        at_least(0, "model", self, "short_convolution")
        at_least(1, "model", self, *names, "decoder_depth", "cell_depth", "mlp_ratio")
        check_cell("model", self.cell, self.write_gate)
        rule = "must be even for model.cell=lstm, which keeps h and c in a half each"
        even = self.cell != "lstm" or self.memory_tokens % 2 == 0
        require(even, "model.memory-tokens", self.memory_tokens, rule)
        rule = f"must divide model.width={self.width}"
        require(self.width % self.heads == 0, "model.heads", self.heads, rule)
        rule = f"model.width / model.heads must be even (rotary positions), width={self.width}"
        require(self.width // self.heads % 2 == 0, "model.heads", self.heads, rule)


def check_cell(prefix: str, cell: str, write_gate: bool) -> None:
    """Check the kind of a cell, and that it has a gate where one is asked for.

    Raises:
        ValueError: naming the field at fault below `prefix`.
    """
    module, colon, name = cell.partition(":")
    own = bool(colon) and all(part.isidentifier() for part in (*module.split("."), name))
    rule = f"must be one of {', '.join(CELLS)}, or module:Class"
    require(cell in CELLS or own, f"{prefix}.cell", repr(cell), rule)
    rule = f"{prefix}.cell={cell} has no gate; it needs {prefix}.cell=transformer"
    gated = not write_gate or cell == "transformer" or own
    require(gated, f"{prefix}.write-gate", write_gate, rule)
