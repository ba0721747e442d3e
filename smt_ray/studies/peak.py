"""What a device can do: the rate of a large matrix product, the measure of all utilisation."""

import time

import ray
import torch

from smt_ray.cluster.zero import prepare_process
from smt_ray.config import Precision, RuntimeConfig
from smt_ray.data.shards import DTYPES

TRIES, TRY_S = 5, 0.2


def matmul_rate(runtime: RuntimeConfig, precision: Precision) -> float:
    """Return the FLOP/s of one worker or gang rank in a large matrix product, the best of a few."""
    task = ray.remote(_matmul_rate).options(
        num_cpus=runtime.threads, num_gpus=1 if runtime.gpu else 0
    )
    return ray.get(task.remote(runtime, precision))


def _matmul_rate(runtime: RuntimeConfig, precision: Precision) -> float:
    device = prepare_process(runtime)
    size = 8192 if runtime.gpu else 1024
    a, b = torch.randn(2, size, size, device=device, dtype=DTYPES[precision])

    def seconds(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            a @ b
        if runtime.gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(1)
    times = max(1, round(TRY_S / seconds(1)))
    return 2 * size**3 * times / min(seconds(times) for _ in range(TRIES))
