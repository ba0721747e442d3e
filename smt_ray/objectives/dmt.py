"""Dagger memory training: the RNN learns on its own memories, against the stored labels (Eq. 6).

Mode `sequential` rolls the RNN out from the empty memory without a gradient, then steps from all
states of the rollout at once: the gradient of the paper's loop. Mode `one_step` is the control: it
steps from the teacher's memories. In mode `parallel` each window carries input states s_t (s_0 = 0,
s_t = m_{t-1} when it is admitted). One visit advances all of them at once, p_t = f(s_t, x_t), and
s_{t+1} becomes p_t without its gradient: depth 1 instead of L, and a state of age a is an a-step
rollout from a label (Data as Demonstrator; Jacobi iteration). With a `depth` above 1 a visit first
rolls every `depth`-th state on to the next of them, all at once and without a gradient, so that
ages grow by `depth` (multiple shooting). With `unroll` the gradient runs through these timesteps,
the readout's too: between Eq. 6, whose paths have one step, and BPTT, whose paths have L.
Shapes: B windows, L timesteps, N parts of T timesteps, K memory tokens, D width.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from smt_ray.config import DmtConfig, ModelConfig
from smt_ray.model.decoder import Decoder
from smt_ray.model.rnn import RNN
from smt_ray.objectives.losses import squared_error
from smt_ray.objectives.objective import (
    Batch,
    Objective,
    apply_cell,
    normalisers,
    previous,
    readout_loss,
    valid_targets,
)
from smt_ray.objectives.parts import advanced, roll, unrolled


class Dmt(Objective):
    """`dynamics * MSE(p_t, m_t) + readout * CE(g(p_t), y_t)`; CE moves the cell if unrolled only.

    With `fade` the first weight falls to 0, so that the labels begin what CE ends.

    `teacher_readout` gets the same training on the labels, so that the teacher is scored by a
    decoder that has seen as much; its loss reaches no other weight.
    """

    def __init__(
        self, model: ModelConfig, dmt: DmtConfig, vocabulary: int, readout: float = 1.0
    ) -> None:
        """Create the RNN and the teacher's readout with fresh weights.

        Args:
            model: shapes of the RNN.
            dmt: how it is trained.
            vocabulary: V.
            readout: weight of the cross-entropy.
        """
        super().__init__()
        self.dmt, self.weight = dmt, readout
        self.rnn = RNN(model, vocabulary)
        self.teacher_readout = Decoder(model, vocabulary)

    def counts(self, batch: Batch) -> Float[Tensor, "2"]:
        """Return how many numbers the labels hold, and the valid targets."""
        valid = valid_targets(batch["targets"])
        return torch.stack((torch.full_like(valid, batch["memory"].numel()), valid))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss, its parts, and in mode `parallel` `carry`: the windows' next states."""
        memory = batch["memory"].float()
        numbers, valid = normalisers(self, batch)
        if self.dmt.unroll:
            starts = self._starts(batch)
            predicted = own = unrolled(self.rnn, starts, batch["inputs"], self.dmt.depth)
        else:
            predicted = apply_cell(self.rnn.cell, self.states(batch), batch["inputs"])
            own = predicted.detach()
        dyn = squared_error(predicted, memory, numbers)
        readout = readout_loss(self.rnn.readout, own, batch, valid)
        teacher = readout_loss(self.teacher_readout, memory, batch, valid)
        result = {
            "loss": self._dynamics(batch) * dyn + self.weight * (readout + teacher),
            "loss/dyn": dyn,
            "loss/readout": readout,
            "loss/teacher_readout": teacher,
        }
        parallel = self.dmt.mode == "parallel"
        return {**result, "carry": previous(own.detach())} if parallel else result

    def _dynamics(self, batch: Batch) -> float | Tensor:
        """Return the weight of the labels' loss now."""
        if not self.dmt.fade:
            return self.dmt.dynamics
        left = 1 - batch["progress"] / self.dmt.fade
        return self.dmt.dynamics * left.clamp(min=0)

    def states(self, batch: Batch) -> Float[Tensor, "B L K D"]:
        """Return the memories that one step updates: m_{-1}..m_{L-2} of what the mode says."""
        if self.dmt.mode == "parallel":
            return advanced(self.rnn, self._starts(batch), batch["inputs"], self.dmt.depth)
        if self.dmt.mode == "one_step":
            return previous(batch["memory"].float())
        return self._own_states(batch["inputs"])

    def _starts(self, batch: Batch) -> Float[Tensor, "B N K D"]:
        """Return the memories before inputs 0, `depth`, 2 `depth`, ..., from which parts begin."""
        depth, inputs = self.dmt.depth, batch["inputs"]
        if self.dmt.mode == "parallel":
            return batch["state"].float()[:, ::depth]
        if self.dmt.mode == "one_step":
            return previous(batch["memory"].float())[:, ::depth]
        last = (inputs.shape[1] - 1) // depth * depth
        return self._own_states(inputs[:, : last + 1])[:, ::depth]

    @torch.no_grad()
    def _own_states(self, inputs: Int[Tensor, "B L"]) -> Float[Tensor, "B L K D"]:
        """Return the memories before each input in a rollout from the empty memory."""
        return roll(self.rnn, self.rnn.initial(len(inputs)), inputs[:, :-1])

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy in nats, squared error and NMSE of a true rollout."""
        numbers, valid = normalisers(self, batch)
        memory = self.rnn.rollout(batch["inputs"])
        loss = readout_loss(self.rnn.readout, memory, batch, valid)
        label = batch["memory"].float()
        return {
            "loss": loss,
            "loss/dyn": squared_error(memory, label, numbers),
            "drift/rollout": _nmse(memory, label, torch.ones_like(batch["inputs"])),
        }

    def probe(self, batch: Batch) -> dict[str, Tensor]:
        """Return NMSE of the states in flight by their age, and how stale they are.

        The state s_t of a window of age a is of age min(a, t), where t is a multiple of `depth`; no
        other state is read again. `drift/age_004` is about ages 4..7. With a >= t it
        comes all the way from the empty memory, so that it lacks only the updates of the weights
        since then: staleness compares it to a rollout under the weights of now.
        """
        kept = slice(None, None, self.dmt.depth)
        state, label = batch["state"].float()[:, kept], previous(batch["memory"].float())[:, kept]
        length = batch["inputs"].shape[1]
        timesteps = torch.arange(length, device=state.device)[kept]
        age = torch.minimum(batch["age"][:, None], timesteps)
        whole = (age == timesteps) & (age > 0)
        now = self._own_states(batch["inputs"])[:, kept]
        figures = {"drift/staleness": _nmse(state, label, whole, now)}
        for power in range((length - 1).bit_length()):
            least = 1 << power
            among = (age >= least) & (age < 2 * least)
            figures[f"drift/age_{least:03d}"] = _nmse(state, label, among)
        return figures


def _nmse(
    own: Float[Tensor, "B L K D"],
    label: Float[Tensor, "B L K D"],
    among: Shaped[Tensor, "B L"],
    reference: Float[Tensor, "B L K D"] | None = None,
) -> Float[Tensor, "2"]:
    """Return the parts of NMSE over the states `among`: squared error, variance of the labels.

    The variance is that over the sequences of the batch (0 for a single one), by timestep. The
    error is that from the labels, or from another `reference`.
    """
    error = (own - (label if reference is None else reference)).square().sum((2, 3))
    deviation = (label - label.mean(0)).square().sum((0, 2, 3)) / max(len(label) - 1, 1)
    return torch.stack(((error * among).sum(), (deviation * among).sum()))
