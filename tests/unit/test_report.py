import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smt_ray.config import RunConfig
from smt_ray.data.storage import Location
from smt_ray.report import pictures, plots
from smt_ray.report.panels import Report, errors_by_age
from smt_ray.report.run_report import write_report
from smt_ray.report.table import LABELS, entries, summary_table, written
from smt_ray.terminal import duration

SUMMARY: dict[str, Any] = {
    "name": "tiny",
    "preset": "tiny",
    "source": "stdlib",
    "tokens_source": 11_482_368,
    "tokens_teacher": 1_843_200,
    "tokens_dmt": 2_252_800,
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


def drift_rows() -> list[dict[str, Any]]:
    """Return rows of DMT's validations, the ages logged by powers of two."""
    return [
        {"stage": "dmt", "step": step, "drift/rollout": 9 / step, "drift/staleness": 1 / step}
        | {f"drift/age_{1 << power:03d}": 0.01 * (power + 100 / step) for power in range(6)}
        for step in (100, 200)
    ]


PICTURES: dict[str, Any] = {
    "geometry": {
        name: {"x": [0.0, 1.0, 2.5], "y": [1.0, -1.0, 0.5], "state": [0, 1, 0]}
        for name in ("teacher", "rnn")
    },
    "images": {
        name: np.random.default_rng(0).integers(0, 17, (count, 8, 8)).tolist()
        for name, count in (("samples", 16), ("prompts", 8), ("completions", 8), ("truth", 8))
    }
    | {"levels": 17},
}


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
        long_curves={"rnn": 2.6 + 1 / np.arange(1, 513)},
        gradients={"rnn": np.geomspace(1e-6, 1, 128), "teacher": np.ones(128)},
        next_k={"rnn": np.linspace(2.7, 2.9, 16), "teacher": np.linspace(2.5, 2.8, 16)},
        metrics={stage: training_rows() for stage in ("teacher", "transition")}
        | {"dmt": training_rows() + drift_rows()},
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
        "bits per byte: the RNN on validation",
        "89,706 rows", "2,000 steps", "tokens-01ab", "reused", "3 min 1 s",
        "Bits per byte by position", "Past the trained length", "How far gradients reach",
        "What a memory tells of later targets", "Drift during DMT", "Error by age in DMT",
        "gradient norm", "RNN before DMT",
        "sequence_length: 128", "2.13.0", f"--model {tmp_path}/rnn",
    ):  # fmt: skip
        assert text in page.text, text
    assert page.tags.count("svg") == 11


def test_pictures_have_panels(report: Report, tmp_path: Path) -> None:
    page = render(dataclasses.replace(report, **PICTURES), tmp_path)
    assert page.tags.count("svg") == 13
    assert page.tags.count("image") == 4
    for text in ("Where memories lie", "What it draws", "completed by the RNN", "the truth"):
        assert text in page.text, text


def test_a_task_is_scored_in_accuracy(report: Report, tmp_path: Path) -> None:
    scores = {"rnn_accuracy": 0.931, "teacher_accuracy": 0.98, "bptt_accuracy": 0.25}
    summary = SUMMARY | {"unit": "accuracy", "source": "task:parity", "order2_bits": None} | scores
    alone = {"rnn": [None] * 127 + [0.9]}  # one target: no curve
    page = render(dataclasses.replace(report, summary=summary, curves=alone), tmp_path)
    for text in (
        "0.931", "accuracy: the RNN on validation", "RNN, bits per target", "BPTT, accuracy",
        "0.049 less than its teacher and 0.681 more than BPTT", "smt_ray.load_rnn(",
    ):  # fmt: skip
        assert text in page.text, text
    for text in ("bits per byte", "by position", "generate.py"):
        assert text not in page.text, text


def test_it_asks_nothing_of_the_network(report: Report, tmp_path: Path) -> None:
    page = render(dataclasses.replace(report, **PICTURES), tmp_path)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert "http" not in page.source
    assert "@import" not in page.source
    links = [value or "" for name, value in page.attributes if name in {"href", "xlink:href"}]
    links += re.findall(r"url\(([^)]*)\)", page.source)
    inline = "data:image/png;base64,"
    ids = [value for name, value in page.attributes if name == "id"]
    assert {link.lstrip("#") for link in links if not link.startswith(inline)} <= set(ids)
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


def test_curves_leave_out_what_is_no_number() -> None:
    values = np.full(64, math.nan)
    values[31:] = 0.5
    (axes,) = plots.curves_figure({"rnn": values}, x="", y="", mark=(40, "trained")).axes
    line, mark = axes.lines
    drawn = np.asarray(line.get_xydata())
    assert drawn[0, 0] == pytest.approx(32, abs=1)
    assert np.all(drawn[:, 1] == 0.5)
    assert np.array_equal(mark.get_xdata(), [40, 40])
    (axes,) = plots.curves_figure({"rnn": values}, x="", y="", log_x=False).axes
    assert np.array_equal(axes.lines[0].get_xdata(), np.arange(32, 65))


def test_errors_by_age_are_those_of_the_last_validation() -> None:
    (curve,) = errors_by_age(drift_rows()[::-1]).values()
    ages = {age: float(curve[age - 1]) for age in range(1, 33) if np.isfinite(curve[age - 1])}
    assert ages == pytest.approx({1 << power: 0.01 * (power + 0.5) for power in range(6)})
    assert errors_by_age(training_rows()) == {}


def test_drift_figure_follows_the_steps() -> None:
    (axes,) = plots.drift_figure(drift_rows()).axes
    rollout, staleness = axes.lines
    assert np.allclose(rollout.get_xydata(), [[100, 0.09], [200, 0.045]])
    assert np.allclose(staleness.get_xydata(), [[100, 0.01], [200, 0.005]])


def test_a_plane_is_coloured_by_state_alike_for_all() -> None:
    teacher, rnn = pictures.geometry_figure(PICTURES["geometry"]).axes
    colors = np.asarray(teacher.collections[0].get_facecolor())
    assert np.array_equal(colors[0], colors[2])
    assert not np.array_equal(colors[0], colors[1])
    assert np.array_equal(colors, rnn.collections[0].get_facecolor())
    assert np.array_equal(
        np.asarray(rnn.collections[0].get_offsets()), [[0.0, 1.0], [1.0, -1.0], [2.5, 0.5]]
    )


def test_images_stand_in_rows_and_leave_unknown_pixels_empty() -> None:
    images = np.arange(9 * 6).reshape(9, 2, 3) % 5
    images[1, 1] = -1
    (axes,) = pictures.images_figure({"samples": images, "levels": 5}).axes
    grid = np.asarray(axes.images[0].get_array())
    assert grid.shape == (2 * 2 + 1, 8 * 3 + 7, 4)
    assert np.allclose(grid[:2, :3, 0], images[0] / 4)
    assert np.allclose(grid[3:, :3, 1], images[8] / 4)
    assert np.array_equal(grid[:2, 4:7, 3], [[1, 1, 1], [0, 0, 0]])
    assert not grid[2].any()
    assert not grid[:, 3].any()


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
