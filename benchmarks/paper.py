"""The preset `paper` on two cores: its widths and depths, few and short sequences."""

from typing import Any

VOCABULARY = 256
SHORT: dict[str, Any] = {
    "data": {"sequence_length": 32},
    "loss": {"timesteps": 4, "horizon": 8, "group": 4},
    "optimizer": {"precision": "float32"},
    "teacher": {"global_batch": 4},
    "labels": {"fraction": 1.0},
    "transition": {"global_batch": 4},
    "dmt": {"global_batch": 4},
    "runtime": {"device": "cpu", "gang_ranks": 1, "gang_batch": 32},
}
"""What makes it fit into minutes of two cores."""
