"""Shapes of the networks."""

from dataclasses import dataclass
from typing import Literal

from smt_ray.config.checks import at_least, require

EncoderKind = Literal["causal", "bidirectional"]
CELLS = ("transformer", "gated", "mlp", "gru")
MLP_RATIO = 4
"""Hidden width of every MLP over `model.width`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shapes of the encoder, the decoder and the cell."""

    width: int = 64
    """D: width of every residual stream and of one memory token. Cost grows with its square."""
    memory_tokens: int = 8
    """K: memory tokens; the RNN's state is K * D numbers. More remember more; labels, disk and time
    grow with them."""
    heads: int = 4
    """Attention heads; must divide `width`."""
    encoder: EncoderKind = "causal"
    """`causal` makes all memories of a sequence in one pass; `bidirectional` (the paper's) makes
    one a pass, by full attention, and is many times slower."""
    encoder_depth: int = 3
    """Blocks of the encoder. More make a better teacher; the RNN does not grow."""
    register_depth: int = 1
    """Blocks in which the K registers of each timestep read the trunk (`causal`). A second one
    brings little on text, and labels at 0.6 times the speed."""
    short_convolution: int = 3
    """Positions before each one that every block of the causal trunk adds to it first, weighted by
    channel. Recall is learned late without."""
    absolute_positions: bool = False
    """Add the absolute position to the inputs of encoder and decoder, beside rotary ones, which
    tell distances alone. The RNN has none. Turn it on where places count, as in images."""
    decoder_depth: int = 1
    """Blocks of the decoder, and of the RNN's readout, which begins as its copy."""
    cell: str = "transformer"
    """RNN cell: `transformer`, `gated` (one that can keep a memory token as it is), `mlp`, `gru`,
    or `module:Class` of your own."""
    cell_depth: int = 1
    """Blocks of the cell (not of `gru`). More make a better RNN and a slower one."""

    def __post_init__(self) -> None:
        """Check every field."""
        names = ("width", "memory_tokens", "heads", "encoder_depth", "register_depth")
        at_least(0, "model", self, "short_convolution")
        at_least(1, "model", self, *names, "decoder_depth", "cell_depth")
        check_cell("model", self.cell)
        rule = f"must divide model.width={self.width}"
        require(self.width % self.heads == 0, "model.heads", self.heads, rule)
        rule = f"model.width / model.heads must be even (rotary positions), width={self.width}"
        require(self.width // self.heads % 2 == 0, "model.heads", self.heads, rule)


def check_cell(prefix: str, cell: str) -> None:
    """Check the kind of a cell.

    Raises:
        ValueError: naming the field below `prefix`.
    """
    module, colon, name = cell.partition(":")
    own = bool(colon) and all(part.isidentifier() for part in (*module.split("."), name))
    rule = f"must be one of {', '.join(CELLS)}, or module:Class"
    require(cell in CELLS or own, f"{prefix}.cell", repr(cell), rule)
