"""Tasks that ask for what was read: one symbol, a whole string, or the value of a key.

Shapes: B sequences, L inputs in a sequence.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from smt_ray.config import TaskConfig
from smt_ray.objectives.objective import IGNORED
from smt_ray.tasks.task import (
    MARKER,
    UNKNOWN,
    Sequences,
    Task,
    draw_distinct,
    no_targets,
    require_length,
)

EIGHTHS = (1, 2, 3, 4, 6, 8)
"""Of `pairs`: how many an easier sequence of `KeysValues` may have."""


class Retrieval(Task):
    """Random symbols with a marked needle in the first half; the last input asks for the needle."""

    def vocabulary(self, config: TaskConfig) -> int:
        """Return the marker and N symbols."""
        return 1 + config.symbols

    def check(self, config: TaskConfig, length: int) -> None:
        """Require room for the marker, the needle and the question."""
        require_length(length, 4, "the marker, its needle and the question")

    def draw(
        self, config: TaskConfig, length: int, rows: int, random: torch.Generator
    ) -> Sequences:
        """Draw the symbols, then the place of the marker: marker and needle lie in the first half.

        The only target is at the last input.
        """
        inputs = torch.randint(1, 1 + config.symbols, (rows, length), generator=random)
        place = torch.randint(length // 2 - 1, (rows, 1), generator=random)
        inputs.scatter_(1, place, MARKER)
        inputs[:, -1] = MARKER
        targets = no_targets(inputs)
        targets[:, -1:] = inputs.gather(1, place + 1)
        return inputs, targets

    def state(
        self, config: TaskConfig, inputs: Int[Tensor, "B L"], targets: Int[Tensor, "B L"]
    ) -> Int[Tensor, "B L"]:
        """Return the needle once it was read."""
        place = (inputs == MARKER).int().argmax(1, keepdim=True) + 1
        read = torch.arange(inputs.shape[1]) >= place
        return torch.where(read, inputs.gather(1, place), UNKNOWN)


class Copy(Task):
    """A random string, the marker, then the string reversed, teacher-forced.

    Of L inputs, n = L / 2 are the string, one the marker, and n - 1 the reversed string, whose n
    symbols are the targets. An odd L begins with one more marker.
    """

    def vocabulary(self, config: TaskConfig) -> int:
        """Return the marker and N symbols."""
        return 1 + config.symbols

    def check(self, config: TaskConfig, length: int) -> None:
        """Require a string of one symbol."""
        require_length(length, 2, "one symbol and the marker")

    def draw(
        self, config: TaskConfig, length: int, rows: int, random: torch.Generator
    ) -> Sequences:
        """Draw the strings."""
        count = length // 2
        string = torch.randint(1, 1 + config.symbols, (rows, count), generator=random)
        answer = string.flip(1)
        inputs = torch.full((rows, length), MARKER)
        inputs[:, length - 2 * count : length - count] = string
        inputs[:, length - count + 1 :] = answer[:, :-1]
        targets = no_targets(inputs)
        targets[:, length - count :] = answer
        return inputs, targets


class KeysValues(Task):
    """n pairs of distinct key and value strings, then queries: a key, answered by its value.

    A query is the marker and the key; the value is teacher-forced, so its last symbol is no input.
    With strings of w symbols a pair and a query take 2 w inputs each; w fills L as far as it goes,
    and markers fill up the beginning, also in place of the pairs that an easier sequence lacks.
    """

    def vocabulary(self, config: TaskConfig) -> int:
        """Return the marker and N symbols."""
        return 1 + config.symbols

    def width(self, config: TaskConfig, length: int) -> int:
        """Return w: symbols in a key and in a value."""
        return length // (4 * config.pairs)

    def check(self, config: TaskConfig, length: int) -> None:
        """Require strings of one symbol, and enough distinct ones."""
        require_length(length, 4 * config.pairs, "every pair and every query")
        strings = config.symbols ** self.width(config, length)
        if strings < config.pairs:
            raise ValueError(
                f"data.task.pairs={config.pairs}: data.task.symbols={config.symbols} make only "
                f"{strings} distinct keys of {self.width(config, length)} symbols"
            )

    def draw(
        self, config: TaskConfig, length: int, rows: int, random: torch.Generator
    ) -> Sequences:
        """Draw keys, values and which keys are asked for (with repetition)."""
        width = self.width(config, length)
        keys, values = (self._strings(config, width, rows, random) for _ in range(2))
        asked = torch.randint(config.pairs, (rows, config.pairs, 1), generator=random)
        lacking = torch.zeros(rows, 1, 1, dtype=torch.int64)
        if config.fewest_pairs:
            held = sorted({max(config.fewest_pairs, config.pairs * n // 8) for n in EIGHTHS})
            drawn = torch.randint(len(held), (rows, 1, 1), generator=random)
            lacking = config.pairs - torch.tensor(held)[drawn]
            among = torch.rand(rows, config.pairs, 1, generator=random)
            asked = lacking + ((config.pairs - lacking) * among).long()
        asked = asked.expand(-1, -1, width)
        marker = torch.full((rows, config.pairs, 1), MARKER)
        key, value = keys.gather(1, asked), values.gather(1, asked)
        pairs = torch.cat((keys, values), dim=2)
        pairs[torch.arange(config.pairs) < lacking[:, :, 0]] = MARKER
        pairs = pairs.flatten(1)
        queries = torch.cat((marker, key, value[:, :, :-1]), dim=2)
        answers = torch.full_like(queries, IGNORED)
        answers[:, :, width:] = value
        start = length - pairs.shape[1] - queries[0].numel()
        inputs = torch.cat((torch.full((rows, start), MARKER), pairs, queries.flatten(1)), dim=1)
        targets = no_targets(inputs)
        targets[:, start + pairs.shape[1] :] = answers.flatten(1)
        return inputs, targets

    def _strings(
        self, config: TaskConfig, width: int, rows: int, random: torch.Generator
    ) -> Int[Tensor, "B n w"]:
        """Draw `pairs` distinct strings a row."""
        choices = min(config.symbols**width, 1 << 53)
        numbers = draw_distinct(rows, config.pairs, choices, random)
        digits = [numbers // config.symbols**place % config.symbols for place in range(width)]
        return torch.stack(digits, dim=2) + 1
