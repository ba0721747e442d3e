"""DeepSpeed ZeRO: a rank's process, and the settings that all engines share."""

import logging
import os
import warnings
from typing import Any

import torch

from smt_ray.config import Precision, RuntimeConfig


def prepare_process(runtime: RuntimeConfig) -> torch.device:
    """Set a worker process up for DeepSpeed, before DeepSpeed is imported; return its device."""
    torch.set_num_threads(runtime.threads)
    if not runtime.gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as operators

    # Its shared-memory collective would be compiled at the first init; gloo needs no compiler.
    operators["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Its calls of older torch names, once in every process.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if runtime.gpu:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def zero_settings(micro_batch: int, stage: int, precision: Precision) -> dict[str, Any]:
    """Return the part of a DeepSpeed configuration that training and encoding share."""
    autocast = {"enabled": True, "dtype": "bfloat16"} if precision == "bfloat16" else {}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "torch_autocast": autocast or {"enabled": False},
    }
