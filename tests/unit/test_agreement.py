"""Ranks stop and save at the same step, and look at each other's wishes seldom."""

import pytest

from smt_ray.train.agreement import MOST_STEPS, Agreement


class Two:
    """What the engine of one rank of two says; the other wishes nothing, unless it is told to."""

    world = 2

    def __init__(self):
        self.other, self.looks = [0, 0, 0], 0

    def greatest(self, values):
        self.looks += 1
        return [max(pair) for pair in zip(values, self.other, strict=True)]


def test_a_wish_is_kept_until_all_look():
    ranks = Two()
    agreement = Agreement(ranks, seconds=1e9)
    found = [agreement.look(stop=step == 3, save=step == 5) for step in range(2 * MOST_STEPS + 1)]
    assert [step for step, wishes in enumerate(found) if any(wishes)] == [MOST_STEPS]
    assert found[MOST_STEPS] == (True, True)
    assert ranks.looks == 3


def test_the_wish_of_another_rank_counts_and_the_slowest_says_when_to_look_again():
    ranks = Two()
    agreement = Agreement(ranks, seconds=0.0)
    ranks.other = [0, 1, 7]
    assert agreement.look(stop=False, save=False) == (False, True)
    ranks.other = [0, 0, 0]
    found = [agreement.look(stop=True, save=False) for _ in range(8)]
    assert [stop for stop, _ in found] == [False] * 6 + [True] * 2


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_one_rank_does_what_it_wishes_at_once(seconds):
    class Alone(Two):
        world = 1

    agreement = Agreement(Alone(), seconds)
    agreement.look(stop=False, save=False)
    assert agreement.look(stop=True, save=False) == (True, False)
    assert agreement.look(stop=False, save=False) == (False, False)
