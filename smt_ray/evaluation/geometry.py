"""Where memories lie: the two directions in which the teacher's memories vary most.

Shapes: N memories, K memory tokens, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor


class Plane:
    """The first two principal components of a set of memories."""

    def __init__(self, memory: Float[Tensor, "N K D"]) -> None:
        """Find mean and axes; the sign of an axis makes its largest entry positive."""
        flat = memory.flatten(1).double().cpu()
        self.mean = flat.mean(0)
        axes = torch.linalg.svd(flat - self.mean, full_matrices=False)[2][:2]
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        self.axes = axes * largest.sign()

    def project(self, memory: Float[Tensor, "N K D"]) -> Float[Tensor, "N 2"]:
        """Return the coordinates of memories, of this set or another."""
        return (memory.flatten(1).double().cpu() - self.mean) @ self.axes.T
