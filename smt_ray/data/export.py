"""The exported RNN on disk: `model.safetensors`, `config.json` and the tokenizer.

Loading needs torch and safetensors; no ray and no pickle.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load, save

from smt_ray.config import ModelConfig
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import Tokenizer, load_tokenizer
from smt_ray.model.rnn import RNN

FORMAT = 1


def save_rnn(rnn: RNN, directory: Location, tokenizer: Tokenizer) -> None:
    """Write `model.safetensors`, `config.json` and the tokenizer to `directory`."""
    directory.make_dir()
    weights = {name: value.detach().cpu().contiguous() for name, value in rnn.state_dict().items()}
    (directory / "model.safetensors").write_bytes(save(weights))
    tokenizer.save(directory)
    (directory / "config.json").write_json(
        {
            "format": FORMAT,
            "vocabulary": rnn.vocabulary,
            "tokenizer": tokenizer.name,
            "model": dataclasses.asdict(rnn.config),
        }
    )


class ExportedRNN(RNN):
    """An RNN with the tokenizer that it was trained with."""

    def __init__(self, config: ModelConfig, vocabulary: int, tokenizer: Tokenizer) -> None:
        """Create the RNN with fresh weights."""
        super().__init__(config, vocabulary)
        self.tokenizer = tokenizer

    def write(
        self,
        prompt: str,
        length: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[str]:
        """Yield the text of `length` sampled tokens after `prompt`, in pieces of whole characters.

        Raises:
            ValueError: if the prompt is empty.
        """
        ids = torch.from_numpy(self.tokenizer.encode(prompt)).long()
        held: list[int] = []
        for token in self.generate(ids, length, temperature=temperature, generator=generator):
            held.append(token)
            text = self.tokenizer.decode(held)
            if not text.endswith("\ufffd") or len(held) == 4:  # UTF-8 takes 4 bytes at most
                yield text
                held = []
        if held:
            yield self.tokenizer.decode(held)


def load_rnn(path: str | Path | Location) -> ExportedRNN:
    """Load an exported RNN, in evaluation mode.

    Raises:
        ValueError: if `path` holds no exported RNN, or one of another format.
    """
    directory = Location.of(path)
    if not (directory / "config.json").exists():
        raise ValueError(
            f"model={directory}: no config.json here; give the `rnn` directory of a run"
        )
    config = (directory / "config.json").read_json()
    if config.get("format") != FORMAT:
        raise ValueError(f"model={directory}: format {config.get('format')}, this reads {FORMAT}")
    shape = ModelConfig(**config["model"])
    rnn = ExportedRNN(shape, config["vocabulary"], load_tokenizer(directory))
    rnn.load_state_dict(load((directory / "model.safetensors").read_bytes()))
    return rnn.eval()
