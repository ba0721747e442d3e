"""DeepSpeed engines: one for training any objective, one for encoding without an optimizer."""

import logging
import os
import warnings
from typing import Any

import torch
from torch import nn

from smt_ray.config import Precision, RuntimeConfig, TrainConfig

logger = logging.getLogger(__name__)


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


def _settings(micro_batch: int, stage: int, precision: Precision) -> dict[str, Any]:
    """Return the part of a DeepSpeed configuration that training and encoding share."""
    autocast = {"enabled": True, "dtype": "bfloat16"} if precision == "bfloat16" else {}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "torch_autocast": autocast or {"enabled": False},
    }


def training_engine(
    objective: nn.Module, train: TrainConfig, runtime: RuntimeConfig, world: int
) -> Any:
    """Wrap `objective` in a DeepSpeed engine with AdamW; matrices alone are decayed.

    Gradients are clipped by their joint norm over all parameters.

    Returns:
        The engine; `engine.gradient_accumulation_steps()` micro-batches make one optimizer step.
    """
    import deepspeed

    micro = runtime.rows(train, world)
    matrices = [p for p in objective.parameters() if p.dim() > 1]
    vectors = [p for p in objective.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        fused=True,
    )
    settings = _settings(micro, runtime.zero_stage, train.precision) | {
        "gradient_accumulation_steps": train.global_batch // world // micro,
        "gradient_clipping": train.clip_norm,
    }
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=settings)
    return engine


def encoding_engine(encoder: nn.Module, batch: int, precision: Precision) -> Any:
    """Wrap `encoder` in a ZeRO-3 engine without an optimizer: parameters sharded over the ranks."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=encoder, config=_settings(batch, 3, precision))
    engine.eval()
    return engine
