"""The page of a study: every part, nothing of an empty one, text from outside escaped."""

from smt_ray.data.storage import Location
from smt_ray.report import plots
from smt_ray.report.panels import Panel, to_svg
from smt_ray.report.study_page import Section, Study, Table, write_study

TABLE = Table(
    title="All trials",
    columns=["trial", "bits", "error"],
    rows=[["one", "2.5", ""], ["<b>", "-3", "no > 3"]],
    marked=1,
)


def page(study, tmp_path):
    write_study(Location.of(tmp_path), study)
    return (tmp_path / "report.html").read_text()


def test_it_shows_every_part(tmp_path):
    svg = to_svg(plots.bars_figure({"rnn": 2.5}, x="bits"), "bars")
    study = Study(
        title="first",
        kind="sweep",
        about="9 trials",
        headline=("2.345", "bits per byte"),
        lead="The best & the rest.",
        facts=[("teachers", "9")],
        sections=[
            Section(title="Which?", panels=[Panel("Bars", "More is worse.", svg)], note="A note."),
            Section(title="All", tables=[TABLE]),
        ],
        commands=("Use it", "python x.py"),
        config={"model": {"width": 64}},
        environment={"torch": "2"},
    )
    source = page(study, tmp_path)
    assert "<title>first - smt-ray sweep</title>" in source
    assert source.count("<svg") == 1
    for text in (
        "smt-ray sweep", "9 trials", "2.345", "The best &amp; the rest.", "<dt>teachers</dt>",
        "<h2>Which?</h2>", "More is worse.", "A note.", "<h3>All trials</h3>", "width: 64",
        '<tr class="marked">', "&lt;b&gt;", '<td class="number">-3</td>', "<td>no &gt; 3</td>",
        "<th>trial</th>", '<th class="number">bits</th>', "python x.py", "Environment",
    ):  # fmt: skip
        assert text in source, text
    assert "http" not in source


def test_missing_parts_leave_no_trace(tmp_path):
    body = page(Study(title="bare"), tmp_path).partition("<main>")[2]
    assert "<section" not in body
    assert "<h2>" not in body
    assert "<dl" not in body


def test_columns_of_numbers_are_told_by_their_cells():
    rows = [["1e-3", "4 x", "", "n4"], ["", "-.5", "", "4"]]
    assert Table(columns="abcd", rows=rows).numeric == [True, True, True, False]
