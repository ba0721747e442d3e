"""Windows in flight: states against an explicit loop, turns, retirement, resumption."""

import itertools

import numpy as np
import pytest
import torch

from benchmarks.memory import RowsOf
from smt_ray.data.order import share
from smt_ray.data.reader import Stream
from smt_ray.data.windows import Windows
from smt_ray.model.cells import build_cell
from smt_ray.objectives.objective import apply_cell, previous
from tests.samples import MODEL, VOCABULARY, random_weights

B, L, FACTOR = 4, 6, 3
K, D = MODEL.memory_tokens, MODEL.width


class Labels(Stream):
    """Label rows made from their ids: global batch n holds rows n * size.. , each rank a share."""

    def __init__(self, size=B, length=L, shape=(K, D), start=0, rank=0, world=1):
        self.size, self.length, self.shape, self.start = size, length, shape, start
        self.columns = np.arange(size)[share(size, rank, world)]

    def made(self, number):
        random = torch.Generator().manual_seed(number)
        return {
            "sequence_id": torch.tensor(number),
            "inputs": torch.randint(VOCABULARY, (self.length,), generator=random),
            "memory": torch.randn(self.length, *self.shape, generator=random),
        }

    def batch(self, step):
        made = [self.made(self.start + step * self.size + n) for n in self.columns.tolist()]
        return {name: torch.stack([row[name] for row in made]) for name in made[0]}


CELL = random_weights(build_cell(MODEL, VOCABULARY)).requires_grad_(False)


def rows_of(labels):
    """Return the rows of labels, in the columns of the global batch that they are of."""
    rows = RowsOf(labels)
    rows.columns = labels.columns
    return rows


def pool(fresh, visits=3.0, saved=None, step=0):
    own = {"visits": visits, "depth": 1, "seed": 0, "length": L}
    return Windows(rows_of(fresh), factor=FACTOR, **own, saved=saved, step=step)


def visit(windows, step):
    """Visit the windows of a step with a frozen cell; return them as they were before."""
    batch = {name: value.clone() for name, value in windows.batch(step).items()}
    windows.carry(step, previous(apply_cell(CELL, batch["state"], batch["inputs"])))
    return batch


def test_a_state_of_age_a_is_an_a_step_rollout_from_a_label():
    windows = pool(Labels(), visits=4.0)
    ages = set()
    for step in range(40):
        batch = visit(windows, step)
        for row in range(B):
            age, inputs, memory = (batch[name][row] for name in ("age", "inputs", "memory"))
            ages.add(int(age))
            for t in range(L):
                start = t - int(age)  # the label one step earlier, or the empty memory
                state = memory[start - 1] if start > 0 else torch.zeros(K, D)
                for token in inputs[max(start, 0) : t]:
                    state = CELL(state[None], token[None])[0]
                torch.testing.assert_close(batch["state"][row, t], state, atol=1e-5, rtol=1e-5)
    assert ages == set(range(L))


def test_windows_take_turns_and_each_column_has_fresh_ones_in_order():
    labels = Labels()
    windows = pool(labels)
    held = [list(range(turn * B, turn * B + B)) for turn in range(FACTOR)]
    fresh = [itertools.count(FACTOR * B + column, B) for column in range(B)]
    for step in range(60):
        turn, before = step % FACTOR, windows.schedule.age.copy()
        batch = visit(windows, step)
        assert batch["sequence_id"].tolist() == held[turn]
        assert batch["age"].tolist() == before[turn].tolist()
        for row in range(B):
            place = turn, row
            if windows.schedule.age[place] == 0:
                held[turn][row] = next(fresh[row])
                new = labels.made(held[turn][row])
                assert torch.equal(windows.pool["inputs"][place], new["inputs"])
                assert torch.equal(windows.pool["state"][place], previous(new["memory"][None])[0])
            else:
                assert windows.schedule.age[place] == int(batch["age"][row]) + 1
    assert windows.state()["taken"].tolist() == [[next(column) // B for column in fresh]]


@pytest.mark.parametrize("visits", [2.0, 12.0])
def test_a_visit_is_the_last_by_a_chance_of_one_in_visits(visits):
    labels = Labels(size=64, length=200, shape=(1, 1))
    own = {"visits": visits, "depth": 1, "seed": 0, "length": 200}
    windows = Windows(rows_of(labels), factor=2, **own)
    state, taken = torch.zeros(64, 200, 1, 1), windows.state()["taken"].sum().item()
    for step in range(200):
        windows.carry(step, state)
    retired, trials, chance = windows.state()["taken"].sum().item() - taken, 200 * 64, 1 / visits
    assert abs(retired - trials * chance) < 4 * (trials * chance * (1 - chance)) ** 0.5


def test_a_window_retires_at_age_L():
    windows = pool(Labels(start=1), visits=1e12)
    for step in range(3 * L * FACTOR):
        batch = visit(windows, step)
        assert batch["age"].eq(step // FACTOR % L).all()
    assert windows.state()["taken"].tolist() == [[(3 + 1) * FACTOR] * B]


def test_a_probe_shows_the_same_windows_whenever_it_is_asked():
    windows = pool(Labels(start=1), visits=1e12)
    for step in range(2):
        visit(windows, step)
    probed = windows.probe()
    assert probed["sequence_id"].tolist() == [*range(1, B + 1)]
    assert probed["age"].eq(1).all()
    assert equal(probed, windows.batch(FACTOR))


def equal(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_a_saved_state_goes_on_as_if_nothing_happened():
    windows = pool(Labels())
    for step in range(17):
        visit(windows, step)
    saved = {name: value.clone() for name, value in windows.state().items()}
    assert saved.keys() == {"held", "age", "taken", "state"}, "tokens and labels are read again"
    again = pool(Labels(), saved=saved, step=17)
    for step in range(17, 50):
        assert equal(visit(windows, step), visit(again, step))
    assert equal(windows.state(), again.state())


def joined(ranks, step):
    """Visit the windows of a step on all ranks; return the global batch."""
    parts = [visit(windows, step) for windows in ranks]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 4), (1, 3), (3, 2)])
def test_another_number_of_ranks_goes_on_with_the_same_windows_in_the_same_order(before, after):
    def ranks(world, saved=None, step=0):
        return [
            pool(Labels(rank=r, world=world), saved=of_rank(saved, r, world), step=step)
            for r in range(world)
        ]

    def of_rank(saved, rank, world):
        if saved is None:
            return None
        return {name: value[:, share(B, rank, world)] for name, value in saved.items()}

    alone, together = ranks(1), ranks(before)
    for step in range(17):
        assert equal(joined(together, step), joined(alone, step))
    states = [windows.state() for windows in together]
    saved = {name: torch.cat([state[name] for state in states], 1) for name in states[0]}
    together = ranks(after, saved, 17)
    for step in range(17, 60):
        assert equal(joined(together, step), joined(alone, step))
    taken = torch.cat([windows.state()["taken"] for windows in together], 1)
    assert torch.equal(taken, alone[0].state()["taken"])
