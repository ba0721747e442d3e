"""The page of a scaling study: one section a question, with its figures and tables."""

import io
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from smt_ray.data.storage import Location
from smt_ray.report import scaling_figures as figures
from smt_ray.report.panels import Panel, to_svg
from smt_ray.report.study_page import Section
from smt_ray.studies.points import Row
from smt_ray.studies.quality import QUANTITIES, Curve
from smt_ray.studies.tables import (
    compression_table,
    cost_table,
    laws_table,
    quality_table,
    throughput_table,
)


@dataclass(frozen=True)
class Result:
    """The tables of a finished study; every one may be empty."""

    directory: Location
    throughput: list[Row]
    quality: list[Row]
    curves: list[Curve]
    compression: list[Row]
    cost: list[Row]


def chapters(result: Result) -> list[Section]:
    """Return the sections of what was studied; their figures lie in the directory as PNG, too."""
    sections = [_throughput(result), *_quality(result), _cost(result)]
    return [section for section in sections if section]


def _panel(directory: Location, name: str, title: str, caption: str, figure: Figure) -> Panel:
    """Return a figure as a panel of the page, and write it as `<name>.png`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    (directory / f"{name}.png").write_bytes(buffer.getvalue())
    return Panel(title, caption, to_svg(figure, name))


def _throughput(result: Result) -> Section | None:
    rows, directory = result.throughput, result.directory
    if not rows:
        return None
    panels = []
    if len({row["count"] for row in rows}) > 1:
        panels.append(
            _panel(
                directory,
                "efficiency",
                "Efficiency",
                "Throughput of one worker (or gang) against that of the fewest. Weak scaling "
                "gives each worker the same share, strong scaling keeps the global batch.",
                figures.efficiency_figure(rows),
            )
        )
    if any(row["share_compute"] is not None for row in rows):
        panels.append(
            _panel(
                directory,
                "shares",
                "Where the time goes",
                "Of rank 0 between validations. Collectives include waiting for slower ranks; "
                "checkpoints are as frequent as the run has them.",
                figures.shares_figure(rows),
            )
        )
    return Section(
        title="How does it scale in workers?",
        panels=panels,
        tables=[throughput_table(rows)],
        note="Rates count tokens (teacher), labels, or transitions, in the steady state. The "
        "fraction of peak is that of FLOPs in matrix products, counted from the networks, to what "
        "one process reached in a large matrix product on the same device.",
    )


def _quality(result: Result) -> list[Section]:
    rows, directory = result.quality, result.directory
    if not rows:
        return []
    unit = "bits per target" if rows[0]["unit"] == "accuracy" else rows[0]["unit"]
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for curve in result.curves:
        name = curve.measure.removesuffix("_bits")
        group = groups.setdefault((curve.field, curve.given), {"quantity": curve.quantity})
        group[name] = (curve.x, curve.loss, curve.law)
    panels = []
    for number, ((field, given), group) in enumerate(groups.items()):
        quantity = QUANTITIES[group.pop("quantity")]
        panels.append(
            _panel(
                directory,
                f"quality-{number}",
                f"{field}{f', {given}' if given else ''}",
                "A line is the fitted power law.",
                figures.losses_figure(group, x=quantity, y=unit),
            )
        )
    sections = [
        Section(
            title="How does it scale in size?",
            panels=panels,
            tables=[laws_table(result.curves), quality_table(rows)],
            note="L = a + b x^-c, by least squares; intervals are of 95 % confidence. With fewer "
            "than five sizes, or where a floor a does not pay, the law is pure (a = 0); with fewer "
            "than three there is none. BPTT is set against the FLOPs that it spent itself.",
        )
    ]
    if result.compression:
        sections.append(
            Section(
                title="How small may the memory be?",
                panels=[
                    _panel(
                        directory,
                        "compression",
                        "Memory against compute",
                        "The smallest memory that reached a loss for so many FLOPs: a step down is "
                        "memory saved by training longer or larger.",
                        figures.compression_figure(result.compression, unit=unit),
                    )
                ],
                tables=[compression_table(result.compression)],
            )
        )
    return sections


def _cost(result: Result) -> Section | None:
    rows, directory = result.cost, result.directory
    if not rows:
        return None
    panels = []
    if len({row["tokens"] for row in rows}) > 1:
        key, y = ("dollars", "dollars") if rows[-1]["dollars"] else ("hours", "hours")
        panels.append(
            _panel(directory, "cost", "Cost", "Of each stage, start-up included.",
                   figures.cost_figure(rows, key, y=y))
        )  # fmt: skip
    return Section(
        title="What would it cost?",
        panels=panels,
        tables=[cost_table(rows)],
        note="Times are linear in the measured seconds of a step, which are a line in its FLOPs; "
        "token shards and evaluation are not priced. Network bytes are what is read from and "
        "written to the storage and what all processes send in collectives.",
    )
