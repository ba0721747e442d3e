"""The standalone RNN: a cell and a readout.

Shapes: B batch, L sequence, K memory tokens, D width, V vocabulary.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smt_ray.config import ModelConfig
from smt_ray.model.cells import build_cell
from smt_ray.model.decoder import Decoder


class RNN(nn.Module):
    """A nonlinear RNN over memories of K tokens of width D, from the empty memory m_{-1} = 0."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        """Create the cell and the readout with fresh weights."""
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.cell = build_cell(config, vocabulary)
        self.readout = Decoder(config, vocabulary)

    def initial(self, batch: int) -> Float[Tensor, "B K D"]:
        """Return the empty memory for `batch` sequences, of the parameters' dtype and device."""
        shape = batch, self.config.memory_tokens, self.config.width
        return self.readout.logits.weight.new_zeros(shape)

    def step(
        self, memory: Float[Tensor, "B K D"], token: Int[Tensor, " B"]
    ) -> Float[Tensor, "B K D"]:
        """Return the memory after one more token."""
        return self.cell(memory, token)

    def logits(self, memory: Float[Tensor, "B K D"]) -> Float[Tensor, "B V"]:
        """Return the logits of the next target."""
        return self.readout(memory)[:, 0]

    def rollout(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L K D"]:
        """Return the memories m_0..m_{L-1} of the RNN's own rollout from the empty memory."""
        memory, memories = self.initial(len(tokens)), []
        for token in tokens.unbind(1):
            memory = self.step(memory, token)
            memories.append(memory)
        return torch.stack(memories, dim=1)

    @torch.inference_mode()
    def generate(
        self,
        prompt: Int[Tensor, " L"],
        length: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[int]:
        """Yield `length` sampled tokens after a prompt of at least one token; memory is constant.

        Raises:
            ValueError: if the prompt is empty or holds a token outside of the vocabulary.
        """
        if not len(prompt):
            raise ValueError("prompt='': must hold at least one token")
        unknown = prompt[(prompt < 0) | (prompt >= self.vocabulary)]
        if len(unknown):
            raise ValueError(f"prompt={int(unknown[0])}: not a token of 0..{self.vocabulary - 1}")
        memory = self.initial(1)
        for token in prompt.to(memory.device).view(-1, 1):
            memory = self.step(memory, token)
        for _ in range(length):
            logits = self.logits(memory)[0].float()
            if temperature > 0:
                weights = torch.softmax(logits / temperature, dim=-1)
                token = torch.multinomial(weights, 1, generator=generator)
            else:
                token = logits.argmax(keepdim=True)
            yield int(token)
            memory = self.step(memory, token)
