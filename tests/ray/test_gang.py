"""The encoder gang against the encoder in one process, and against a rank that hangs."""

import os
import re
import signal
import time

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import save_file

from smt_ray.config import RuntimeConfig
from smt_ray.data.shards import from_memory
from smt_ray.data.storage import Location
from smt_ray.labels.gang import EncoderSpec, Gang
from smt_ray.labels.labeller import started
from smt_ray.model.encoder import build_encoder
from tests.ray.processes import titled
from tests.samples import MODEL, VOCABULARY, random_weights

pytestmark = pytest.mark.ray


def test_a_gang_is_one_sharded_encoder_and_survives_a_hung_rank(ray_session, tmp_path):
    encoder = random_weights(build_encoder(MODEL, VOCABULARY))
    save(tmp_path, encoder)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (5, 12))
    with torch.no_grad():
        alone = encoder(torch.from_numpy(tokens))

    spec = EncoderSpec(MODEL, VOCABULARY, Location.of(tmp_path), "float32", "float32")
    gang = Gang(spec, RuntimeConfig(device="cpu", gang_ranks=2), "gang")
    gang.start()
    torch.testing.assert_close(encoded(gang, tokens), alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded(gang, tokens[:1]), alone[:1], atol=1e-5, rtol=0)

    total = sum(parameter.numel() for parameter in encoder.parameters())
    held = on_ranks(gang, lambda rank: [p.ds_tensor.numel() for p in rank.engine.parameters()])
    assert all(0.5 * total <= sum(shares) < 0.52 * total for shares in held)
    whole = on_ranks(gang, lambda rank: [p.numel() for p in rank.engine.parameters()])
    assert not np.any(whole)

    before, build = gang.ranks, gang.build
    stopped = on_ranks(gang, lambda _: os.getpid())[0]
    os.kill(stopped, signal.SIGSTOP)
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(gang.encode(tokens), timeout=2)
    assert gang.failing() == f"rank 0 on node {host()} (process {stopped}) does not answer"
    gang.start()
    assert build != gang.build
    assert set(gang.ranks).isdisjoint(before)
    torch.testing.assert_close(encoded(gang, tokens), alone, atol=1e-5, rtol=0)
    gang.close()


def test_gangs_that_hang_are_built_again_and_the_batch_is_tried_again(ray_session, tmp_path):
    save(tmp_path, random_weights(build_encoder(MODEL, VOCABULARY)))
    spec = EncoderSpec(MODEL, VOCABULARY, Location.of(tmp_path), "float32", "float32")
    runtime = RuntimeConfig(device="cpu", gang_ranks=1, timeout_s=20.0, max_failures=1)
    tokens = np.zeros((3, 5), np.uint8)
    with started("run", spec, runtime, 0) as gangs:
        before = gangs.encode(tokens)["memory"]
        for rank in titled("ray::Rank"):
            rank.send_signal(signal.SIGKILL)
        assert np.array_equal(gangs.encode(tokens)["memory"], before)
        assert sum(ray.get(gangs.meter.gangs.remote()).values()) == 1
        lost = rf"rank 0 on node {host()} \(process \d+\) is gone"
        assert re.fullmatch(lost, ray.get(gangs.meter.why.remote()))
        (tmp_path / "model.safetensors").unlink()  # so that it cannot be built again
        for rank in titled("ray::Rank"):
            rank.send_signal(signal.SIGKILL)
        rule = r"runtime.max-failures=1: a batch of 3 sequences failed 2 times in encoder gangs"
        with pytest.raises(ValueError, match=rule):
            gangs.encode(tokens)


def test_a_cancelled_task_takes_no_batch_out_of_the_ranks_order(ray_session, tmp_path):
    save(tmp_path, random_weights(build_encoder(MODEL, VOCABULARY)))
    spec = EncoderSpec(MODEL, VOCABULARY, Location.of(tmp_path), "float32", "float32")
    runtime = RuntimeConfig(device="cpu", gang_ranks=1, timeout_s=20.0)
    tokens, asked = np.zeros((3, 5), np.uint8), tmp_path / "asked"

    @ray.remote(num_cpus=0)
    def late(tokens):
        time.sleep(4)
        return tokens

    def slow_down(labeller):
        gang = labeller.gang

        def slowly(tokens):
            found = [rank.encode.remote(gang.turn, late.remote(tokens)) for rank in gang.ranks]
            gang.turn += 1
            asked.touch()
            time.sleep(2)
            return found

        gang.encode = slowly

    with started("run", spec, runtime, 0) as gangs:
        before = gangs.encode(tokens)["memory"]
        (labeller,) = gangs.labellers.values()
        ray.get(labeller.__ray_call__.remote(slow_down))
        task = ray.remote(num_cpus=0)(lambda: gangs.encode(tokens)).remote()
        while not asked.exists():
            time.sleep(0.05)
        ray.cancel(task)  # its batch is on its way to the rank
        assert np.array_equal(gangs.encode(tokens)["memory"], before)
        assert not any(ray.get(gangs.meter.gangs.remote()).values()), "built again"


def host():
    return ray.util.get_node_ip_address()


def save(directory, encoder):
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    save_file(weights, directory / "model.safetensors")


def encoded(gang, tokens):
    """Return the memories of all ranks as numbers."""
    parts = ray.get(gang.encode(tokens))
    whole = np.concatenate([part["memory"] for part in parts])
    return from_memory({"memory": whole}, MODEL.memory_tokens, MODEL.width, "float32")


def on_ranks(gang, call):
    return ray.get([rank.__ray_call__.remote(call) for rank in gang.ranks])
