"""The decoder D: the next F targets from one memory m_t and the inputs after it (Eq. 2).

Shapes: N memories, K memory tokens, D width, V vocabulary, F horizon.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smt_ray.config import ModelConfig
from smt_ray.config.model import MLP_RATIO
from smt_ray.model.blocks import Block, Embedding, Linear, normalize, rotation, sinusoids


class Decoder(nn.Module):
    """Causal Transformer over [m_t; x_{t+1}..x_{t+F-1}]; without inputs it is the readout g."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the blocks and the output map."""
        super().__init__()
        self.head_width = config.width // config.heads
        self.absolute_positions = config.absolute_positions
        self.embed = Embedding(vocabulary, config.width)
        self.slot = nn.Parameter(torch.randn(config.memory_tokens, config.width) * 0.5)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, MLP_RATIO) for _ in range(config.decoder_depth)
        )
        self.logits = Linear(config.width, vocabulary, zero=True)

    def forward(
        self,
        memory: Float[Tensor, "N K D"],
        following: Int[Tensor, "N F_1"] | None = None,
        timesteps: Int[Tensor, " N"] | None = None,
    ) -> Float[Tensor, "N F V"]:
        """Return the logits of y_t..y_{t+F-1}.

        Args:
            memory: m_t.
            following: x_{t+1}..x_{t+F-1}, so F - 1 tokens; none for the readout.
            timesteps: t of each memory; needed with `following` and absolute positions.
        """
        stream = memory + self.slot
        if following is not None:
            arriving = self.embed(following)
            if self.absolute_positions:
                assert timesteps is not None
                offsets = torch.arange(1, 1 + following.shape[1], device=following.device)
                at = sinusoids(timesteps[:, None] + offsets, arriving.shape[-1])
                arriving = arriving + at.to(arriving.dtype)
            stream = torch.cat((stream, arriving), dim=1)
        by = rotation(stream.shape[1], self.head_width, stream.device)
        horizon = stream.shape[1] - memory.shape[1] + 1
        *early, final = self.blocks
        for block in early:
            stream = block(stream, by=by, causal=True)
        return self.logits(normalize(final(stream, by=by, causal=True, last=horizon)))
