"""The exported RNN on disk: `model.safetensors`, `config.json` and the tokenizer.

Loading from a local directory needs torch, numpy, safetensors, einops and jaxtyping, with a JSON
tokenizer also tokenizers, and no pickle; a URI needs pyarrow.
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smt_ray.config import ModelConfig
from smt_ray.data.tokenizers import Tokenizer, load_tokenizer
from smt_ray.data.weights import FILE, read_weights, write_weights
from smt_ray.model.rnn import RNN

if TYPE_CHECKING:
    from smt_ray.data.storage import Location

FORMAT = 1
AGAIN = "give the command of its run again, which writes it anew, or copy it again"
UTF8_BYTES = 4  # of one character, at most


def save_rnn(rnn: RNN, directory: "Location", tokenizer: Tokenizer) -> None:
    """Write `model.safetensors`, `config.json` and the tokenizer to `directory`.

    `config.json` has the weights' SHA-256.
    """
    directory.make_dir()
    weights = {name: value.detach().cpu().contiguous() for name, value in rnn.state_dict().items()}
    digest = write_weights(directory, weights)
    tokenizer.save(directory)
    (directory / "config.json").write_json(
        {
            "format": FORMAT,
            "vocabulary": rnn.vocabulary,
            "tokenizer": tokenizer.name,
            "model": dataclasses.asdict(rnn.config),
            "sha256": digest,
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
        ids = torch.tensor(self.tokenizer.encode(prompt), dtype=torch.int64)
        tokens = self.generate(ids, length, temperature=temperature, generator=generator)
        before: list[int] = []  # the last piece: some tokenizers drop the space that begins a text
        held: list[int] = []
        for token in tokens:
            held.append(token)
            if not self._text(before, held).endswith("\ufffd") or len(held) == UTF8_BYTES:
                yield self._text(before, held)
                before, held = held, []
        if held:
            yield self._text(before, held)

    def _text(self, before: list[int], tokens: list[int]) -> str:
        """Return what `tokens` add to the text of those `before` them."""
        decode = self.tokenizer.decode
        return decode(before + tokens)[len(decode(before)) :]


def load_rnn(path: "str | Path | Location", *, cell_module: str = "") -> ExportedRNN:
    """Load an exported RNN, in evaluation mode.

    Args:
        path: the `rnn` directory of a run.
        cell_module: the module of a cell of your own, to be imported first: what the files name
            is never imported for them.

    Raises:
        ValueError: in one line, if `path` holds no exported RNN, a damaged one, one of another
            format, or one whose cell is a class of a module that is not imported yet; or if
            `cell_module` cannot be imported.
    """
    directory = _place(path)
    if cell_module:
        _import(cell_module)
    config = _config(directory)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"model={directory}: config.json is not of format {FORMAT} of an RNN")
    weights = _weights(directory, str(config.get("sha256", "")))
    tokenizer = load_tokenizer(directory)
    try:
        model = ModelConfig(**config["model"])
        _require_imported(model.cell, directory)
        rnn = ExportedRNN(model, config["vocabulary"], tokenizer)
        rnn.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"model={directory}: model.safetensors and config.json do not fit each other"
        ) from error
    return rnn.eval()


def _place(path: "str | Path | Location") -> "Path | Location":
    if isinstance(path, Path) or (isinstance(path, str) and "://" not in path):
        return Path(path).expanduser().absolute()
    from smt_ray.data.storage import Location

    return Location.of(path, "model")


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except (ImportError, ValueError) as error:  # ValueError: an empty part of the name
        raise ValueError(f"cell-module={module}: {error}; set PYTHONPATH to where it is") from error


def _require_imported(cell: str, directory: "Path | Location") -> None:
    """Refuse a user's `module:Class` unless its module is there: a file may not import code."""
    module, colon, _ = cell.partition(":")
    if colon and module not in sys.modules:
        raise ValueError(
            f"model={directory}: its cell is {cell}, and {module} is not imported; "
            f"give cell-module={module}"
        )


def _config(directory: "Path | Location") -> Any:
    try:
        return json.loads((directory / "config.json").read_bytes())
    except OSError as error:
        raise _missing(directory, "config.json") from error
    except ValueError as error:
        said = "config.json is truncated or of another kind"
        raise ValueError(f"model={directory}: {said}; {AGAIN}") from error


def _weights(directory: "Path | Location", digest: str) -> dict[str, Tensor]:
    try:
        return read_weights(directory, digest)
    except OSError as error:
        raise _missing(directory, FILE) from error
    except ValueError as error:
        raise ValueError(f"model={directory}: {error}; {AGAIN}") from error


def _missing(directory: "Path | Location", name: str) -> ValueError:
    return ValueError(f"model={directory}: no {name} here; give the `rnn` directory of a run")
