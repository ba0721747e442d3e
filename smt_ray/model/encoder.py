"""The encoder E: which memory m_t of the inputs x_0..x_t predicts the future (arXiv:2606.06479).

An encoder is called with (tokens, timesteps) and returns the memories of the timesteps asked for,
of all L when none are named. Shapes: B batch, L sequence, S asked timesteps, K memory tokens, D
width, V vocabulary, H heads; N contexts of C tokens, each one timestep of one sequence.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from smt_ray.config import EncoderKind, ModelConfig
from smt_ray.config.model import MLP_RATIO
from smt_ray.model.blocks import (
    MLP,
    Attention,
    Block,
    Embedding,
    Linear,
    ShortConvolution,
    normalize,
    rms_norm,
    rotate,
    rotation,
    sinusoids,
)

CHUNK, CHUNK_ON_CPU = 1 << 15, 1 << 12
"""Tokens that the bidirectional encoder reads in one pass, registers among them. On a CPU they suit
its cache: with 2^15 it takes 1.5 times as long (D = 256, 8 blocks; docs/log.md)."""


class Registers(nn.Module):
    """One block in which the K registers of each timestep t read the trunk states 0..t."""

    def __init__(self, config: ModelConfig) -> None:
        """Create the cross-attention, the registers' self-attention and the MLP."""
        super().__init__()
        self.heads = config.heads
        self.query = Linear(config.width, config.width)
        self.key_value = Linear(config.width, 2 * config.width)
        self.out = Linear(config.width, config.width, zero=True)
        self.attention = Attention(config.width, config.heads)
        self.mlp = MLP(config.width, MLP_RATIO)

    def read(
        self,
        registers: Float[Tensor, "B S K D"],
        trunk: Float[Tensor, "B L D"],
        timesteps: Int[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B S K D"]:
        """Attend from each timestep's registers to the trunk states up to that timestep.

        The K registers are heads that share keys and values, and the trunk's heads are batches. So
        one causal attention over L serves all registers, no (L*K, L) mask exists, and no kernel
        must know of grouped heads.
        """
        batch, heads, slots = len(registers), self.heads, registers.shape[2]
        query = rearrange(self.query(registers), "b s k (h d) -> (b h) k s d", h=heads)
        key, value = rearrange(
            self.key_value(trunk), "b l (two h d) -> two (b h) 1 l d", two=2, h=heads
        )
        query, key = normalize(query), normalize(key)
        by = rotation(trunk.shape[1], key.shape[-1], key.device)
        key = rotate(key, by)
        if timesteps is None:
            query, mask = rotate(query, by), None
        else:
            query = rotate(query, by[timesteps.repeat_interleave(heads, 0)][:, None])
            positions = torch.arange(trunk.shape[1], device=trunk.device)
            seen = positions <= timesteps[..., None]
            mask = seen.repeat_interleave(heads, 0)[:, None]
        shared = -1, slots, -1, -1
        y = F.scaled_dot_product_attention(
            query, key.expand(shared), value.expand(shared), attn_mask=mask, is_causal=mask is None
        )
        return self.out(rearrange(y, "(b h) k s d -> b s k (h d)", b=batch))

    def forward(
        self,
        registers: Float[Tensor, "B S K D"],
        trunk: Float[Tensor, "B L D"],
        timesteps: Int[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B S K D"]:
        """Read the trunk, mix the K registers of each timestep, pass the MLP."""
        registers = registers + self.read(normalize(registers), trunk, timesteps)
        flat = rearrange(registers, "b s k d -> (b s) k d")
        flat = flat + self.attention(normalize(flat))
        flat = flat + self.mlp(normalize(flat))
        return flat.view_as(registers)


class CausalEncoder(nn.Module):
    """A causal trunk runs once over the sequence, then registers read it at each timestep.

    One pass yields the memories of ALL timesteps, against one a pass in the paper's encoder.
    """

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the trunk and the register blocks."""
        super().__init__()
        self.config = config
        width = config.width
        self.embed = Embedding(vocabulary, width)
        self.trunk = nn.ModuleList(
            Block(width, config.heads, MLP_RATIO) for _ in range(config.encoder_depth)
        )
        self.convolutions = nn.ModuleList(
            ShortConvolution(width, config.short_convolution)
            if config.short_convolution
            else nn.Identity()
            for _ in range(config.encoder_depth)
        )
        self.register = nn.Parameter(torch.randn(config.memory_tokens, width))
        self.project = Linear(width, width)
        self.readers = nn.ModuleList(Registers(config) for _ in range(config.register_depth))

    def forward(
        self, tokens: Int[Tensor, "B L"], timesteps: Int[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S K D"]:
        """Return the normalised memories m_t after the inputs x_0..x_t.

        Args:
            tokens: inputs x_0..x_{L-1}.
            timesteps: the timesteps t asked for, a sequence; all L of them when absent.
        """
        stream = self.embed(tokens)
        if self.config.absolute_positions:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            stream = stream + sinusoids(positions, self.config.width).to(stream.dtype)
        by = rotation(tokens.shape[1], self.config.width // self.config.heads, tokens.device)
        for convolution, block in zip(self.convolutions, self.trunk, strict=True):
            stream = block(convolution(stream), by=by, causal=True)
        trunk = normalize(stream)
        at = trunk if timesteps is None else trunk.take_along_dim(timesteps[..., None], dim=1)
        registers = repeat(self.register, "k d -> b s k d", b=at.shape[0], s=at.shape[1])
        registers = registers + self.project(at)[:, :, None]
        for reader in self.readers:
            registers = reader(registers, trunk, timesteps)
        return rms_norm(registers)


class BidirectionalEncoder(nn.Module):
    """The paper's encoder: full attention over [x_0..x_t; K registers], one pass a memory."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the blocks."""
        super().__init__()
        self.head_width = config.width // config.heads
        self.embed = Embedding(vocabulary, config.width)
        self.register = nn.Parameter(torch.randn(config.memory_tokens, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, MLP_RATIO) for _ in range(config.encoder_depth)
        )

    def forward(
        self, tokens: Int[Tensor, "B L"], timesteps: Int[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S K D"]:
        """Return the normalised memories m_t after the inputs x_0..x_t.

        The contexts pass in chunks of so many tokens, which bounds memory where no gradient is
        kept. All ranks that hold equal shapes take equal chunks, as ZeRO-3 needs.

        Args:
            tokens: inputs x_0..x_{L-1}.
            timesteps: the timesteps t asked for, a sequence; all L of them when absent.
        """
        batch, length = tokens.shape
        if timesteps is None:
            asked = torch.arange(length, device=tokens.device).expand(batch, length)
        else:
            asked = timesteps
        ends = rearrange(asked, "b s -> (s b)")
        sequences = torch.arange(batch, device=tokens.device).repeat(asked.shape[1])
        most = CHUNK_ON_CPU if tokens.device.type == "cpu" else CHUNK
        size = max(1, most // (length + self.register.shape[0]))
        memories = []
        for start in range(0, len(ends), size):
            part = slice(start, start + size)
            # Timesteps in order tell the longest context of a chunk without a look at the data.
            last = (min(start + size, len(ends)) - 1) // batch
            longest = length if timesteps is not None else last + 1
            offsets = torch.arange(1 - longest, 1, device=tokens.device)
            positions = ends[part, None] + offsets
            context = tokens[sequences[part, None], positions.clamp(min=0)]
            memories.append(self.read(context, positions >= 0))
        return rearrange(torch.cat(memories), "(s b) k d -> b s k d", b=batch)

    def read(
        self, context: Int[Tensor, "N C"], present: Bool[Tensor, "N C"]
    ) -> Float[Tensor, "N K D"]:
        """Return one memory a context; tokens that are not `present` are padding, never seen.

        Contexts end at the right edge, where the registers begin: the rotary distance from a
        register to x_t is the same for contexts of any length.
        """
        slots = self.register.shape[0]
        registers = self.register.expand(len(context), -1, -1)
        stream = torch.cat((self.embed(context), registers), dim=1)
        visible = F.pad(present, (0, slots), value=True)
        by = rotation(stream.shape[1], self.head_width, stream.device)
        *early, final = self.blocks
        for block in early:
            stream = block(stream, by=by, visible=visible)
        return rms_norm(final(stream, by=by, visible=visible, last=slots))


Encoder = CausalEncoder | BidirectionalEncoder
ENCODERS: dict[EncoderKind, type[Encoder]] = {
    "causal": CausalEncoder,
    "bidirectional": BidirectionalEncoder,
}


def build_encoder(config: ModelConfig, vocabulary: int) -> Encoder:
    """Build the encoder that `config.encoder` names."""
    return ENCODERS[config.encoder](config, vocabulary)
