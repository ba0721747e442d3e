"""The space of a sweep: what it reads, what it draws, and what each mistake is answered with."""

import math
import re

import pytest

from smt_ray.config import RunConfig
from smt_ray.studies.space import Choice, Range, draws, grid, nested, parse_space, written


def test_lists_take_the_types_of_their_fields():
    space = parse_space(
        [
            "model.memory-tokens=4,8, 16,4",
            "model.cell=gru,mlp",
            "dmt.unroll=true,False",
            "dmt.visits=4,1e1",
            "data.source=../a.txt",
        ]
    )
    assert space == (
        Choice("model.memory-tokens", (4, 8, 16)),
        Choice("model.cell", ("gru", "mlp")),
        Choice("dmt.unroll", (True, False)),
        Choice("dmt.visits", (4.0, 10.0)),
        Choice("data.source", ("../a.txt",)),
    )
    assert all(type(value) is float for value in space[3].values)
    assert parse_space([str(part) for part in space]) == space


def test_ranges_know_whole_numbers_and_logarithms():
    space = parse_space(["teacher.learning-rate=log:1e-4..1e-2", "model.encoder_depth=2..5"])
    rate, depth = space
    assert rate == Range("teacher.learning-rate", 1e-4, 1e-2, True)
    assert depth == Range("model.encoder-depth", 2, 5, False)
    assert (rate.whole, depth.whole) == (False, True)
    assert parse_space([str(part) for part in space]) == space


def test_a_file_is_read_before_the_flags(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "model: {memory-tokens: [4, 8], cell_depth: 2}\n"
        "teacher.learning-rate: log:1e-4..1e-2\n"
        "data.source: ['a,b/*.txt']\n"
    )
    space = parse_space(["model.width=32,64"], str(file))
    assert list(map(str, space)) == [
        "model.memory-tokens=4,8",
        "model.cell-depth=2",
        "teacher.learning-rate=log:0.0001..0.01",
        "data.source=a,b/*.txt",
        "model.width=32,64",
    ]
    assert space[3] == Choice("data.source", ("a,b/*.txt",))


def test_a_grid_has_every_combination_once():
    space = parse_space(["model.memory-tokens=4,8", "model.encoder-depth=1,2,3"])
    found = list(grid(space))
    assert len(found) == 6
    assert found[1] == {"model.memory-tokens": 4, "model.encoder-depth": 2}
    assert len({tuple(fields.items()) for fields in found}) == 6
    assert RunConfig().update(nested(found[1])).model.encoder_depth == 2


def test_draws_stay_in_their_bounds_are_spread_and_begin_alike():
    space = parse_space(
        ["teacher.learning-rate=log:1e-4..1e-2", "model.encoder-depth=2..5", "model.width=log:1..4"]
    )
    found = draws(space, 4000, seed=3)
    assert draws(space, 10, seed=3) == found[:10]
    assert draws(space, 10, seed=4) != found[:10]
    rates = [fields["teacher.learning-rate"] for fields in found]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) / 4000 == pytest.approx(0.5, abs=0.04)
    depths = [fields["model.encoder-depth"] for fields in found]
    assert {depth: depths.count(depth) / 4000 for depth in sorted(set(depths))} == pytest.approx(
        dict.fromkeys(range(2, 6), 0.25), abs=0.04
    )
    widths = [fields["model.width"] for fields in found]
    share = math.log(1.5 / 0.5) / math.log(4.5 / 0.5)
    assert set(widths) == {1, 2, 3, 4}
    assert widths.count(1) / 4000 == pytest.approx(share, abs=0.04)


def test_fields_are_written_in_one_line():
    assert written({"a.b": 0.000123456, "c": "gru", "d": 8}) == "a.b=0.0001235, c=gru, d=8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.memory-token=4", "space=model.memory-token: unknown field; did you mean .*tokens?"),
        ("runtime.workers=1,2", "space=runtime.workers: decides nothing about a result; .*"),
        ("name=a,b", "space=name: decides nothing about a result; did you mean .*?"),
        ("model.width", "space=model.width: must be FIELD=VALUES, as model.memory-tokens=4,8,16"),
        ("model.width=", "space=model.width=: must be FIELD=VALUES, as .*"),
        ("model.width=4,x", "space=model.width=x: must be a whole number"),
        ("model.width=4.5", "space=model.width=4.5: must be a whole number"),
        ("dmt.visits=many", "space=dmt.visits=many: must be a number"),
        ("dmt.visits=nan", "space=dmt.visits=nan: must be a number"),
        ("dmt.unroll=1", "space=dmt.unroll=1: must be true or false"),
        ("model.width=8..4", "space=model.width=8..4: must rise from its first bound to its .*"),
        ("model.width=8..", "space=model.width=: must be a whole number"),
        ("dmt.visits=log:0..4", "space=dmt.visits=log:0..4: a logarithmic range must begin .*"),
    ],
)
def test_a_mistake_is_answered_in_one_line(text, message):
    pattern = re.escape(message).replace(r"\.\*", "[^\n]*")
    with pytest.raises(ValueError, match=f"^{pattern}$"):
        parse_space([text])


def test_what_is_no_grid_is_refused():
    with pytest.raises(ValueError, match=r"^space=model.width=8\.\.16: a grid takes lists .*=8,16"):
        list(grid(parse_space(["model.width=8..16"])))
    with pytest.raises(ValueError, match=r"^space=: is empty; give --space FIELD=VALUES"):
        parse_space([])
    with pytest.raises(ValueError, match=r"^space=model.width: is given twice; give it once$"):
        parse_space(["model.width=8", "model.width=16"])


@pytest.mark.parametrize(
    ("content", "message"), [("- 1", "must hold fields"), ("a: {", "cannot be read")]
)
def test_a_bad_file_is_named(content, message, tmp_path):
    (tmp_path / "space.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"^space-file={tmp_path}/space.yaml: {message}"):
        parse_space([], str(tmp_path / "space.yaml"))
    with pytest.raises(ValueError, match="cannot be read"):
        parse_space([], str(tmp_path / "none.yaml"))
