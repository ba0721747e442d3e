"""The teacher: encoder, decoder and cell trained together by Eq. 5 (arXiv:2606.06479).

Shapes: B batch, L sequence, S sampled timesteps, K memory tokens, D width, F horizon.
"""

from math import gcd
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from smt_ray.config import LossConfig, ModelConfig
from smt_ray.model.cells import build_cell
from smt_ray.model.decoder import Decoder
from smt_ray.model.encoder import build_encoder
from smt_ray.objectives.losses import (
    PAIRS,
    slot_deviation,
    squared_error,
    uniformity,
    whiten,
    whitener,
)
from smt_ray.objectives.objective import (
    IGNORED,
    Batch,
    Objective,
    apply_cell,
    hashed,
    mean_over,
    normalisers,
    readout_loss,
    target_nats,
    valid_targets,
)


class Teacher(Objective):
    """Eq. 5: `dec + dynamics * dyn + uniformity * unif`, and the dense readout loss.

    Eq. 4 and whitening compare sequences within groups of `loss.group`: consecutive rows of the
    global batch, so that neither the number of ranks nor the micro-batch changes the loss.
    """

    def __init__(
        self,
        model: ModelConfig,
        loss: LossConfig,
        vocabulary: int,
        seed: int,
        *,
        dense: bool = True,
    ) -> None:
        """Create the three networks with fresh weights.

        Args:
            model: their shapes.
            loss: weights and sampling.
            vocabulary: V.
            seed: chooses sampled timesteps and compared pairs.
            dense: whether the next target is decoded at all timesteps as well.
        """
        super().__init__()
        self.loss, self.seed, self.dense = loss, seed, dense
        self.encoder = build_encoder(model, vocabulary)
        self.decoder = Decoder(model, vocabulary)
        self.cell = build_cell(model, vocabulary)

    def timesteps(self, batch: Batch) -> Int[Tensor, "B S"]:
        """Sample S timesteps a sequence from hash(seed, step, sequence), the last always with them.

        m_{L-1} must be decoded: as a target of the dynamics alone it would collapse. Fewer than L
        are drawn with replacement; from S = L on it is each timestep once.
        """
        rows, length = batch["inputs"].shape
        if self.loss.timesteps >= length:
            return torch.arange(length, device=batch["inputs"].device).expand(rows, -1)
        slots = torch.arange(self.loss.timesteps - 1, device=batch["inputs"].device)
        sequences = hashed(self.seed, batch["step"], batch["sequence_id"])
        early = hashed(sequences[:, None], slots) % (length - 1)
        return torch.nn.functional.pad(early, (0, 1), value=length - 1)

    def horizon(self, values: Int[Tensor, "B L"], timesteps: Int[Tensor, "B S"]) -> Tensor:
        """Return values_t..values_{t+F-1} of timesteps, (B, S, min(F, L)); -100 past the end."""
        offsets = torch.arange(min(self.loss.horizon, values.shape[1]), device=values.device)
        at = timesteps[..., None] + offsets
        found = values.take_along_dim(at.clamp(max=values.shape[1] - 1).flatten(1), dim=1)
        return found.view(at.shape).masked_fill(at >= values.shape[1], IGNORED)

    def counts(self, batch: Batch) -> Float[Tensor, "3"]:
        """Return the valid targets over sampled horizons and over all timesteps, and the rows."""
        sampled = self.horizon(batch["targets"], self.timesteps(batch))
        valid = valid_targets(sampled), valid_targets(batch["targets"])
        return torch.stack((*valid, torch.full_like(valid[0], len(batch["targets"]))))

    def dynamics_share(
        self, nats: Float[Tensor, "B S F"], targets: Int[Tensor, "B S F"]
    ) -> Float[Tensor, "B 1 1 1"] | float:
        """Return which share of each sequence's gradient of Eq. 3 reaches the encoder.

        Memories that do not differ are easy to follow. So until those of a sequence tell its
        future, this gradient would only take away what differs in them (docs/log.md); and where it
        begins to harm them, it ends. A sequence without a target passes all of it.

        Args:
            nats: cross-entropy of the decoded targets.
            targets: these targets.
        """
        if not self.loss.dynamics_below:
            return 1.0
        asked = (targets != IGNORED).sum((1, 2)).clamp(min=1)
        mean = nats.detach().sum((1, 2)) / asked
        return (1 - mean / self.loss.dynamics_below).clamp(min=0)[:, None, None, None]

    def encode(self, batch: Batch, timesteps: Int[Tensor, "B S"]) -> "Encoded":
        """Return the memories that the losses ask for: of all timesteps, or no others (`dense`)."""
        early = timesteps[:, :-1]
        if not self.dense:
            asked = torch.cat((torch.zeros_like(timesteps[:, :1]), early + 1, timesteps), dim=1)
            sizes = (early.shape[1] + 1, timesteps.shape[1])
            after, decoded = self.encoder(batch["inputs"], asked).split(sizes, dim=1)
            return Encoded(decoded, decoded, decoded[:, :-1], after)
        memory = self.encoder(batch["inputs"])
        decoded = _at(memory, timesteps)
        if self.loss.dense_dynamics:
            return Encoded(memory, decoded, memory[:, :-1], memory)
        after = torch.cat((memory[:, :1], _at(memory, early + 1)), dim=1)
        return Encoded(memory, decoded, _at(memory, early), after)

    def dynamics(
        self,
        encoded: "Encoded",
        inputs: Int[Tensor, "B L"],
        timesteps: Int[Tensor, "B S"],
        share: Float[Tensor, "B 1 1 1"] | float,
        rows: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Return the mean square of Eq. 3 over `rows` sequences.

        A `share` of its gradient reaches the encoder.
        """
        memory, _, now, after = encoded
        before = torch.cat((torch.zeros_like(after[:, :1]), now), dim=1)
        before, label = _led_by(before, share), _led_by(after, share)
        arriving = inputs
        if not self.loss.dense_dynamics:
            arriving = torch.cat((inputs[:, :1], inputs.gather(1, timesteps[:, :-1] + 1)), dim=1)
        predicted = apply_cell(self.cell, before, arriving)
        count = rows * label[0].numel()
        if self.loss.whiten_dynamics == "none":
            return squared_error(predicted, label, count)
        groups = zip(*(self._groups(part) for part in (predicted, label, memory)), strict=True)
        errors = [self._whitened_error(guess, goal, own, count) for guess, goal, own in groups]
        return torch.stack(errors).sum()

    def _whitened_error(
        self, predicted: Tensor, label: Tensor, memory: Tensor, count: Tensor
    ) -> Float[Tensor, ""]:
        """Return the squared error of one group in units of what varies in it."""
        if self.loss.whiten_dynamics == "slots":
            unit = slot_deviation(label)
            return squared_error(predicted / unit, label / unit, count)
        factor = whitener(memory)
        return squared_error(whiten(predicted, factor), whiten(label, factor), count)

    def _groups(self, rows: Shaped[Tensor, "B ..."]) -> tuple[Tensor, ...]:
        """Cut rows of a batch into the groups that are compared."""
        return rows.split(gcd(self.loss.group, len(rows)))

    def uniformity(
        self, memory: Float[Tensor, "B S K D"], batch: Batch, rows: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Return Eq. 4, the mean over the groups of `rows` sequences."""
        pairs = torch.arange(4 * PAIRS, device=memory.device).view(4, PAIRS)
        groups = zip(self._groups(memory), self._groups(batch["sequence_id"]), strict=True)
        found = [
            uniformity(part.flatten(0, 1), hashed(self.seed, batch["step"], ids[0], pairs))
            for part, ids in groups
        ]
        return torch.stack(found).mean() * (len(memory) / rows)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return Eq. 5 and its parts in nats (`loss/dec`, `loss/dense`) and mean squares."""
        inputs, targets, config = batch["inputs"], batch["targets"], self.loss
        timesteps = self.timesteps(batch)
        sampled, dense, rows = normalisers(self, batch)
        encoded = self.encode(batch, timesteps)

        following = self.horizon(inputs, timesteps)[..., 1:].clamp(min=0)
        logits = self.decoder(
            encoded.decoded.flatten(0, 1), following.flatten(0, 1), timesteps.flatten()
        )
        future = self.horizon(targets, timesteps)
        nats = target_nats(logits.view(*future.shape, -1), future)
        dec = mean_over(sampled, nats)
        share = self.dynamics_share(nats, future)
        dyn = self.dynamics(encoded, inputs, timesteps, share, rows)

        unif = self.uniformity(encoded.memory, batch, rows)

        loss = dec + config.dynamics * dyn + config.uniformity * unif
        metrics = {"loss/dec": dec, "loss/dyn": dyn, "loss/unif": unif}
        if self.dense:
            metrics["loss/dense"] = readout_loss(self.decoder, encoded.memory, batch, dense)
            loss = loss + metrics["loss/dense"]
        return {"loss": loss, **metrics}


class Encoded(NamedTuple):
    """Memories of a batch, each (B, a number of timesteps, K, D)."""

    memory: Tensor
    """Of all timesteps, or, without the dense loss, those that are decoded."""
    decoded: Tensor
    """Of the S sampled timesteps."""
    now: Tensor
    """From which the dynamics start, after the empty memory."""
    after: Tensor
    """Which they lead to: m_0, then that after each of `now`."""


def _led_by(memory: Tensor, share: Tensor | float) -> Tensor:
    """Scale the gradient of `memory` by `share`; its value stays."""
    fixed = memory.detach()
    return fixed + (share * (memory - fixed)).to(memory.dtype)


def _at(memory: Float[Tensor, "B L K D"], timesteps: Int[Tensor, "B S"]) -> Tensor:
    """Return the memories of the given timesteps, (B, S, K, D)."""
    return memory.take_along_dim(timesteps[..., None, None], dim=1)
