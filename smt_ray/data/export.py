"""The exported RNN on disk: `model.safetensors`, `config.json` and the tokenizer.

Loading needs torch and safetensors; no ray and no pickle.
"""

import dataclasses
from pathlib import Path

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


def load_rnn(path: str | Path | Location) -> RNN:
    """Load an exported RNN, in evaluation mode, its `tokenizer` attached.

    Raises:
        ValueError: if `path` holds no exported RNN, or one of another format.
    """
    directory = Location.of(path)
    if not (directory / "config.json").exists():
        raise ValueError(f"model={directory}: no config.json here; give the `rnn` directory of a run")
    config = (directory / "config.json").read_json()
    if config.get("format") != FORMAT:
        raise ValueError(f"model={directory}: format {config.get('format')}, this reads {FORMAT}")
    rnn = RNN(ModelConfig(**config["model"]), config["vocabulary"])
    rnn.load_state_dict(load((directory / "model.safetensors").read_bytes()))
    rnn.tokenizer = load_tokenizer(directory)
    return rnn.eval()
