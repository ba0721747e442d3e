"""An LSTM as a cell of one's own, `benchmarks.lstm:LstmCell`: a baseline for BPTT alone.

Shapes: N memories, K memory tokens, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smt_ray.config import ModelConfig
from smt_ray.model.blocks import Embedding


class LstmCell(nn.Module):
    """A `torch.nn.LSTMCell`: h in the first half of the memory tokens, c in the second.

    Its state is not normalised, so that no label can teach it: it is a baseline for BPTT.
    """

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the cell, of hidden size K / 2 * D; its forget gates begin open (bias 1)."""
        super().__init__()
        hidden = config.memory_tokens // 2 * config.width
        self.embed = Embedding(vocabulary, config.width)
        self.lstm = nn.LSTMCell(config.width, hidden)
        nn.init.ones_(self.lstm.bias_hh.data[hidden : 2 * hidden])

    def forward(
        self, memory: Float[Tensor, "N K D"], token: Int[Tensor, " N"]
    ) -> Float[Tensor, "N K D"]:
        """Return the next state."""
        hidden, carried = memory.flatten(1).chunk(2, dim=1)
        state = self.lstm(self.embed(token), (hidden, carried))
        return torch.cat(state, dim=1).view_as(memory)
