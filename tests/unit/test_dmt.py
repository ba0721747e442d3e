"""The modes of DMT against step-by-step loops, and the figures about its own states."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.memory import RowsOf
from smt_ray.config import DmtConfig, UnrollConfig
from smt_ray.data.reader import Stream
from smt_ray.data.windows import Windows
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.objective import apply_cell, previous
from smt_ray.objectives.transition import Transition
from tests.samples import MODEL, VOCABULARY, gradients, random_weights

B, L = 4, 11
K, D = MODEL.memory_tokens, MODEL.width


def dmt(*, readout=1.0, **changes):
    return random_weights(Dmt(MODEL, DmtConfig(**changes), VOCABULARY, readout))


def make_batch():
    memory = F.normalize(torch.randn(B, L, K, D), dim=-1) * D**0.5
    targets = torch.randint(VOCABULARY, (B, L)).masked_fill(torch.rand(B, L) < 0.6, -100)
    inputs = torch.randint(VOCABULARY, (B, L))
    ids = torch.arange(1, B + 1)
    return {"sequence_id": ids, "inputs": inputs, "targets": targets, "memory": memory.bfloat16()}


def mean_nats(readout, memories, targets):
    nats = [
        F.cross_entropy(readout(memories[b, t][None])[:, 0], targets[b, t][None])
        for b in range(B)
        for t in range(L)
        if targets[b, t] != -100
    ]
    return torch.stack(nats).mean()


def test_sequential_has_the_gradient_of_the_loop_that_detaches_every_step():
    model, batch = dmt(mode="sequential", readout=0.5), make_batch()
    label = batch["memory"].float()
    memory, memories, errors = torch.zeros(B, K, D), [], []
    for t in range(L):
        memory = model.rnn.cell(memory.detach(), batch["inputs"][:, t])
        errors.append((memory - label[:, t]).square().mean())
        memories.append(memory.detach())
    own = torch.stack(memories, 1)
    nats = mean_nats(model.rnn.readout, own, batch["targets"])
    nats = nats + mean_nats(model.teacher_readout, label, batch["targets"])
    expected = 10 * torch.stack(errors).mean() + 0.5 * nats
    found = model(batch)
    assert "carry" not in found
    torch.testing.assert_close(found["loss"], expected, atol=1e-5, rtol=1e-5)
    others = gradients(model, expected)
    for name, value in gradients(model, found["loss"]).items():
        torch.testing.assert_close(value, others.pop(name), atol=1e-4, rtol=1e-4)
    assert not others


def test_a_depth_of_L_is_the_sequential_mode():
    batch = make_batch()
    deep, sequential = dmt(depth=L), dmt(mode="sequential")
    found = deep({**batch, "state": previous(batch["memory"])})
    expected = sequential(batch)
    torch.testing.assert_close(found.pop("carry"), previous(deep.rnn.rollout(batch["inputs"])))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_visit_rolls_on_for_depth_timesteps_from_every_state_kept(depth):
    model = dmt(depth=depth).requires_grad_(False)
    batch = make_batch()
    exact = {**batch, "memory": batch["memory"].float()}
    windows = Windows(RowsOf(Repeated(exact)), factor=1, visits=1e12, depth=depth, seed=0, length=L)
    for step in range(2):
        found = model(windows.batch(step))
        states = []
        for t in range(L):  # from the label as many timesteps back as all visits have rolled
            start = max(t // depth - step, 0) * depth
            memory = exact["memory"][:, start - 1] if start else torch.zeros(B, K, D)
            for token in batch["inputs"][:, start:t].T:
                memory = model.rnn.cell(memory, token)
            states.append(memory)
        predicted = apply_cell(model.rnn.cell, torch.stack(states, 1), batch["inputs"])
        dyn = (predicted - exact["memory"]).square().mean()
        torch.testing.assert_close(found["loss/dyn"], dyn, atol=1e-5, rtol=1e-4)
        windows.carry(step, found["carry"])
        assert windows.probe()["age"].eq((step + 1) * depth).all()
    probed = model.probe(windows.probe())
    assert ratio(probed["drift/staleness"]) < 1e-9


@pytest.mark.parametrize("mode", ["parallel", "sequential", "one_step"])
@pytest.mark.parametrize("depth", [1, 4, L, 2 * L])
def test_unrolled_the_gradient_of_both_losses_runs_through_each_part_alone(mode, depth):
    model, batch = dmt(mode=mode, depth=depth, unroll=True), make_batch()
    batch["state"] = torch.randn(B, L, K, D)
    label = batch["memory"].float()
    memory, memories = torch.zeros(B, K, D), []
    for t in range(L):
        if t % depth == 0:
            starts = {"parallel": batch["state"], "one_step": previous(label)}
            memory = starts[mode][:, t] if mode in starts else memory.detach()
        memory = model.rnn.cell(memory, batch["inputs"][:, t])
        memories.append(memory)
    own = torch.stack(memories, 1)
    nats = mean_nats(model.rnn.readout, own, batch["targets"])
    nats = nats + mean_nats(model.teacher_readout, label, batch["targets"])
    expected = 10 * (own - label).square().mean() + nats
    found = model(batch)
    torch.testing.assert_close(found["loss"], expected, atol=1e-5, rtol=1e-5)
    if mode == "parallel":
        assert not found["carry"].requires_grad
        torch.testing.assert_close(found["carry"], previous(own.detach()))
    others = gradients(model, expected)
    for name, value in gradients(model, found["loss"]).items():
        torch.testing.assert_close(value, others.pop(name), atol=1e-4, rtol=1e-3)
    assert not others


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 4.0), (0.25, 2.0), (0.5, 0.0), (0.9, 0.0)])
def test_the_weight_of_the_labels_fades_over_a_share_of_the_steps(progress, weight):
    model = dmt(mode="sequential", unroll=True, dynamics=4.0, fade=0.5)
    found = model({**make_batch(), "progress": torch.tensor(progress)})
    readouts = found["loss/readout"] + found["loss/teacher_readout"]
    torch.testing.assert_close(found["loss"], weight * found["loss/dyn"] + readouts)


@pytest.mark.parametrize("fade", [-0.1, 1.1])
def test_a_fade_is_a_share(fade):
    with pytest.raises(ValueError, match=rf"dmt.fade={fade}: must be in \[0, 1\]"):
        DmtConfig(fade=fade, unroll=True)


@pytest.mark.parametrize(("field", "value"), [("fade", 0.5), ("dynamics", 0.0)])
def test_a_cell_without_any_gradient_is_refused(field, value):
    DmtConfig(unroll=True, **{field: value})
    with pytest.raises(ValueError, match=rf"dmt.{field}={value}: .* dmt.unroll"):
        DmtConfig(**{field: value})


def test_unrolled_as_a_whole_without_labels_it_is_bptt():
    model, batch = dmt(mode="sequential", depth=L, unroll=True, dynamics=0.0), make_batch()
    bptt = Bptt(MODEL, UnrollConfig(), VOCABULARY)
    bptt.rnn = model.rnn
    expected, found = bptt(batch)["loss"], model(batch)["loss/readout"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(model.rnn, found), gradients(model.rnn, expected))


def test_one_step_is_the_transition_loss_and_the_readouts_of_its_predictions():
    model, batch = dmt(mode="one_step"), make_batch()
    transition = Transition(MODEL, VOCABULARY)
    transition.cell = model.rnn.cell
    label = batch["memory"].float()
    predicted = apply_cell(model.rnn.cell, previous(label), batch["inputs"])
    nats = mean_nats(model.rnn.readout, predicted, batch["targets"])
    nats = nats + mean_nats(model.teacher_readout, label, batch["targets"])
    found = model(batch)
    assert "carry" not in found
    torch.testing.assert_close(found["loss/dyn"], transition(batch)["loss"])
    expected = 10 * transition(batch)["loss"] + nats
    torch.testing.assert_close(found["loss"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["parallel", "sequential", "one_step"])
def test_readouts_without_a_target_have_no_loss_but_take_part(mode):
    model, batch = dmt(mode=mode), make_batch()
    batch["targets"].fill_(-100)
    found = model({**batch, "state": previous(batch["memory"])})
    assert found["loss/readout"] == found["loss/teacher_readout"] == 0
    moved = gradients(model, found["loss"])
    assert {name.split(".")[0] for name in moved} == {"rnn", "teacher_readout"}
    assert all(v.eq(0).all() for name, v in moved.items() if "readout" in name)


def variances(memory):
    """Return the variance of the labels over sequences by timestep, summed over (K, D)."""
    return torch.stack([memory[:, t].float().var(0).sum() for t in range(L)])


def ratio(pair):
    return float(pair[0] / pair[1])


def test_rollout_drift_is_nmse_against_the_labels():
    model, batch = dmt().requires_grad_(False), make_batch()
    own = model.rnn.rollout(batch["inputs"])
    error = (own - batch["memory"].float()).square().sum()
    expected = float(error / (B * variances(batch["memory"]).sum()))
    assert ratio(model.validate(batch)["drift/rollout"]) == pytest.approx(expected, rel=1e-5)


def test_states_in_flight_are_compared_by_their_age():
    model, batch = dmt().requires_grad_(False), make_batch()
    batch["state"] = torch.randn(B, L, K, D)
    batch["age"] = torch.tensor([0, 1, 3, 10])
    found = model.probe(batch)
    ages = {1: (1, 1), 2: (2, 3), 4: (4, 7), 8: (8, 15)}
    variance = variances(batch["memory"])
    assert set(found) == {"drift/staleness", *(f"drift/age_{a:03d}" for a in ages)}
    for least, (first, last) in ages.items():
        error = spread = 0.0
        for b, age in enumerate(batch["age"].tolist()):
            for t in range(1, L):
                if first <= min(age, t) <= last:
                    label = batch["memory"][b, t - 1].float()
                    error += float((batch["state"][b, t] - label).square().sum())
                    spread += float(variance[t - 1])
        assert ratio(found[f"drift/age_{least:03d}"]) == pytest.approx(error / spread, rel=1e-4)


class Repeated(Stream):
    """The same label batch again and again."""

    def __init__(self, batch):
        self.repeated = batch

    def batch(self, step):
        return {name: value.clone() for name, value in self.repeated.items()}


def test_windows_are_stale_by_the_change_of_the_weights_alone():
    model = dmt().requires_grad_(False)
    batch = make_batch()
    exact = {**batch, "memory": batch["memory"].float()}
    windows = Windows(RowsOf(Repeated(exact)), factor=2, visits=1e12, depth=1, seed=0, length=L)
    assert model.probe(windows.probe())["drift/staleness"].tolist() == [0, 0]  # nothing to compare
    for step in range(8):
        windows.carry(step, model(windows.batch(step))["carry"])
    assert windows.probe()["age"].eq(4).all()
    fresh, aged = (
        model.probe(windows.probe())[f"drift/{name}"] for name in ("staleness", "age_004")
    )
    assert fresh[1] > 0
    assert ratio(fresh) < 1e-9
    assert ratio(aged) > 0.1
    random_weights(model.rnn.cell, seed=1)
    probed = windows.probe()
    stale = model.probe(probed)["drift/staleness"]
    now = previous(model.rnn.rollout(probed["inputs"]))
    error = (probed["state"].float() - now)[:, 1:5].square().sum()
    assert float(stale[0]) == pytest.approx(float(error), rel=1e-4)
    assert ratio(stale) > 0.1


def test_one_sequence_has_no_variance_and_so_no_nmse():
    model = dmt().requires_grad_(False)
    batch = {name: value[:1] for name, value in make_batch().items()}
    assert model.validate(batch)["drift/rollout"][1] == 0
