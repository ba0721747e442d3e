"""Weights on disk: `model.safetensors`, and beside it its SHA-256 as `sha256sum -c` reads it."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

if TYPE_CHECKING:  # it needs pyarrow, which to load an exported RNN does not
    from smt_ray.data.storage import Location

FILE = "model.safetensors"
DIGEST = "model.sha256"


def write_weights(directory: "Location", weights: dict[str, Tensor]) -> str:
    """Write the weights and their digest to `directory`; return the digest."""
    content = save(weights)
    digest = hashlib.sha256(content).hexdigest()
    (directory / DIGEST).write_text(f"{digest}  {FILE}\n")
    (directory / FILE).write_bytes(content)
    return digest


def read_weights(directory: "Path | Location", digest: str = "") -> dict[str, Tensor]:
    """Return the weights in `directory`.

    Args:
        directory: where they are.
        digest: theirs, if it is known; otherwise that of the file beside them, if there is one.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if they are not those that were written.
    """
    content, beside = (directory / FILE).read_bytes(), directory / DIGEST
    if not digest and beside.exists():
        digest = beside.read_text().partition(" ")[0]
    try:
        weights = load(content)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{FILE} is truncated or of another kind") from error
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{FILE} is damaged: its SHA-256 is not {digest[:12]}...")
    return weights


def load_weights(artifact: "Location", prefix: str = "") -> dict[str, Tensor]:
    """Return an artifact's weights below a dotted `prefix`, the prefix taken off.

    Raises:
        ValueError: in one line that names the file, if it is missing or damaged.
    """
    try:
        weights = read_weights(artifact)
    except (FileNotFoundError, ValueError) as error:
        said = error if isinstance(error, ValueError) else f"{FILE} is missing"
        mend = "delete this directory and give the same command again"
        raise ValueError(f"{artifact}: {said}; {mend}") from error
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }
