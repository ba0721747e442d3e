"""RNN cells f: m_{t+1} = f(m_t, x_{t+1}), the output normalised over D.

A cell is an `nn.Module` built from (`ModelConfig`, vocabulary) and called with (memory, token). A
user's own class needs no line here: `model.cell` names it as `module:Class`. Shapes: N memories, K
memory tokens, D width, V vocabulary.
"""

import importlib

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smt_ray.config import ModelConfig
from smt_ray.config.model import MLP_RATIO
from smt_ray.model.blocks import Block, Embedding, Linear, normalize, rms_norm


class TransformerCell(nn.Module):
    """Full attention among the K memory tokens and one input token; `gated` has a write gate."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the blocks, and the write gate of the kind `gated`."""
        super().__init__()
        self.embed = Embedding(vocabulary, config.width)
        self.slot = nn.Parameter(torch.randn(config.memory_tokens, config.width) * 0.5)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, MLP_RATIO) for _ in range(config.cell_depth)
        )
        self.gate = WriteGate(config) if config.cell == "gated" else None

    def forward(
        self, memory: Float[Tensor, "N K D"], token: Int[Tensor, " N"]
    ) -> Float[Tensor, "N K D"]:
        """Return the next memory."""
        stream = torch.cat((self.embed(token)[:, None], memory + self.slot), dim=1)
        *early, final = self.blocks
        for block in early:
            stream = block(stream)
        after = final(stream, last=memory.shape[1])
        return rms_norm(after if self.gate is None else self.gate(memory, after))


class WriteGate(nn.Module):
    """Choose for each memory token how much of the new value replaces the old one.

    A closed gate keeps a token exactly, which a residual stream can only learn to come near.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Create the gate, mostly open (0.88) whatever it sees."""
        super().__init__()
        self.see = Linear(config.width, 1, zero=True)
        self.open = nn.Parameter(torch.full((config.memory_tokens, 1), 2.0))

    def forward(
        self, before: Float[Tensor, "N K D"], after: Float[Tensor, "N K D"]
    ) -> Float[Tensor, "N K D"]:
        """Return the mixture, not normalised."""
        return torch.lerp(before, after, torch.sigmoid(self.see(normalize(after)) + self.open))


class MlpCell(nn.Module):
    """Residual MLPs over the flattened memory, each of which sees the input token."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the maps; the hidden width is `MLP_RATIO * D`.

        Each branch begins as a tenth of the memory. Not zero: the empty memory would stay zero,
        where RMS-norm's gradient is 1 / eps = 1,000 a step and explodes when unrolled.
        """
        super().__init__()
        hidden, state = MLP_RATIO * config.width, config.memory_tokens * config.width
        self.embed = Embedding(vocabulary, config.width)
        self.up = nn.ModuleList(
            Linear(state + config.width, hidden) for _ in range(config.cell_depth)
        )
        ends = [Linear(hidden, state) for _ in range(config.cell_depth)]
        for end in ends:
            nn.init.normal_(end.weight, std=0.1 * hidden**-0.5)
        self.down = nn.ModuleList(ends)

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
    """A `torch.nn.GRUCell` over the flattened memory, its output normalised.

    A normalised memory has entries beyond the +-1 that a tanh can write. So the GRU sees a memory
    that is smaller by a learned factor a slot, and the normalisation takes the factor off again.
    """

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the gated cell; its hidden size is K * D."""
        super().__init__()
        self.embed = Embedding(vocabulary, config.width)
        self.scale = nn.Parameter(torch.full((config.memory_tokens, 1), 1 / 3))
        self.gru = nn.GRUCell(config.width, config.memory_tokens * config.width)

    def forward(
        self, memory: Float[Tensor, "N K D"], token: Int[Tensor, " N"]
    ) -> Float[Tensor, "N K D"]:
        """Return the next memory."""
        state = self.gru(self.embed(token), (memory * self.scale).flatten(1))
        return rms_norm(state.view_as(memory))


CELLS: dict[str, type[nn.Module]] = {
    "transformer": TransformerCell,
    "gated": TransformerCell,
    "mlp": MlpCell,
    "gru": GruCell,
}


def cell_class(name: str) -> type[nn.Module]:
    """Return the class of a kind of cell; a user's `module:Class` is imported.

    Raises:
        ValueError: if there is no such module or class, or it is no `torch.nn.Module`.
    """
    if name in CELLS:
        return CELLS[name]
    module, _, attribute = name.partition(":")
    try:
        holder = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"model.cell={name!r}: {error}; {module} must be importable (PYTHONPATH) on every node"
        ) from error
    found = getattr(holder, attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        wrong = "has no such class" if found is None else "holds no torch.nn.Module by that name"
        raise ValueError(f"model.cell={name!r}: {module} {wrong}; name a torch.nn.Module class")
    return found


def build_cell(config: ModelConfig, vocabulary: int) -> nn.Module:
    """Build the cell that `config.cell` names."""
    return cell_class(config.cell)(config, vocabulary)
