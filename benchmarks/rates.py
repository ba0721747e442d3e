"""Which of several peak learning rates of BPTT counts, on tasks and images."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.pool import Result


def by_rate(cells: Iterable[Result]) -> dict[float, list[Result]]:
    """Return the cells of each rate, in the order given."""
    grouped: dict[float, list[Result]] = {}
    for cell in cells:
        grouped.setdefault(cell["rate"], []).append(cell)
    return grouped


def best(rates: Mapping[float, Sequence[Result]]) -> float:
    """Return the rate with the fewest bits on seed 0, to three digits.

    Of equals it is that of the most seeds, and of these the greatest.
    """

    def rank(rate: float) -> tuple[float, int, float]:
        bits = (cell["bits"] for cell in rates[rate] if cell["seed"] == 0)
        return round(next(bits, float("inf")), 3), -len(rates[rate]), -rate

    return min(rates, key=rank)
