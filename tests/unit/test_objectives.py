"""Objectives against plain loops over sequences and timesteps, and how their means are shared."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smt_ray.config import DmtConfig, LossConfig, UnrollConfig
from smt_ray.data.rows import asked
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.losses import COVARIANCE_FLOOR, PAIRS, VARIANCE_FLOOR, uniformity
from smt_ray.objectives.objective import Objective, hashed, previous
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from tests.samples import MODEL, VOCABULARY, output_sizes, random_weights

B, L, SEED = 4, 10, 5
K, D = MODEL.memory_tokens, MODEL.width
LOSS = LossConfig(timesteps=3, horizon=4, dynamics=0.7, uniformity=0.3, group=B)


def make_batch(step=2, rows=B):
    ids = torch.arange(rows) * 7 + (3 << 32)
    tokens = torch.randint(VOCABULARY, (rows, L + 1))
    targets = tokens[:, 1:].clone()
    targets[0, :7] = -100  # so that sequences differ in their valid targets
    targets[rows // 2, 2:4] = -100
    memory = F.normalize(torch.randn(rows, L, K, D), dim=-1) * D**0.5
    return {
        "sequence_id": ids,
        "inputs": tokens[:, :-1],
        "targets": targets,
        "memory": memory,
        "state": previous(torch.randn(rows, L, K, D)),
        "step": torch.tensor(step),
    }


def teacher(*, encoder="causal", positions=False, dense=True, **changes):
    model = dataclasses.replace(MODEL, encoder=encoder, absolute_positions=positions)
    loss = dataclasses.replace(LOSS, **changes)
    return random_weights(Teacher(model, loss, VOCABULARY, SEED, dense=dense))


def dmt(*, readout=1.0, **changes):
    return random_weights(Dmt(MODEL, DmtConfig(**changes), VOCABULARY, readout))


def bptt():
    return random_weights(Bptt(MODEL, UnrollConfig(), VOCABULARY))


def nats(logits, target):
    return -torch.log_softmax(logits, -1)[target]


def test_timesteps_are_hashed_from_seed_step_and_sequence():
    model, batch = teacher(timesteps=6), make_batch()
    found = model.timesteps(batch)
    assert found.shape == (B, 6)
    assert found[:, -1].eq(L - 1).all()
    assert found[:, :-1].lt(L - 1).all()
    order = torch.tensor([2, 0, 3])
    other = {**batch, "sequence_id": batch["sequence_id"][order], "inputs": batch["inputs"][order]}
    assert torch.equal(model.timesteps(other), found[order])
    assert torch.equal(teacher(timesteps=6).timesteps(batch), found)
    assert not torch.equal(model.timesteps({**batch, "step": torch.tensor(3)}), found)
    reseeded = Teacher(MODEL, model.loss, VOCABULARY, SEED + 1)
    assert not torch.equal(reseeded.timesteps(batch), found)


def test_every_timestep_is_sampled_equally_often():
    model, batch = teacher(timesteps=4), make_batch()
    batch["sequence_id"] = torch.arange(30_000)
    batch["inputs"] = batch["inputs"][:1].expand(30_000, L)
    counts = torch.bincount(model.timesteps(batch)[:, :-1].flatten())
    assert (counts / 10_000 - 1).abs().max() < 0.05
    assert len(counts) == L - 1


@pytest.mark.parametrize("timesteps", [L, 2 * L])
def test_as_many_timesteps_as_there_are_come_once_each(timesteps):
    found = teacher(timesteps=timesteps).timesteps(make_batch())
    assert torch.equal(found, torch.arange(L).expand(B, L))


@pytest.mark.parametrize(
    ("encoder", "positions", "dense", "S", "group"),
    [
        ("causal", False, True, 3, B),
        ("causal", True, True, 3, B),
        ("causal", False, False, 3, B),
        ("causal", False, False, L, B),
        ("bidirectional", False, False, 3, B),
        ("causal", False, True, 3, 2),
        ("causal", False, False, 3, 2),
    ],
)
def test_teacher_equals_a_loop_over_timesteps(encoder, positions, dense, S, group):
    changes = {"encoder": encoder, "positions": positions, "dense": dense, "timesteps": S}
    model = teacher(**changes, group=group).requires_grad_(False)
    batch = make_batch()
    timesteps, inputs, targets = model.timesteps(batch), batch["inputs"], batch["targets"]
    memory = model.encoder(inputs)
    empty = torch.zeros(1, K, D)
    dec, dyn, every, decoded = [], [], [], []
    for b in range(B):
        dyn.append(model.cell(empty, inputs[b, :1]) - memory[b, :1])
        for t in timesteps[b].tolist():
            last = min(t + LOSS.horizon, L)
            following = inputs[b : b + 1, t + 1 : last]
            logits = model.decoder(memory[b : b + 1, t], following, torch.tensor([t]))[0]
            future = targets[b, t:last].tolist()
            dec += [nats(row, y) for row, y in zip(logits, future, strict=True) if y != -100]
            decoded.append(memory[b, t])
            if t != L - 1:
                after = model.cell(memory[b : b + 1, t], inputs[b, t + 1 : t + 2])
                dyn.append(after - memory[b, t + 1 : t + 2])
        readouts = model.decoder(memory[b])[:, 0]
        every += [nats(readouts[t], targets[b, t]) for t in range(L) if targets[b, t] != -100]
    pairs = torch.arange(4 * PAIRS).view(4, PAIRS)
    compared = memory if dense else torch.stack(decoded).view(B, -1, K, D)
    apart = []
    for first in range(0, B, group):
        draws = hashed(SEED, batch["step"], batch["sequence_id"][first], pairs)
        apart.append(uniformity(compared[first : first + group].flatten(0, 1), draws))
    expected = {
        "loss/dec": torch.stack(dec).mean(),
        "loss/dyn": torch.cat(dyn).square().mean(),
        "loss/unif": torch.stack(apart).mean(),
    }
    total = expected["loss/dec"] + 0.7 * expected["loss/dyn"] + 0.3 * expected["loss/unif"]
    if dense:
        expected["loss/dense"] = torch.stack(every).mean()
        total = total + expected["loss/dense"]
    expected["loss"] = total
    found = model(batch)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


def test_sequences_shorter_than_the_horizon_are_decoded_to_their_end():
    batch = make_batch()
    torch.manual_seed(SEED)
    expected = teacher(horizon=L)(batch)
    torch.manual_seed(SEED)
    longer = teacher(horizon=3 * L)
    found = longer(batch)
    assert longer.horizon(batch["inputs"], longer.timesteps(batch)).shape == (B, 3, L)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_whitened_dynamics_are_relative_to_what_varies_in_a_slot_or_in_each_of_its_directions():
    plain = teacher(timesteps=6)
    slots, directions = (
        teacher(timesteps=6, whiten_dynamics=kind) for kind in ("slots", "directions")
    )
    batch = make_batch()
    before, label = [], []
    memory, timesteps = plain.encoder(batch["inputs"]), plain.timesteps(batch)[:, :-1]
    tokens = []
    for b in range(B):
        for t in [-1, *timesteps[b].tolist()]:
            before.append(memory[b, t] if t >= 0 else torch.zeros(K, D))
            label.append(memory[b, t + 1])
            tokens.append(batch["inputs"][b, t + 1])
    error = plain.cell(torch.stack(before), torch.stack(tokens)) - torch.stack(label)
    spread = torch.stack(label).view(B, -1, K, D).var(0).mean((0, -1))
    expected = (error.square().mean((0, 2)) / (spread + VARIANCE_FLOOR)).mean()
    torch.testing.assert_close(slots(batch)["loss/dyn"], expected, atol=1e-5, rtol=1e-5)
    squares = []
    for slot in range(K):
        columns = memory[:, :, slot].flatten(0, 1)
        covariance = torch.cov(columns.T, correction=0) + COVARIANCE_FLOOR * torch.eye(D)
        squares.append((error[:, slot] @ covariance.inverse() * error[:, slot]).mean())
    found = directions(batch)["loss/dyn"]
    torch.testing.assert_close(found, torch.stack(squares).mean(), atol=1e-4, rtol=1e-4)
    assert not torch.isclose(plain(batch)["loss/dyn"], expected, rtol=0.01)


def test_dense_dynamics_are_those_of_the_transition_on_the_same_memories():
    model, transition = teacher(dense_dynamics=True), Transition(MODEL, VOCABULARY)
    transition.cell.load_state_dict(model.cell.state_dict())
    batch = make_batch()
    with torch.no_grad():
        labelled = {**batch, "memory": model.encoder(batch["inputs"])}
        expected = transition(labelled)["loss"]
        torch.testing.assert_close(model(batch)["loss/dyn"], expected, atol=1e-5, rtol=1e-5)


def test_dynamics_reach_the_encoder_through_sequences_that_are_decoded_well_and_the_cell_always():
    batch = make_batch()

    def gradients(model, row):
        model.zero_grad()
        sequence = {name: batch[name][[row]] for name in ("sequence_id", "inputs", "targets")}
        found = model({**batch, **sequence})
        found["loss/dyn"].backward()
        return found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole = teacher(dense=False)
    nats = torch.stack([gradients(whole, row)[0]["loss/dec"] for row in range(B)]).detach()
    below = float(nats.median()) + 0.01
    shares = (1 - nats / below).clamp(min=0)
    assert 0 < (shares > 0).sum() < B
    gated = teacher(dense=False, dynamics_below=below)
    for row, share in enumerate(shares):
        (found, own), (expected, full) = gradients(gated, row), gradients(whole, row)
        assert torch.equal(found["loss"], expected["loss"])
        assert set(own) == set(full)
        for name, gradient in full.items():
            factor = share if name.startswith("encoder") else 1.0
            torch.testing.assert_close(own[name], factor * gradient)


def test_dynamics_that_wait_train_in_bfloat16_too():
    model = teacher(dynamics_below=2.0).bfloat16()
    model(make_batch())["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_transition_equals_a_loop_over_pairs():
    model = random_weights(Transition(MODEL, VOCABULARY)).requires_grad_(False)
    batch = make_batch()
    batch["memory"] = batch["memory"].bfloat16()
    errors = []
    for b in range(B):
        before = torch.zeros(1, K, D)
        for t in range(L):
            label = batch["memory"][b, t : t + 1].float()
            errors.append(model.cell(before, batch["inputs"][b, t : t + 1]) - label)
            before = label
    found = model(batch)
    torch.testing.assert_close(found["loss"], torch.cat(errors).square().mean())
    assert torch.equal(found["loss"], found["loss/dyn"])


def test_dmt_equals_a_loop_over_states():
    model, batch = dmt(dynamics=10.0, readout=0.5).requires_grad_(False), make_batch()
    errors, own, label = [], [], []
    carry = torch.zeros(B, L, K, D)
    for b in range(B):
        for t in range(L):
            state, token = batch["state"][b, t : t + 1], batch["inputs"][b, t : t + 1]
            after, target = model.rnn.cell(state, token), int(batch["targets"][b, t])
            errors.append(after - batch["memory"][b, t : t + 1])
            if t < L - 1:
                carry[b, t + 1] = after[0]
            if target != -100:
                own.append(nats(model.rnn.readout(after)[0, 0], target))
                stored = batch["memory"][b, t : t + 1]
                label.append(nats(model.teacher_readout(stored)[0, 0], target))
    found = model(batch)
    dyn, readout, teacher_readout = (
        torch.cat(errors).square().mean(),
        torch.stack(own).mean(),
        torch.stack(label).mean(),
    )
    torch.testing.assert_close(found["loss/dyn"], dyn, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["loss/readout"], readout, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["loss/teacher_readout"], teacher_readout, atol=1e-5, rtol=1e-5)
    loss = 10 * dyn + 0.5 * (readout + teacher_readout)
    torch.testing.assert_close(found["loss"], loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["carry"], carry, atol=1e-5, rtol=1e-5)
    assert not found["carry"].requires_grad


def test_the_readout_does_not_train_the_cell():
    model = dmt()
    found = model(make_batch())
    (found["loss/readout"] + found["loss/teacher_readout"]).backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in model.rnn.cell.parameters())
    for module in (model.rnn.readout, model.teacher_readout):
        assert any(p.grad is not None and p.grad.ne(0).any() for p in module.parameters())


def test_dmt_is_validated_on_its_own_rollout():
    model, batch = dmt().requires_grad_(False), make_batch()
    memory = model.rnn.rollout(batch["inputs"])
    logits = torch.stack([model.rnn.logits(m) for m in memory.unbind(1)], dim=1)
    expected = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    found = model.validate(batch)
    torch.testing.assert_close(found["loss"], expected)
    error = (memory - batch["memory"]).square().mean()
    torch.testing.assert_close(found["loss/dyn"], error)


TEACHERS: dict[str, dict[str, Any]] = {
    "teacher": {},
    "teacher, sparse": {"dense": False},
    "teacher, dense dynamics": {"dense_dynamics": True},
    "teacher, dynamics that wait": {"dynamics_below": 20.0},
    "teacher, slots": {"whiten_dynamics": "slots"},
    "teacher, slots at all timesteps": {"whiten_dynamics": "slots", "dense_dynamics": True},
    "teacher, slots, sparse": {"whiten_dynamics": "slots", "dense": False},
    "teacher, directions": {"whiten_dynamics": "directions"},
    "teacher, directions, sparse": {"whiten_dynamics": "directions", "dense": False},
}
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "transition": lambda: random_weights(Transition(MODEL, VOCABULARY)),
    "dmt": dmt,
    **{name: partial(teacher, **changes) for name, changes in TEACHERS.items()},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_mean_over_micro_batches_is_that_of_the_whole(name):
    """A teacher's micro-batch has whole groups: what it compares does not depend on the cut."""
    model, batch = OBJECTIVES[name](), make_batch(rows=2 * B)
    whole = model(batch)
    whole["loss"].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    micros = [
        {name: value[n : n + B] if value.dim() else value for name, value in batch.items()}
        for n in (0, B)
    ]
    counts = [model.counts(micro) for micro in micros]
    if not isinstance(model, Transition):
        assert not torch.equal(*counts)
    results = [model({**m, "counts": torch.stack(counts).mean(0)}) for m in micros]
    for name in whole.keys() - {"carry"}:
        mean = torch.stack([result[name] for result in results]).mean(0)
        torch.testing.assert_close(mean, whole[name], atol=1e-5, rtol=1e-5)
    torch.stack([result["loss"] for result in results]).mean().backward()
    assert expected
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["teacher", "dmt", "bptt"])
def test_the_readout_sees_the_positions_that_are_asked_alone(name):
    """Each row has as many, those of a row with fewer targets without one."""
    whole = make_batch()
    whole["targets"][:, ::2] = -100
    some = {**whole, "asked": asked(whole["targets"], L // 2)}
    rows = zip(some["asked"], whole["targets"], strict=True)
    assert all(
        set((row != -100).nonzero().flatten().tolist()) <= set(at.tolist()) for at, row in rows
    )
    model = {"dmt": dmt, "teacher": teacher, "bptt": bptt}[name]()
    readout = model.decoder if name == "teacher" else model.rnn.readout
    for batch, seen in ((whole, B * L), (some, B * L // 2)):
        with output_sizes(readout) as sizes:
            result = model(batch)
        assert sizes[-1] == seen * VOCABULARY
        torch.testing.assert_close(result["loss"], model(whole)["loss"])


@pytest.mark.parametrize("changes", TEACHERS.values(), ids=TEACHERS)
def test_sequences_of_different_groups_are_not_compared(changes):
    batch = make_batch(rows=2 * B)
    other = {**batch, "inputs": batch["inputs"].clone()}
    other["inputs"][B:] = (other["inputs"][B:] + 3) % VOCABULARY

    def pull(group, batch):
        """Return the gradient of the memories of the first B sequences."""
        model, memories = teacher(**changes, group=group), []
        model.encoder.register_forward_hook(lambda *call: memories.append(call[2]))
        loss = model(batch)["loss"]
        return torch.autograd.grad(loss, memories)[0][:B]

    torch.testing.assert_close(pull(B, batch), pull(B, other))
    assert not torch.allclose(pull(2 * B, batch), pull(2 * B, other), rtol=1e-4, atol=1e-8)
