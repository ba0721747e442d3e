"""Who solves which task: a table to look at, one to look things up in, curves against time."""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks import rates
from benchmarks.cells import CONTROLLED, FINETUNE, OURS, SECONDS, SOLVED
from benchmarks.page import CURVES, draw, seeds, spread, spread_of, table
from benchmarks.pool import Result
from smt_ray.pipeline.recipes import on_task

Panels = dict[str, dict[str, Sequence[Sequence[float]]]]
AT_A_GLANCE = {
    "smt_unrolled": "SMT",
    "smt_unrolled_curriculum": "SMT, short first",
    "smt": "SMT, one-step gradients",
    "bptt": "BPTT",
    "bptt_curriculum": "BPTT, short first",
    "bptt_parallel": "BPTT in parallel",
    "lstm": "LSTM",
}
"""Columns of the table to look at; the last is another cell."""
UNROLLED = ("smt_unrolled", "smt_unrolled_curriculum")
OTHER_AT_4L = ("keysvalues",)
"""Tasks that are not the same at another length: here strings grow with it."""
STEADY = ("bptt", "bptt_truncated", "lstm")
"""Methods that read as many new inputs a second at their end as at their beginning."""
APART, ALIKE = 0.05, 0.005
"""Accuracies by which the methods of a row must differ to have a best one, and may to share it."""


def of_tasks(results: dict[str, Result]) -> dict[str, Any]:
    """Return who solves which task."""
    groups: dict[Group, list[Result]] = {}
    for cell in results.values():
        group = Group(cell["task"], cell["length"], cell["seconds"], cell["method"])
        groups.setdefault(group, []).append(cell)
    tried = {group: rates.by_rate(groups[group]) for group in sorted(groups)}
    best = {group: by_rate[rates.best(by_rate)] for group, by_rate in tried.items()}

    def mean(task: str, length: int, method: str, figure: str = "accuracy") -> str:
        cells = best[Group(task, length, SECONDS, method)]
        return f"{fmean(cell[figure] for cell in cells):.3f}"

    draw("tasks", _curves(best), "CPU-seconds", "accuracy on validation", ylim=(0, 1.02))
    return {
        "mean": mean,
        "uneven": partial(_uneven, best),
        "saved": partial(_saved, best),
        "glance": _glance(best),
        "table": _table(best, {group: len(by_rate) for group, by_rate in tried.items()}),
        "seconds": f"{SECONDS:g}",
        "share": 1 - FINETUNE,
        "seeds": seeds(results),
    }


class Group(NamedTuple):
    """Cells that differ in seed and rate alone."""

    task: str
    length: int
    seconds: float
    method: str


def _glance(best: Mapping[Group, Sequence[Result]]) -> str:
    """Return mean accuracies (and of how many seeds), the best of the same cell in bold.

    Where all methods are at chance there is none. A star is at those of SMT whose DMT goes on
    without labels.
    """
    rows = []
    for task, length in sorted({group[:2] for group in best}):
        found = {
            method: best[group]
            for method in AT_A_GLANCE
            if (group := Group(task, length, SECONDS, method)) in best
        }
        means = {m: fmean(cell["accuracy"] for cell in cells) for m, cells in found.items()}
        texts = {m: f"{mean:.3f} ({len(found[m])})" for m, mean in means.items()}
        if not on_task("tiny", f"task:{task}", length).dmt.dynamics:
            texts |= {m: f"{texts[m]}\\*" for m in UNROLLED if m in texts}
        same = {method: mean for method, mean in means.items() if method != "lstm"}
        if same and max(same.values()) > min(same.values()) + APART:
            first = max(same, key=lambda method: same[method])
            texts |= {m: f"**{texts[m]}**" for m in same if same[m] > same[first] - ALIKE}
        if found:
            rows.append([task, length, *(texts.get(method) for method in AT_A_GLANCE)])
    return table(["task", "L", *AT_A_GLANCE.values()], rows)


def _table(best: Mapping[Group, Sequence[Result]], tried: Mapping[Group, int]) -> str:
    """Return all that was measured of the best rate of every method."""
    rows = []
    for group, cells in best.items():
        ours = group.method in OURS
        chosen = "" if ours else f", rate {cells[0]['rate']:g} ({tried[group]} tried)"
        times = [cell["solved_after"] for cell in cells]
        rows.append(
            [
                group.task,
                group.length,
                f"{group.seconds:g} s",
                group.method.replace("_", " ") + chosen,
                spread([_steps(cell) for cell in cells], digits=0),
                spread([cell["accuracy"] for cell in cells]),
                f"{sum(cell['accuracy'] >= SOLVED for cell in cells)} of {len(cells)}",
                None if None in times else f"{fmean(times):.0f} s",
                spread_of("teacher", cells),
                spread_of("told_ahead", cells),
                spread_of("one_step", cells) if group.method in CONTROLLED else None,
                spread_of("before_finetune", cells),
                spread_of("accuracy_4L", cells) if group.task not in OTHER_AT_4L else None,
                spread_of("teacher_4L", cells) if group.task not in OTHER_AT_4L else None,
                _at_equal_tokens(cells, best.get(group._replace(method="smt")))
                if group.method in STEADY
                else None,
            ]
        )
    head = ["task", "L", "time", "method", "steps", "accuracy", "solved"]
    head += ["after", "teacher", "told ahead", "one step", "before BPTT", "at 4L", "teacher at 4L"]
    head += ["at equal tokens"]
    return table(head, rows)


def _uneven(best: Mapping[Group, Sequence[Result]], method: str, *but: str) -> str:
    """Return how many times the fewest steps of a row its most are, at most; not on tasks `but`."""
    rows = [
        [_steps(cell) for cell in cells if cell["used"] >= cell["seconds"]]
        for group, cells in best.items()
        if group.method == method and group.task not in but
    ]
    return f"{max((max(steps) / min(steps) for steps in rows if steps), default=1):.2f}"


def _saved(best: Mapping[Group, Sequence[Result]], task: str, length: int) -> dict[str, str]:
    """Return after how many seconds BPTT in parallel scores as SMT at its end, seed by seed.

    With it, in seconds, the mean of SMT's DMT and that of its stages `before`.
    """
    ours, others = (
        {cell["seed"]: cell for cell in best[Group(task, length, SECONDS, method)]}
        for method in ("smt_unrolled", "bptt_parallel")
    )
    both = sorted(ours.keys() & others.keys())
    reached = []
    for seed in both:
        goal = ours[seed]["scores"]["dmt"][-1][1]
        scores = others[seed]["scores"]["bptt"]
        reached.append(next((f"{at:.0f}" for at, score in scores if score >= goal), "never"))
    dmt = fmean(ours[seed]["stages"]["dmt"]["seconds"] for seed in both)
    used = fmean(ours[seed]["used"] for seed in both)
    return {"reached": ", ".join(reached), "dmt": f"{dmt:.0f}", "before": f"{used - dmt:.0f}"}


def _steps(cell: Result) -> int:
    """Return the optimizer steps of all stages."""
    return sum(stage["steps"] for stage in cell["stages"].values())


def _at_equal_tokens(cells: Sequence[Result], ours: Sequence[Result] | None) -> str | None:
    """Return the last scores on validation before a cell had read more sequences than SMT had.

    There are none where a cell did not read as many, unless it ended early, with enough.
    """
    if ours is None:
        return None
    read = [cell["stages"][made]["tokens"] for cell in ours for made in ("teacher", "labels")]
    tokens = sum(read) / len(ours)
    if any(cell["tokens"] < tokens and cell["used"] >= cell["seconds"] for cell in cells):
        return None
    scores = []
    for cell in cells:
        seconds = cell["used"] * tokens / cell["tokens"]
        before = [score for at, score in cell["scores"]["bptt"] if at <= seconds]
        scores.append(before[-1] if before else 0.0)
    return spread(scores)


def _curves(best: Mapping[Group, Sequence[Result]]) -> Panels:
    """Return the scores on the way of each method's first seed: SMT's after those of its teacher.

    Of two methods of SMT the later one's teacher is there.
    """
    panels: Panels = {}
    for group, cells in best.items():
        if group.method not in CURVES:
            continue
        cell = min(cells, key=lambda cell: int(cell["seed"]))
        title = f"{group.task}, L = {group.length}, {group.seconds:g} s"
        curves = panels.setdefault(title, {})
        if group.method in OURS:
            before = sum(s["seconds"] for name, s in cell["stages"].items() if name != "dmt")
            curves["teacher"] = cell["scores"]["teacher"]
            curves[group.method] = [(before + at, score) for at, score in cell["scores"]["dmt"]]
        else:
            curves[group.method] = cell["scores"]["bptt"]
    return panels
