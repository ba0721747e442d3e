"""Write text with an exported RNN, piece by piece as it comes, in constant memory.

python jobs/generate.py --model runs/tiny/rnn --prompt TEXT [--length N] [--temperature T]
"""

import io
import signal
import sys
from dataclasses import dataclass

import torch

from smt_ray import load_rnn
from smt_ray.pipeline.command_line import parse, reported


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What to write."""

    model: str
    """The `rnn` directory of a run; a path or URI."""
    prompt: str
    """Text to go on from."""
    length: int = 512
    """Tokens to write."""
    temperature: float = 0.7
    """Softmax temperature; 0 takes the likeliest token."""
    cell_module: str = ""
    """Module of the model's cell, if that is a class of your own; on PYTHONPATH."""
    seed: int = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("length", "temperature"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be >= 0")


def main() -> int:
    """Parse, load, write."""
    with reported():
        options = parse(GenerateOptions, sys.argv[1:], "Write text with an exported RNN.")
        rnn = load_rnn(options.model, cell_module=options.cell_module)
        # Like other filters: end in silence when the reader has enough, or at Ctrl-C.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        torch.set_num_threads(1)  # one token at a time: threads would only wait for each other
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal may know fewer characters
        random = torch.Generator().manual_seed(options.seed)
        for text in rnn.write(
            options.prompt, options.length, temperature=options.temperature, generator=random
        ):
            print(text, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
