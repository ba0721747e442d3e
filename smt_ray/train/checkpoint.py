"""The portable checkpoint: safetensors and JSON, loadable at any world size and ZeRO stage.

Every parameter's fp32 weight and Adam moments are gathered one by one, and spread over the ranks'
files; `state.json` holds the step, the validation loss and the world size. No pickle is written or
read.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from smt_ray.data.order import share
from smt_ray.data.storage import Location
from smt_ray.train.engine import MOMENTS, Engine

State = dict[str, Tensor]


def save_checkpoint(engine: Engine, directory: Path, step: int, stream: State, loss: float) -> None:
    """Write this rank's part of the checkpoint; every rank must call it (it is collective).

    Args:
        engine: the training engine.
        directory: where this rank's files go; the ranks' files have different names.
        step: optimizer steps done.
        stream: this rank's state of the data stream: tensors with its columns in dim 1.
        loss: validation loss.
    """
    rank, world = engine.rank, engine.world
    tensors: State = {}
    for number, (name, parameter) in enumerate(engine.objective.named_parameters()):
        values = engine.state(parameter, stepped=step > 0)
        if number % world == rank:
            for kind, value in zip(("weight", *MOMENTS), values, strict=True):
                tensors[f"{kind}/{name}"] = value.detach().cpu().contiguous()
    save_file(tensors, directory / f"weights-{rank:05d}.safetensors")
    if stream:
        stream = {name: value.cpu().contiguous() for name, value in stream.items()}
        save_file(stream, directory / f"stream-{rank:05d}.safetensors")
    if rank == 0:
        state = {"format": 3, "step": step, "loss": loss, "world": world, "stream": bool(stream)}
        (directory / "state.json").write_text(json.dumps(state))


class Checkpoint:
    """A saved checkpoint, opened for reading; tensors come from its files when they are asked for.

    A local one is read where it is. Of another each file is copied when something of it is needed.
    """

    def __init__(self, place: Path | Location, copies: Path | None = None) -> None:
        """Open the checkpoint at `place`; `copies` is a local directory for what is not local."""
        self.place, self.copies = Location.of(place), copies
        state = json.loads(self._local("state.json").read_text())
        self.step: int = state["step"]
        self.world: int = state["world"]

    @cached_property
    def _where(self) -> dict[str, Any]:
        """The open file of each tensor of the weights and the moments."""
        # By number: an unfinished upload of more ranks may have left files in the same place.
        names = [f"weights-{rank:05d}.safetensors" for rank in range(self.world)]
        files = [safe_open(self._local(name), "pt") for name in names]
        return {key: file for file in files for key in [*file.keys()]}

    def _local(self, name: str) -> Path:
        """Return a file of the checkpoint on this machine's own file system."""
        there = self.place / name
        if there.is_local:
            return Path(there.path)
        assert self.copies
        here = self.copies / name
        if not here.exists():
            there.copy_to(Location.of(here))
        return here

    def weights(self) -> State:
        """Return all weights by parameter name."""
        return {
            key.removeprefix("weight/"): file.get_tensor(key)
            for key, file in self._where.items()
            if key.startswith("weight/")
        }

    def stream(self, global_batch: int, rank: int, world: int, group: int = 1) -> State | None:
        """Return the state of a rank's columns of the data stream, whoever had them; None of none.

        Args:
            global_batch: columns of all ranks.
            rank: the rank that goes on.
            world: the number of ranks that go on.
            group: consecutive columns that stay on one rank.
        """
        mine = share(global_batch, rank, world, group)
        parts: dict[str, list[Tensor]] = {}
        for other in range(self.world):
            theirs = share(global_batch, other, self.world, group)
            start, stop = max(mine.start, theirs.start), min(mine.stop, theirs.stop)
            name = f"stream-{other:05d}.safetensors"
            if start >= stop or not (self.place / name).exists():
                continue
            with safe_open(self._local(name), "pt") as file:
                for key in [*file.keys()]:
                    columns = slice(start - theirs.start, stop - theirs.start)
                    parts.setdefault(key, []).append(file.get_slice(key)[:, columns])
        return {key: torch.cat(found, dim=1) for key, found in parts.items()} or None

    def restore_optimizer(self, engine: Engine) -> None:
        """Set the moments and step counts; the optimizer must have allocated them (one step did).

        The objective must hold these weights already.
        """
        for name, parameter in engine.objective.named_parameters():
            moments = {m: self._where[f"{m}/{name}"].get_tensor(f"{m}/{name}") for m in MOMENTS}
            engine.restore(parameter, moments)
        engine.count_steps(self.step)
