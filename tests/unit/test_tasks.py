"""Every task's answers against a plain reference, row by row."""

from dataclasses import replace

import pytest
import torch

from smt_ray.config import TaskConfig
from smt_ray.objectives.objective import IGNORED
from smt_ray.tasks import MARKER, TASKS
from smt_ray.tasks.compute import COEFFICIENTS, DEPTH, MODULUS
from smt_ray.tasks.task import draw_distinct

CONFIG = TaskConfig(symbols=6, pairs=3)
ROWS = 200


def retrieval(inputs):
    """Return the symbol after the first marker, asked for by the last."""
    return [IGNORED] * (len(inputs) - 1) + [inputs[inputs.index(MARKER) + 1]]


def copy(inputs):
    """Return the string before the marker in reverse."""
    half = len(inputs) // 2
    skipped = len(inputs) % 2
    string = inputs[skipped : skipped + half]
    assert inputs[-half:] == [MARKER, *string[:0:-1]]
    return [IGNORED] * (skipped + half) + string[::-1]


def stack(inputs):
    """Run a list as the stack."""
    held: list[int] = []
    answers = []
    for symbol in inputs:
        answers.append(held.pop() if symbol == MARKER else IGNORED)
        held += [symbol] if symbol != MARKER else []
        assert len(held) <= DEPTH
    return answers


def keysvalues(inputs):
    """Look the keys up in a dictionary of the pairs."""
    n = CONFIG.pairs
    w = len(inputs) // (4 * n)
    start = len(inputs) - 4 * n * w
    strings = [tuple(inputs[i : i + w]) for i in range(start, start + 2 * n * w, w)]
    assert len(set(strings[::2])) == len(set(strings[1::2])) == n
    pairs = dict(zip(strings[::2], strings[1::2], strict=True))
    answers = [IGNORED] * (start + 2 * n * w)
    for i in range(len(answers), len(inputs), 2 * w):
        assert inputs[i] == MARKER
        value = pairs[tuple(inputs[i + 1 : i + 1 + w])]
        assert tuple(inputs[i + 1 + w : i + 2 * w]) == value[:-1]
        answers += [IGNORED] * w + list(value)
    return answers


def modular(inputs):
    """Find w and b by trying all that fit the first two pairs."""
    d, v = COEFFICIENTS, MODULUS
    pairs = list(zip(inputs[::2], inputs[1::2], strict=False))
    fits = [
        (w, b)
        for w in range(d)
        for b in range(d)
        if all((w * x + b) % v == y for x, y in pairs[:2])
    ]
    ((w, b),) = fits
    assert all((w * x + b) % v == y for x, y in pairs)
    scored = range(4, len(inputs), 2)
    return [(w * x + b) % v if i in scored else IGNORED for i, x in enumerate(inputs)]


def parity(inputs):
    """Add up and look at the last bit."""
    return [sum(inputs[: i + 1]) % 2 for i in range(len(inputs))]


REFERENCES = [retrieval, copy, stack, keysvalues, modular, parity]


@pytest.mark.parametrize("length", [20, 33])
@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.__name__)
def test_answers_are_those_of_the_reference(reference, length):
    task = TASKS[reference.__name__]
    inputs, targets = task.generate(CONFIG, length, ROWS, seed=3)
    assert inputs.shape == targets.shape == (ROWS, length)
    assert inputs.min() >= 0
    assert inputs.max() < task.vocabulary(CONFIG)
    assert targets.tolist() == [reference(row) for row in inputs.tolist()]


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_decides(name):
    first, again, other = (TASKS[name].generate(CONFIG, 20, 8, seed=s) for s in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_needles_lie_anywhere_in_the_first_half():
    inputs, _ = TASKS["retrieval"].generate(CONFIG, 16, 2000, seed=0)
    places = (inputs == MARKER).int().argmax(1)
    assert places.unique().tolist() == list(range(7))


def test_states_are_needle_and_parity():
    inputs, targets = TASKS["retrieval"].generate(CONFIG, 16, 50, seed=0)
    state = TASKS["retrieval"].state(CONFIG, inputs, targets)
    assert torch.equal(state[:, -1], targets[:, -1])
    place = (inputs == MARKER).int().argmax(1)
    assert torch.equal((state == -1).sum(1), place + 1)
    inputs, targets = TASKS["parity"].generate(CONFIG, 16, 50, seed=0)
    assert torch.equal(TASKS["parity"].state(CONFIG, inputs, targets), targets)


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("retrieval", 3, "data.sequence-length=3: .* at least 4 inputs"),
        ("keysvalues", 11, "data.sequence-length=11: .* at least 12 inputs"),
        ("modular", 4, "data.sequence-length=4: .* at least 5 inputs"),
    ],
)
def test_a_length_without_sequences_is_refused(name, length, message):
    with pytest.raises(ValueError, match=message):
        TASKS[name].generate(CONFIG, length, 1, seed=0)


def test_too_few_symbols_for_the_keys_are_refused():
    config = TaskConfig(symbols=4, pairs=5)
    with pytest.raises(ValueError, match=r"data.task.pairs=5: data.task.symbols=4 make only 4"):
        TASKS["keysvalues"].generate(config, 20, 1, seed=0)


def test_only_training_has_sequences_of_fewer_pairs():
    config = replace(CONFIG, fewest_pairs=1)
    task, whole = TASKS["keysvalues"], TASKS["keysvalues"].generate(CONFIG, 24, 3000, seed=0)
    inputs, targets = task.generate(config, 24, 3000, seed=0, training=True)
    counts = torch.bincount((inputs[:, :12:4] == MARKER).sum(1))
    assert len(counts) == 3
    assert (counts - 1000).abs().max() < 4 * 26  # standard deviations
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        pairs = [row[i : i + 4] for i in range(0, 12, 4) if row[i] != MARKER]
        known = {tuple(pair[:2]): pair[2:] for pair in pairs}
        for query in (12, 16, 20):
            assert target[query + 2 : query + 4] == known[tuple(row[query + 1 : query + 3])]
    held_out = task.generate(config, 24, 3000, seed=0)
    assert all(torch.equal(*pair) for pair in zip(held_out, whole, strict=True))
    with pytest.raises(ValueError, match=r"data.task.fewest-pairs=4: must be <= data.task.pairs=3"):
        replace(CONFIG, fewest_pairs=4)


def test_distinct_draws_are_distinct_and_uniform():
    drawn = draw_distinct(30_000, 2, 3, torch.Generator().manual_seed(0))
    assert (drawn[:, 0] != drawn[:, 1]).all()
    counts = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9)[[1, 2, 3, 5, 6, 7]]
    assert counts.sum() == 30_000
    assert (counts - 5000).abs().max() < 250  # four standard deviations
