"""Images drawn all at once against one at a time."""

import numpy as np
import torch

from smt_ray.evaluation.gallery import UNKNOWN, draw, gallery
from smt_ray.model.rnn import RNN
from tests.samples import MODEL, VOCABULARY, random_weights

START = VOCABULARY - 1
SHAPE = (3, 4)


@torch.no_grad()
def test_the_likeliest_levels_are_those_of_one_image_at_a_time():
    rnn = random_weights(RNN(MODEL, VOCABULARY))
    prompt = torch.cat((torch.full((5, 1), START), torch.randint(START, (5, 3))), dim=1)
    found = draw(rnn, prompt, 9, temperature=0, generator=torch.Generator())
    for row in range(5):
        sequence = prompt[row : row + 1]
        for _ in range(9):
            level = rnn.logits(rnn.rollout(sequence)[:, -1])[:, :START].argmax(1)
            sequence = torch.cat((sequence, level[:, None]), dim=1)
        assert torch.equal(found[row], sequence[0, 4:])


def test_levels_are_drawn_by_their_probability_and_the_start_symbol_never():
    rnn = random_weights(RNN(MODEL, VOCABULARY))
    prompt, heat, count = torch.tensor([[START, 2]]), 1.5, 20_000
    with torch.no_grad():
        rnn.readout.logits.weight[START] *= 10
        logits = rnn.logits(rnn.rollout(prompt)[:, -1])[0, :-1]
    random = torch.Generator().manual_seed(0)
    found = draw(rnn, prompt.expand(count, -1), 1, temperature=heat, generator=random)
    share = np.bincount(found[:, 0].numpy(), minlength=START) / count
    np.testing.assert_allclose(share, torch.softmax(logits / heat, 0).numpy(), atol=0.012)


def test_completions_begin_with_the_first_half_of_the_truth():
    truth = torch.randint(START, (4, 12))
    rnn = random_weights(RNN(MODEL, VOCABULARY))
    pictures = gallery(rnn, truth, SHAPE, temperature=1.0, seed=0)
    arrays = {name: np.array(pictures[name]) for name in pictures if name != "levels"}
    assert {name: array.shape for name, array in arrays.items()} == {
        "samples": (8, *SHAPE),
        "prompts": (4, *SHAPE),
        "completions": (4, *SHAPE),
        "truth": (4, *SHAPE),
    }
    flat = {name: array.reshape(len(array), -1) for name, array in arrays.items()}
    assert np.array_equal(flat["truth"], truth)
    assert np.array_equal(flat["completions"][:, :6], truth[:, :6])
    assert np.array_equal(flat["prompts"][:, :6], truth[:, :6])
    assert np.all(flat["prompts"][:, 6:] == UNKNOWN)
    assert pictures["levels"] == START
    assert gallery(rnn, truth, SHAPE, temperature=1.0, seed=0) == pictures
    assert gallery(rnn, truth, SHAPE, temperature=1.0, seed=1) != pictures
