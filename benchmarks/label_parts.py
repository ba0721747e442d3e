"""The programs that `benchmarks.labels` compares, each a process of its own.

python -m benchmarks.label_parts --part PART --place DIR

A program works in a directory below one that `prepare` has filled.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor, nn

from benchmarks.paper import VOCABULARY
from benchmarks.scale import write_text
from benchmarks.training import GatedStream
from benchmarks.turns import Gate, add_part
from smt_ray.cluster.session import connect
from smt_ray.config import RunConfig
from smt_ray.data.manifest import open_manifest
from smt_ray.data.reader import Stream
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokens import write_tokens
from smt_ray.data.weights import write_weights
from smt_ray.labels import factory
from smt_ray.labels.gang import EncoderSpec, Gang
from smt_ray.labels.labeller import started
from smt_ray.labels.stream import StreamedLabels
from smt_ray.model.encoder import build_encoder
from smt_ray.train.checkpoint import State
from smt_ray.train.metrics import read_metrics
from smt_ray.train.programs import Labels, StoredLabels, TeacherProgram, TransitionProgram
from smt_ray.train.trainer import fit

MODULE, TEACHER = "benchmarks.label_parts", "benchmark"


def main(arguments: Sequence[str]) -> int:
    """Run one program, and print what it says last."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    add_part(parser, PARTS)
    options = parser.parse_args(arguments)
    print(json.dumps(PARTS[options.part](options.place)))
    return 0


def prepare(root: Path, config: RunConfig, rows: int) -> None:
    """Write text for so many sequences, a teacher with fresh weights, and the run, to `root`."""
    write_text(root / "text", rows * config.data.sequence_length / 1e6, files=1)
    config = config.update({"data": {"source": str(root / "text" / "*.txt")}})
    teacher = TeacherProgram(config, Location.of(root), VOCABULARY).objective()
    write_weights(Location.of(root / "teacher").make_dir(), teacher.state_dict())
    (root / "config.json").write_text(json.dumps(config.to_dict()))


def config_of(root: Path) -> RunConfig:
    """Return the run that `prepare` was given."""
    return RunConfig.from_dict(json.loads((root / "config.json").read_text()))


@dataclass(frozen=True)
class Prepared:
    """What parts work with: they run in directories below that of `prepare`."""

    config: RunConfig
    root: Location

    @classmethod
    def below(cls, root: Path, **changes: Any) -> "Prepared":
        """Start Ray, and write the tokens if they are not there."""
        config = connect(config_of(root).update(changes))
        write_tokens(plan_source(config.data), Location.of(root) / "tokens")
        return cls(config, Location.of(root))

    @property
    def spec(self) -> EncoderSpec:
        """What a gang builds."""
        return factory.encoder_spec(self.config, self.root / "teacher", VOCABULARY)

    def write(self, target: Location) -> Location:
        """Write the labels as the pipeline does; return where."""
        teacher = self.root / "teacher", TEACHER, VOCABULARY
        factory.write_labels(self.config, self.root / "tokens", *teacher, target)
        return target


class Waiting(nn.Module):
    """An encoder behind a gate."""

    def __init__(self, encoder: nn.Module, place: Path) -> None:
        """Put a gate at `place` before the encoder."""
        super().__init__()
        self.encoder, self.gate, self.step = encoder, Gate(place), 0

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode when it may."""
        self.gate.wait(self.step, tokens.numel())
        self.step += 1
        return self.encoder(tokens)


@dataclass(frozen=True)
class WaitingSpec(EncoderSpec):
    """What builds an encoder behind a gate."""

    place: str

    def build(self) -> Any:
        """Return the encoder."""
        return Waiting(super().build(), Path(self.place))


def chain(place: Path) -> dict[str, float]:
    """Write the labels, with an encoder that waits for its turn."""
    run, whole = Prepared.below(place.parent), factory.encoder_spec
    factory.encoder_spec = lambda *given: WaitingSpec(**vars(whole(*given)), place=str(place))
    run.write(run.root / "labels")
    return {}


def bare(place: Path) -> dict[str, float]:
    """Encode the same batch again and again, until killed."""
    torch.set_num_threads(1)
    config = config_of(place.parent)
    encoder = Waiting(build_encoder(config.model, VOCABULARY), place)
    tokens = torch.randint(0, VOCABULARY, (config.runtime.gang_batch, config.data.sequence_length))
    with torch.inference_mode():
        while True:
            encoder(tokens)


@dataclass(frozen=True)
class TransitionInTurns(TransitionProgram):
    """The transition's training, behind a gate."""

    place: str = ""

    def stream(self, rank: int, world: int, saved: State | None, step: int) -> Stream:
        """Take the training labels when it is this side's turn."""
        return GatedStream(super().stream(rank, world, saved, step), Path(self.place))


def stored(place: Path) -> dict[str, list[float]]:
    """Train on stored labels, which are made if they are not there."""
    run = Prepared.below(place.parent)
    return trained(run, StoredLabels(run.write(run.root / "labels"), {}), place)


def streamed(place: Path) -> dict[str, list[float]]:
    """Train on labels that a gang makes meanwhile."""
    run = Prepared.below(place.parent, labels={"mode": "stream"})
    with started("benchmark", run.spec, run.config.runtime, 0) as gangs:
        labels = StreamedLabels(run.config, run.root / "tokens", TEACHER, gangs)
        return trained(run, labels, place)


def trained(run: Prepared, labels: Labels, place: Path) -> dict[str, list[float]]:
    """Return the loss of each step."""
    teacher = run.root / "teacher"
    program = TransitionInTurns(run.config, labels, teacher, VOCABULARY, place=str(place))
    output = Location.of(place / "fit").make_dir()
    fit(program, run.config.runtime, output)
    rows = read_metrics(output)
    return {"losses": [row["loss/total"] for row in rows if "loss/total" in row]}


def formats(place: Path) -> dict[str, Any]:
    """Write a few labels in each format; build a gang of two ranks."""
    run, bytes_per_label = Prepared.below(place.parent, runtime={"gang_ranks": 2}), {}
    for dtype in ("bfloat16", "float32", "int8"):
        own = run.config.update({"labels": {"dtype": dtype, "fraction": 0.1}})
        target = replace(run, config=own).write(run.root / dtype) / "train"
        manifest = open_manifest(target, "labels")
        size = sum(shard["bytes"] for shard in manifest["shards"].values())
        bytes_per_label[dtype] = size / manifest["sequences"] / manifest["sequence_length"]
    gang = Gang(run.spec, run.config.runtime, "benchmark")
    gang.start()
    held = ray.get([rank.__ray_call__.remote(share_held) for rank in gang.ranks])
    gang.close()
    return {"rank_parameter_share": max(held), "bytes_per_label": bytes_per_label}


def share_held(rank: Any) -> float:
    """Return the share of the encoder's parameters that a rank holds."""
    parameters = [*rank.engine.parameters()]
    return sum(p.ds_tensor.numel() for p in parameters) / sum(p.ds_numel for p in parameters)


def plain(place: Path) -> dict[str, float]:
    """Write the labels."""
    run = Prepared.below(place.parent)
    run.write(run.root / "labels")
    return {}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "chain": chain,
    "bare": bare,
    "stored": stored,
    "streamed": streamed,
    "formats": formats,
    "plain": plain,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
