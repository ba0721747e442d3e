"""Pretrain nonlinear RNNs without recurrence: Supervised Memory Training on Ray and DeepSpeed.

`load_rnn(path)` returns an exported RNN; it needs torch, and neither Ray, DeepSpeed nor pyarrow.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smt_ray.data.export import load_rnn

__all__ = ["__version__", "load_rnn"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load_rnn`, and with it torch, on first use."""
    if name != "load_rnn":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from smt_ray.data.export import load_rnn

    return load_rnn
