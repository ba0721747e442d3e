import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smt_ray.config import RunConfig
from smt_ray.data.storage import Location
from smt_ray.evaluation import plots
from smt_ray.evaluation.report import Report, write_report
from smt_ray.evaluation.table import LABELS, duration, entries, summary_table, written

SUMMARY: dict[str, Any] = {
    "name": "tiny",
    "preset": "tiny",
    "source": "stdlib",
    "tokens_train": 11_482_368,
    "parameters_teacher": 398_272,
    "parameters_rnn": 172_416,
    "order0_bits": 4.6058,
    "order1_bits": 3.5711,
    "order2_bits": 2.7452,
    "bptt_bits": None,
    "teacher_bits": 2.5412,
    "rnn_bits_before_dmt": 2.6571,
    "rnn_bits": 2.6034,
    "drift_before_dmt": 0.2213,
    "drift": 0.0812,
    "labels": 2_871_296,
    "labels_per_s": 18234.2,
    "transitions_per_s": 41233.1,
    "tokens_per_s": 30211.7,
    "wall_seconds": 402.3,
    "resumed": False,
    "seconds_teacher": 181.2,
}


def training_rows() -> list[dict[str, Any]]:
    return [
        {
            "stage": "teacher",
            "step": step,
            "loss/total": 9 - step / 100,
            "optimizer/learning_rate": 3e-4,
            "norm/gradient": 0.5,
        }
        for step in range(0, 500, 25)
    ] + [{"stage": "teacher", "step": 400, "validation/loss": 5.1}]


@pytest.fixture
def report() -> Report:
    falling = 2.5 + 1 / np.arange(1, 129)
    return Report(
        summary=SUMMARY,
        stages=[
            {"stage": "tokens", "artifact": "tokens-01ab", "reused": True, "seconds": 9.2,
             "rows": 89_706},
            {"stage": "teacher", "artifact": "teacher-77fe", "reused": False, "seconds": 181.2,
             "steps": 2000},
        ],
        curves={"order1": np.full(128, 3.57), "teacher": falling, "rnn": falling + 0.1},
        drift={"rnn": np.linspace(0.01, 0.1, 128), "rnn_before_dmt": np.linspace(0.02, 0.4, 128)},
        ages={"rnn": np.linspace(0.01, 0.05, 40)},
        metrics={stage: training_rows() for stage in ("teacher", "transition", "dmt")},
        sample={"prompt": "def f(", "text": "<script>alert('x')</script> & more"},
        config=RunConfig().to_dict(),
        environment={"torch": "2.13.0", "workers": 2},
    )  # fmt: skip


class Page(HTMLParser):
    """The tags, attributes and visible text of a page."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.source = place.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def render(report: Report, directory: Path) -> Page:
    write_report(Location.of(directory), report)
    return Page(directory / "report.html")


def test_it_shows_every_part(report: Report, tmp_path: Path) -> None:
    page = render(report, tmp_path)
    for key, label, value in entries(SUMMARY):
        assert {key, label, value} <= set(page.words), key
    for text in (
        "0.062 more than its teacher and 0.142 fewer than the order-2 model",
        "89,706 rows", "2,000 steps", "tokens-01ab", "reused", "3 min 1 s",
        "Bits by position", "Error by age in DMT", "gradient norm", "RNN before DMT",
        "sequence_length: 128", "2.13.0", f"--model {tmp_path}/rnn",
    ):  # fmt: skip
        assert text in page.text, text
    assert page.tags.count("svg") == 7


def test_it_asks_nothing_of_the_network(report: Report, tmp_path: Path) -> None:
    page = render(report, tmp_path)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert "http" not in page.source
    assert "@import" not in page.source
    links = [value or "" for name, value in page.attributes if name in {"href", "xlink:href"}]
    links += re.findall(r"url\(([^)]*)\)", page.source)
    ids = [value for name, value in page.attributes if name == "id"]
    assert {link.lstrip("#") for link in links} <= set(ids)
    assert len(set(ids)) == len(ids)


def test_text_from_outside_is_escaped(report: Report, tmp_path: Path) -> None:
    hostile = dataclasses.replace(
        report,
        summary=SUMMARY | {"source": "<b>.txt", "name": "a&b"},
        environment={"<i>": "<u>"},
        config={"data": {"source": "<s>"}},
    )
    page = render(hostile, tmp_path)
    assert not {"script", "b", "i", "u", "s"} & set(page.tags)
    assert "<script>alert('x')</script> & more" in page.text
    assert "&lt;script&gt;" in page.source


def test_figures_follow_the_colours_of_the_page(report: Report, tmp_path: Path) -> None:
    page = render(report, tmp_path)
    drawn = page.source[page.source.index("</style>\n</head>") :]
    assert "var(--rnn, #0b5fa5)" in drawn
    fixed = re.sub(r"var\([^)]*\)", "", drawn)
    assert not re.findall(r"(?:fill|stroke): #(?!000000)[0-9a-f]{6}", fixed)


def test_missing_parts_leave_no_trace(tmp_path: Path) -> None:
    bare = {"name": "bare", "bptt_bits": None, "drift": None}
    page = render(Report(summary=bare, metrics={"teacher": []}), tmp_path)
    assert "svg" not in page.tags
    assert "dl" not in page.tags
    for word in ("None", "drift", "BPTT", "Configuration", "Environment", "How it was made"):
        assert word not in page.text


def test_the_same_data_give_the_same_page(report: Report, tmp_path: Path) -> None:
    assert render(report, tmp_path).source == render(report, tmp_path).source


def test_training_figure_takes_the_last_finite_value_of_a_step() -> None:
    rows = [
        {"step": 1, "loss/total": 5.0},
        {"step": 2, "loss/total": 4.0},
        {"step": 2, "validation/loss": 4.5},
        {"step": 3, "loss/total": float("nan")},
        {"step": 2, "loss/total": 3.0},
    ]
    figure = plots.training_figure(rows, "loss/total", "loss (nats)")
    (axes,) = figure.axes
    training, validation = axes.lines
    assert np.array_equal(training.get_xydata(), [[1, 5], [2, 3]])
    assert np.array_equal(validation.get_xydata(), [[2, 4.5]])


def test_training_figure_spans_orders_of_magnitude_on_a_log_axis() -> None:
    rows = [{"step": step, "loss/total": 10.0**-step} for step in range(4)]
    (axes,) = plots.training_figure(rows, "loss/total", "loss").axes
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize("length", [1, 2, 100, 1280])
def test_bins_average_all_positions_once(length: int) -> None:
    values = np.random.default_rng(0).normal(size=length)
    place, means = plots._binned(values)
    assert place[0] == 1
    assert np.all(np.diff(place) > 0)
    sizes = np.diff([0.5, *_upper_edges(place)])
    assert sizes.sum() == length
    assert np.dot(sizes, means) == pytest.approx(values.sum())
    assert len(place) <= 150
    plots.curves_figure({"rnn": values}, x="position", y="bits")


def _upper_edges(place: np.ndarray) -> list[float]:
    """Return where each bin ends: bins touch, and each is centred on its place."""
    edges = [0.5]
    for centre in place:
        edges.append(2 * centre - edges[-1])
    return edges[1:]


def test_labels_at_curve_ends_keep_apart() -> None:
    curves = {name: np.full(16, 2.0 + n * 1e-3) for n, name in enumerate(plots.SERIES)}
    (axes,) = plots.curves_figure(curves | {"order0": np.full(16, 4.0)}, x="", y="").axes
    heights = sorted(label.get_position()[1] for label in axes.texts)
    assert len(heights) == len(plots.SERIES)
    assert np.diff(heights).min() > 0.07


def test_the_terminal_table_is_plain_and_narrow() -> None:
    table = summary_table(SUMMARY | {"source": "/a/long/place/" * 20})
    assert max(map(len, table.splitlines())) <= 100
    assert "\x1b" not in table
    for key in LABELS.keys() & SUMMARY.keys() - {"name", "preset", "resumed", "source"}:
        if SUMMARY[key] is None:
            continue
        assert re.search(
            rf"{re.escape(LABELS[key])} +{re.escape(written(key, SUMMARY[key]))}", table
        )
    assert "BPTT" not in table


def test_values_are_written_with_their_units() -> None:
    assert written("rnn_bits", 2.60349) == "2.603"
    assert written("labels_per_s", 18234.6) == "18,235"
    assert written("drift", 0.081239) == "0.0812"
    assert written("resumed", True) == "yes"
    assert [duration(s) for s in (4.23, 59.96, 200, 7500)] == [
        "4.2 s", "1 min 0 s", "3 min 20 s", "2 h 5 min",
    ]  # fmt: skip
