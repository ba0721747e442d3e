"""The networks of a finished run, loaded from its artifacts."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from smt_ray.config import RunConfig
from smt_ray.data.storage import Location
from smt_ray.data.weights import load_weights
from smt_ray.model.cells import build_cell
from smt_ray.model.decoder import Decoder
from smt_ray.model.encoder import build_encoder
from smt_ray.model.rnn import RNN

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Networks:
    """The parts of the teacher; readouts and RNNs by the names of `report.plots.SERIES`."""

    encoder: nn.Module
    decoder: Decoder
    cell: nn.Module
    readouts: dict[str, Decoder]
    rnns: dict[str, RNN]


def load_networks(
    config: RunConfig, locations: dict[str, Location], vocabulary: int, device: torch.device
) -> Networks:
    """Load the networks of every stage in `locations`, in evaluation mode."""
    model, rnn_model = config.model, config.rnn_model

    def load(module: Network, weights: dict[str, Tensor]) -> Network:
        module.load_state_dict(weights)
        return module.to(device).eval()

    def rnn(weights: dict[str, Tensor]) -> RNN:
        return load(RNN(rnn_model, vocabulary), weights)

    teacher, dmt = locations["teacher"], locations["dmt"]
    decoder = load(Decoder(model, vocabulary), load_weights(teacher, "decoder."))
    before = RNN(rnn_model, vocabulary)
    load(before.cell, load_weights(locations["transition"], "cell."))
    before.readout = decoder
    rnns = {"rnn_before_dmt": before.to(device).eval()}
    if "finetune" in locations:
        rnns["rnn_before_finetune"] = rnn(load_weights(dmt, "rnn."))
    rnns["rnn"] = rnn(load_weights(locations["export"]))
    if "bptt" in locations:
        rnns["bptt"] = rnn(load_weights(locations["bptt"], "rnn."))
    trained = load(Decoder(model, vocabulary), load_weights(dmt, "teacher_readout."))
    return Networks(
        load(build_encoder(model, vocabulary), load_weights(teacher, "encoder.")),
        decoder,
        load(build_cell(model, vocabulary), load_weights(teacher, "cell.")),
        {"teacher": trained, "teacher_before_dmt": decoder},
        rnns,
    )
