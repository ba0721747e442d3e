"""BPTT against hand-written loops, its truncation, and sequences without any target."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.memory import RowsOf
from smt_ray.config import UnrollConfig
from smt_ray.data.reader import Stream
from smt_ray.data.windows import Windows
from smt_ray.objectives.bptt import Bptt
from tests.samples import MODEL, VOCABULARY, gradients, random_weights

B, L = 3, 9


def bptt(**changes):
    return random_weights(Bptt(MODEL, UnrollConfig(**changes), VOCABULARY))


def make_batch(valid=0.5):
    tokens = torch.randint(VOCABULARY, (B, L))
    targets = torch.randint(VOCABULARY, (B, L)).masked_fill(torch.rand(B, L) > valid, -100)
    return {"inputs": tokens, "targets": targets}


def loop(model, batch, span):
    """Return the loss of a loop over sequences and timesteps that cuts the state every `span`."""
    nats = []
    for tokens, targets in zip(batch["inputs"], batch["targets"], strict=True):
        memory = torch.zeros_like(model.rnn.cell.slot)[None]
        for t in range(L):
            memory = memory.detach() if t % span == 0 else memory
            memory = model.rnn.cell(memory, tokens[t : t + 1])
            if targets[t] != -100:
                logits = model.rnn.readout(memory)[:, 0].float()
                nats.append(F.cross_entropy(logits, targets[t : t + 1]))
    return torch.stack(nats).mean()


@pytest.mark.parametrize(("mode", "span", "cut"), [("full", 2, L), ("truncated", 4, 4)])
def test_loss_and_gradient_are_those_of_a_loop(mode, span, cut):
    model, batch = bptt(mode=mode, span=span).double(), make_batch()  # float32 has few digits left
    found, expected = model(batch)["loss"], loop(model, batch, cut)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    own, others = gradients(model, found), gradients(model, expected)
    assert set(own) == set(others)
    for name, value in others.items():
        assert value.abs().max() > 0 or "embed" in name, name
        torch.testing.assert_close(own[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("span", [L, 2 * L])
def test_a_span_of_the_whole_sequence_truncates_nothing(span):
    model, batch = bptt(), make_batch()
    cut = bptt(mode="truncated", span=span)
    full, truncated = (gradients(m, m(batch)["loss"]) for m in (model, cut))
    assert all(torch.equal(full[name], truncated[name]) for name in full)


def test_a_span_of_one_cuts_every_step_and_changes_no_loss():
    model, batch = bptt(mode="truncated", span=1), make_batch()
    batch["targets"][:, :-1] = -100  # a late target alone
    batch["targets"][:, -1] = 3
    memory = model.unroll(batch["inputs"])
    first = batch["inputs"][:, 0]
    reaching = torch.autograd.grad(memory[:, -1].sum(), model.rnn.cell.embed.weight)[0]
    only_last = set(batch["inputs"][:, -1].tolist())
    moved = set(reaching.abs().sum(1).nonzero().flatten().tolist())
    assert moved == only_last
    assert not set(first.tolist()) <= only_last
    full = bptt()
    torch.testing.assert_close(model(batch)["loss"], full(batch)["loss"])
    assert torch.equal(memory, full.unroll(batch["inputs"]))


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    model, batch = bptt(), make_batch(valid=0.0)
    loss = model(batch)["loss"]
    found = gradients(model, loss)
    assert loss == 0
    assert {name.split(".")[1] for name in found} == {"cell", "readout"}  # in every backward
    assert all(value.eq(0).all() for value in found.values())


def test_the_mean_over_micro_batches_is_that_of_the_whole():
    model, batch = bptt(), make_batch()
    batch["targets"][1:] = -100
    batch["targets"][2, 3] = 1
    micros = [{name: value[n : n + 1] for name, value in batch.items()} for n in range(B)]
    counts = torch.stack([model.counts(micro) for micro in micros]).mean(0)
    losses = [model({**micro, "counts": counts})["loss"] for micro in micros]
    torch.testing.assert_close(torch.stack(losses).mean(), model(batch)["loss"])


def test_a_mean_count_below_one_is_divided_by():
    model, batch = bptt(), make_batch(valid=0.0)
    batch["targets"][0, 4] = 2
    micros = [{name: value[n : n + 1] for name, value in batch.items()} for n in range(B)]
    counts = torch.stack([model.counts(micro) for micro in micros]).mean(0)
    losses = [model({**micro, "counts": counts})["loss"] for micro in micros]
    torch.testing.assert_close(torch.stack(losses).mean(), model(batch)["loss"])


class Again(Stream):
    """The same batch again and again."""

    def __init__(self, batch):
        self.again = {**batch, "sequence_id": torch.arange(1, B + 1)}

    def batch(self, step):
        return {name: value.clone() for name, value in self.again.items()}


def test_parallel_becomes_truncated_after_as_many_visits_as_a_sequence_has_parts():
    span = 4
    parallel, batch = bptt(mode="parallel", span=span), make_batch()
    truncated = bptt(mode="truncated", span=span)
    windows = Windows(
        RowsOf(Again(batch)), factor=1, visits=1e12, depth=span, seed=0, length=L,
        shape=(MODEL.memory_tokens, MODEL.width),
    )  # fmt: skip
    expected = truncated.unroll(batch["inputs"])
    for visit in range(2):
        visited = windows.batch(visit)
        own, exact = parallel.memories(visited), (visit + 1) * span
        torch.testing.assert_close(own[:, :exact], expected[:, :exact])
        assert (own - expected)[:, exact].abs().max() > 0.1
        windows.carry(visit, parallel(visited)["carry"])
    found, loss = parallel(windows.batch(2)), truncated(batch)["loss"]
    torch.testing.assert_close(found["loss"], loss)
    torch.testing.assert_close(gradients(parallel, found["loss"]), gradients(truncated, loss))
    windows.carry(2, found["carry"])
    assert windows.probe()["age"].eq(0).all(), "replaced at the age of L"


def test_validation_is_a_rollout_in_each_mode():
    batch = make_batch()
    found = [bptt(mode=m, span=3).validate(batch)["loss"] for m in ("full", "parallel")]
    torch.testing.assert_close(found[0], loop(bptt(), batch, L), atol=1e-5, rtol=1e-5)
    assert found[0] == found[1]
