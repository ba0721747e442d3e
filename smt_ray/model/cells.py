"""RNN cells f: m_{t+1} = f(m_t, x_{t+1}), the output normalised over D.

A cell is an `nn.Module` built from (`ModelConfig`, vocabulary); a new kind is one class here and
one line in `CELLS`. Shapes: N memories, K memory tokens, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from smt_ray.config import ModelConfig
from smt_ray.model.blocks import Block, Embedding, Linear, rms_norm


class TransformerCell(nn.Module):
    """Full attention among the K memory tokens and one input token."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the blocks."""
        super().__init__()
        self.embed = Embedding(vocabulary, config.width)
        self.slot = nn.Parameter(torch.randn(config.memory_tokens, config.width) * 0.5)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.cell_depth)
        )

    def forward(
        self, memory: Float[Tensor, "N K D"], token: Int[Tensor, " N"]
    ) -> Float[Tensor, "N K D"]:
        """Return the next memory."""
        stream = torch.cat((self.embed(token)[:, None], memory + self.slot), dim=1)
        *early, final = self.blocks
        for block in early:
            stream = block(stream)
        return rms_norm(final(stream, last=memory.shape[1]))


class MlpCell(nn.Module):
    """Residual MLPs over the flattened memory, each of which sees the input token."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the maps; the hidden width is `mlp_ratio * D`."""
        super().__init__()
        hidden, state = config.mlp_ratio * config.width, config.memory_tokens * config.width
        self.embed = Embedding(vocabulary, config.width)
        self.up = nn.ModuleList(
            Linear(state + config.width, hidden) for _ in range(config.cell_depth)
        )
        self.down = nn.ModuleList(
            Linear(hidden, state, zero=True) for _ in range(config.cell_depth)
        )

    def forward(
        self, memory: Float[Tensor, "N K D"], token: Int[Tensor, " N"]
    ) -> Float[Tensor, "N K D"]:
        """Return the next memory."""
        embedded, stream = self.embed(token), memory
        for up, down in zip(self.up, self.down, strict=True):
            seen = torch.cat((rms_norm(stream).flatten(1), embedded), dim=1)
            stream = stream + down(F.silu(up(seen))).view_as(stream)
        return rms_norm(stream)


class GruCell(nn.Module):
    """A `torch.nn.GRUCell` over the flattened memory, its output normalised."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the gated cell; its hidden size is K * D."""
        super().__init__()
        self.embed = Embedding(vocabulary, config.width)
        self.gru = nn.GRUCell(config.width, config.memory_tokens * config.width)

    def forward(
        self, memory: Float[Tensor, "N K D"], token: Int[Tensor, " N"]
    ) -> Float[Tensor, "N K D"]:
        """Return the next memory."""
        state = self.gru(self.embed(token), rearrange(memory, "n k d -> n (k d)"))
        return rms_norm(state.view_as(memory))


CELLS: dict[str, type[nn.Module]] = {
    "transformer": TransformerCell,
    "mlp": MlpCell,
    "gru": GruCell,
}


def build_cell(config: ModelConfig, vocabulary: int) -> nn.Module:
    """Build the cell that `config.cell` names."""
    return CELLS[config.cell](config, vocabulary)
