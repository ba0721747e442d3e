"""Score an exported RNN on the validation split of any source.

python jobs/evaluate.py --model runs/tiny/rnn [--data.source S] [--sequences N] [--json FILE]
"""

import sys
from dataclasses import dataclass, field

from smt_ray import load_rnn
from smt_ray.config import DataConfig, masked
from smt_ray.data.storage import Location
from smt_ray.evaluation.standalone import score_source, with_tokenizer_of
from smt_ray.pipeline.command_line import parse, reported
from smt_ray.report.table import summary_table


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to score, and on what."""

    model: str
    """The `rnn` directory of a run; a path or URI."""
    data: DataConfig = field(default_factory=DataConfig)
    """The source; the model brings its own tokenizer."""
    sequences: int = 1024
    """Validation sequences that are scored, at most."""
    cell_module: str = ""
    """Module of the model's cell, if that is a class of your own; on PYTHONPATH."""
    json: str = ""
    """File or URI that the figures are written to as well."""

    def __post_init__(self) -> None:
        """Check every field."""
        if self.sequences < 1:
            raise ValueError(f"sequences={self.sequences}: must be >= 1")


def main() -> int:
    """Parse, load, score, print."""
    with reported():
        options = parse(EvaluateOptions, sys.argv[1:], "Score an exported RNN on any source.")
        rnn = load_rnn(options.model, cell_module=options.cell_module)
        data = with_tokenizer_of(options.model, options.data)
        figures = {"name": masked(options.model), **score_source(rnn, data, options.sequences)}
        print(summary_table(figures))
        if options.json:
            Location.of(options.json, "json").write_json(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
