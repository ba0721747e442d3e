"""How much is computed at once, so that evaluation fits beside the weights of any model.

What is computed at once is rounding alone: no score depends on the machine.
"""

import torch

from smt_ray.config import ModelConfig

CPU_BYTES = 512 << 20
"""Bytes of activations on a CPU, at most, but for one sequence or memory."""
GPU_SHARE = 4
"""On a GPU they are the free memory divided by this."""
READ_SHARE = 8
"""What is read from memories beside others takes this part of it."""
ROLLED = 64
"""Bytes for each number in the memories of a sequence: several copies, and the encoder's."""
TOKEN, SAVED = 96, 160
"""Bytes for each of D numbers of a token: through one block, and kept by one for its gradient."""
LOGIT = 24
"""Bytes for each logit: copies in softmax, cross-entropy and their gradients."""


def budget(device: torch.device) -> int:
    """Return the bytes that activations may take."""
    if device.type != "cuda":
        return CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + kept) // GPU_SHARE


def rows_at_once(model: ModelConfig, length: int, device: torch.device) -> int:
    """Return how many sequences of `length` inputs are rolled out at once."""
    each = ROLLED * length * model.memory_tokens * model.width
    return max(1, budget(device) // each)


def memories_at_once(
    tokens: int, width: int, logits: int, device: torch.device, *, saved_blocks: int = 0
) -> int:
    """Return how many memories a decoder or cell works on at once.

    Args:
        tokens: that it works on for each memory.
        width: D.
        logits: that it returns for each memory.
        device: where.
        saved_blocks: blocks whose activations a gradient needs.
    """
    each = tokens * width * (TOKEN + SAVED * saved_blocks) + logits * LOGIT
    return max(1, budget(device) // READ_SHARE // each)
