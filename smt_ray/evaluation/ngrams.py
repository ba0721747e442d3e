"""Reference models that count: what order-0, order-1 and order-2 token statistics alone predict.

Shapes: `N` windows, `T` = L + 1 tokens in a window, `V` vocabulary, `G` distinct n-grams, `C`
distinct contexts. As for the RNN, the inputs of a window are tokens 0..L-1 and its targets tokens
1..L, so that the first target is predicted from token 0 alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

_BLOCK = 1 << 22  # targets counted or scored at once
MOST = 1 << 22
"""Distinct n-grams of one order after which no more is counted: 64 MiB, in a merge twice."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """Sorted distinct n-grams, coded as base-V numbers, and what follows each of their contexts."""

    grams: Int[np.ndarray, " G"]
    times: Int[np.ndarray, " G"]
    contexts: Int[np.ndarray, " C"]
    totals: Int[np.ndarray, " C"]
    kinds: Int[np.ndarray, " C"]


@dataclass(frozen=True, slots=True)
class NgramModel:
    """Token model of orders 0..n with interpolated Witten-Bell smoothing (no parameter to choose).

    `P_n(y | h) = (c(h, y) + T(h) P_{n-1}(y | h')) / (c(h) + T(h))`, with h the last n tokens, h'
    the last n - 1, c(.) counts, T(h) the number of distinct tokens seen after h, P_{-1} uniform. An
    unseen context leaves P_{n-1}. Memory grows with the number of distinct n-grams, not with the
    length of the text.
    """

    vocabulary: int
    orders: tuple[_Counts, ...]

    @classmethod
    def fit(
        cls, windows: Iterable[Int[np.ndarray, "N T"]], vocabulary: int, order: int = 2
    ) -> "NgramModel":
        """Count the n-grams of orders 0..`order` that end in a target, until there are `MOST`.

        Args:
            windows: token windows of the training split, in any number of arrays.
            vocabulary: V; every token is in 0..V-1.
            order: the largest number of tokens of context.

        Raises:
            ValueError: if V^(order + 1) codes do not fit 63 bits.
        """
        if vocabulary ** (order + 1) >= 1 << 63:
            raise ValueError(f"order={order}: too large for a vocabulary of {vocabulary} tokens")
        empty = np.empty(0, np.int64)
        tables = [(empty, empty)] * (order + 1)
        for block in _blocks(windows):
            tables = [
                _add(table, _codes(block, n, vocabulary).ravel()) for n, table in enumerate(tables)
            ]
            if max(len(grams) for grams, _ in tables) >= MOST:
                break
        return cls(vocabulary, tuple(_group(*table, vocabulary) for table in tables))

    def bits(
        self, tokens: Int[np.ndarray, "N T"], order: int | None = None
    ) -> tuple[Float[np.ndarray, " T-1"], float]:
        """Score windows.

        Args:
            tokens: token windows of the validation split.
            order: tokens of context, at most the order that was fitted, which is the default.

        Returns:
            The mean bits of target t over the windows, and the total bits of all targets.
        """
        order = len(self.orders) - 1 if order is None else order
        rows = max(1, _BLOCK // tokens.shape[1])
        total = np.zeros(tokens.shape[1] - 1)
        for start in range(0, len(tokens), rows):
            block = tokens[start : start + rows]
            total -= np.log2(self._probability(block, order)).sum(axis=0)
        return total / len(tokens), float(total.sum())

    def _probability(
        self, tokens: Int[np.ndarray, "N T"], order: int
    ) -> Float[np.ndarray, "N T-1"]:
        """Return the probability of every target, from the lowest order up."""
        found = np.full((len(tokens), tokens.shape[1] - 1), 1 / self.vocabulary)
        for n, counts in enumerate(self.orders[: order + 1]):
            grams = _codes(tokens, n, self.vocabulary)
            times = _look_up(counts.grams, counts.times, grams)
            contexts = grams // self.vocabulary
            kinds = _look_up(counts.contexts, counts.kinds, contexts)
            totals = _look_up(counts.contexts, counts.totals, contexts)
            # A view of the targets that have n tokens before them, all but the first n - 1.
            lower = found[:, found.shape[1] - grams.shape[1] :]
            seen = kinds > 0
            lower[seen] = (times + kinds * lower)[seen] / (totals + kinds)[seen]
        return found


def _codes(tokens: Int[np.ndarray, "N T"], order: int, vocabulary: int) -> Int[np.ndarray, "N M"]:
    """Code each target that has `order` tokens before it, with those, as one number in base V."""
    width = tokens.shape[1]
    first = 0 if order else 1  # token 0 is never a target
    codes = np.zeros((len(tokens), max(0, width - first - order)), np.int64)
    for n in range(first, first + order + 1):
        codes = codes * vocabulary + tokens[:, n : n + codes.shape[1]]
    return codes


def _blocks(windows: Iterable[Int[np.ndarray, "N T"]]) -> Iterator[Int[np.ndarray, "N T"]]:
    """Gather small arrays into blocks, so that sorting and merging are paid for rarely."""
    waiting: list[np.ndarray] = []
    size = 0
    for chunk in windows:
        waiting.append(chunk)
        size += chunk.size
        if size >= _BLOCK:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _add(
    table: tuple[Int[np.ndarray, " G"], Int[np.ndarray, " G"]], codes: Int[np.ndarray, " M"]
) -> tuple[Int[np.ndarray, " G2"], Int[np.ndarray, " G2"]]:
    """Return the table (sorted codes, how often) with `codes` counted in."""
    fresh, times = np.unique(codes, return_counts=True)
    grams, before = table
    place = np.searchsorted(grams, fresh)
    there = np.zeros(len(fresh), bool)
    inside = place < len(grams)
    there[inside] = grams[place[inside]] == fresh[inside]
    summed = before.copy()
    summed[place[there]] += times[there]
    new = ~there
    return np.insert(grams, place[new], fresh[new]), np.insert(summed, place[new], times[new])


def _group(grams: Int[np.ndarray, " G"], times: Int[np.ndarray, " G"], vocabulary: int) -> _Counts:
    """Add to sorted n-grams the total and the number of kinds of each context."""
    contexts = grams // vocabulary
    first = np.flatnonzero(np.diff(contexts, prepend=-1))
    totals = np.add.reduceat(times, first) if len(times) else times
    kinds = np.diff(first, append=len(grams))
    return _Counts(grams, times, contexts[first], totals, kinds)


def _look_up(
    keys: Int[np.ndarray, " G"], values: Int[np.ndarray, " G"], wanted: Int[np.ndarray, "N M"]
) -> Int[np.ndarray, "N M"]:
    """Return the value of each wanted key in the sorted `keys`; 0 if it is not there."""
    if not len(keys):
        return np.zeros_like(wanted)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
