"""The encoder gang against the encoder in one process, and against a rank that hangs."""

import os
import signal

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import save_file

from smt_ray.config import RuntimeConfig
from smt_ray.data.storage import Location
from smt_ray.labels.gang import EncoderSpec, Gang
from smt_ray.model.encoder import build_encoder
from tests.samples import MODEL, VOCABULARY, random_weights

pytestmark = pytest.mark.ray


def test_a_gang_is_one_sharded_encoder_and_survives_a_hung_rank(ray_session, tmp_path):
    encoder = random_weights(build_encoder(MODEL, VOCABULARY))
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (5, 12))
    with torch.no_grad():
        alone = encoder(torch.from_numpy(tokens))

    spec = EncoderSpec(MODEL, VOCABULARY, Location.of(tmp_path), "float32", "float32")
    gang = Gang(spec, RuntimeConfig(device="cpu", gang_ranks=2), "gang")
    torch.testing.assert_close(gang.encode(tokens), alone, atol=1e-5, rtol=0)

    total = sum(parameter.numel() for parameter in encoder.parameters())
    held = on_ranks(gang, lambda rank: [p.ds_tensor.numel() for p in rank.engine.parameters()])
    assert all(0.5 * total <= sum(shares) < 0.52 * total for shares in held)
    whole = on_ranks(gang, lambda rank: [p.numel() for p in rank.engine.parameters()])
    assert not np.any(whole)

    before, gang.timeout_s = gang.ranks, 2.0
    os.kill(on_ranks(gang, lambda _: os.getpid())[0], signal.SIGSTOP)
    torch.testing.assert_close(gang.encode(tokens), alone, atol=1e-5, rtol=0)
    assert set(gang.ranks).isdisjoint(before)
    gang.close()


def on_ranks(gang, call):
    return ray.get([rank.__ray_call__.remote(call) for rank in gang.ranks])
