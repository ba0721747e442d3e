"""Run configuration: frozen dataclasses, one per concern, inside one `RunConfig`.

Every value is validated once, when its dataclass is built; an error names the field as it is typed
on the command line, its value and the rule. Fields are *scientific* (they decide the result and
enter an artifact's fingerprint) unless they stand in `RuntimeConfig` or are `name` and `storage`.
"""

from smt_ray.config.build import leaves
from smt_ray.config.credentials import anonymous, masked, on_texts, require_unmasked
from smt_ray.config.data import DataConfig, TaskConfig
from smt_ray.config.methods import (
    BpttConfig,
    DmtConfig,
    EvaluationConfig,
    LabelConfig,
    LossConfig,
    TransitionConfig,
)
from smt_ray.config.model import EncoderKind, ModelConfig
from smt_ray.config.run_config import RunConfig, RuntimeConfig
from smt_ray.config.train import Precision, Schedule, TrainConfig

__all__ = [
    "BpttConfig",
    "DataConfig",
    "DmtConfig",
    "EncoderKind",
    "EvaluationConfig",
    "LabelConfig",
    "LossConfig",
    "ModelConfig",
    "Precision",
    "RunConfig",
    "RuntimeConfig",
    "Schedule",
    "TaskConfig",
    "TrainConfig",
    "TransitionConfig",
    "anonymous",
    "leaves",
    "masked",
    "on_texts",
    "require_unmasked",
]
