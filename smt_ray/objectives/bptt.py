"""The baseline: the RNN trained by backpropagation through time (BPTT), full or truncated.

The same cell and readout as in Supervised Memory Training, unrolled from the empty memory; also the
fine-tuning after DMT. In mode `parallel` a sequence stays for several visits with the states that
it had, and all its parts of `span` timesteps are unrolled at once, each from where an earlier visit
left the part before it: depth `span` instead of L, gradients as in `truncated`, states not exact.
Shapes: B batch, L sequence, K memory tokens, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smt_ray.config import ModelConfig, UnrollConfig
from smt_ray.model.rnn import RNN
from smt_ray.objectives.objective import (
    Batch,
    Objective,
    normalisers,
    previous,
    readout_loss,
    valid_targets,
)
from smt_ray.objectives.parts import unrolled


class Bptt(Objective):
    """`CE(g(m_t), y_t)` over an unrolled sequence; the readout runs once, over all its targets."""

    def __init__(self, model: ModelConfig, unroll: UnrollConfig, vocabulary: int) -> None:
        """Create the RNN with fresh weights."""
        super().__init__()
        self.how = unroll
        self.rnn = RNN(model, vocabulary)

    def unroll(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L K D"]:
        """Return m_0..m_{L-1}; truncated, no gradient crosses a multiple of `span` timesteps.

        All chunks of a truncated sequence stay in one graph, so that their gradients make one step.
        """
        span = self.how.span if self.how.mode == "truncated" else tokens.shape[1]
        memory, memories = self.rnn.initial(len(tokens)), []
        for timestep, token in enumerate(tokens.unbind(1)):
            if timestep % span == 0:
                memory = memory.detach()
            memory = self.rnn.step(memory, token)
            memories.append(memory)
        return torch.stack(memories, dim=1)

    def memories(self, batch: Batch) -> Float[Tensor, "B L K D"]:
        """Return m_0..m_{L-1} as the mode has them."""
        if self.how.mode != "parallel":
            return self.unroll(batch["inputs"])
        starts = batch["state"].float()[:, :: self.how.span]
        return unrolled(self.rnn, starts, batch["inputs"], self.how.span)

    def counts(self, batch: Batch) -> Float[Tensor, "1"]:
        """Return the valid targets."""
        return valid_targets(batch["targets"]).view(1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy in nats, and in mode `parallel` `carry`: the next states."""
        memory = self.memories(batch)
        result = self._losses(memory, batch)
        parallel = self.how.mode == "parallel"
        return {**result, "carry": previous(memory.detach())} if parallel else result

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy in nats of a true rollout."""
        return self._losses(self.rnn.rollout(batch["inputs"]), batch)

    def _losses(self, memory: Float[Tensor, "B L K D"], batch: Batch) -> dict[str, Tensor]:
        (count,) = normalisers(self, batch)
        loss = readout_loss(self.rnn.readout, memory, batch, count)
        return {"loss": loss, "loss/readout": loss}
