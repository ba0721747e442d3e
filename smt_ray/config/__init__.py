"""Run configuration: frozen dataclasses, one per concern, inside one `RunConfig`.

Every value is validated once, when its dataclass is built; an error names the field as it is typed
on the command line, its value and the rule. Fields are *scientific* (they decide the result and
enter an artifact's fingerprint) unless they stand in `RuntimeConfig` or are `name` and `storage`.
"""

from smt_ray.config.build import changed, leaves
from smt_ray.config.credentials import anonymous, masked, on_texts, require_unmasked
from smt_ray.config.data import DataConfig, TaskConfig
from smt_ray.config.methods import (
    DmtConfig,
    EvaluationConfig,
    ExperimentalConfig,
    LabelConfig,
    LossConfig,
    OptionalStageConfig,
    TeacherConfig,
    TransitionConfig,
    UnrollConfig,
)
from smt_ray.config.model import EncoderKind, ModelConfig
from smt_ray.config.optimizer import OptimizerConfig, Precision, Schedule, StageConfig, TrainConfig
from smt_ray.config.run_config import RunConfig
from smt_ray.config.runtime import RuntimeConfig

__all__ = [
    "DataConfig",
    "DmtConfig",
    "EncoderKind",
    "EvaluationConfig",
    "ExperimentalConfig",
    "LabelConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OptionalStageConfig",
    "Precision",
    "RunConfig",
    "RuntimeConfig",
    "Schedule",
    "StageConfig",
    "TaskConfig",
    "TeacherConfig",
    "TrainConfig",
    "TransitionConfig",
    "UnrollConfig",
    "anonymous",
    "changed",
    "leaves",
    "masked",
    "on_texts",
    "require_unmasked",
]
