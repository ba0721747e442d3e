"""Named starting points of a run, from two CPU cores to a cluster: the YAML files beside this one.

A preset says how large the networks are and how long they train on text. `tiny-KIND.yaml` is what
`tiny` changes for tasks, for one of them, or for images. `pipeline/recipes.py` makes a run of them.
"""

from importlib.resources import files
from typing import Any

import yaml

from smt_ray.config.run_config import RunConfig

PRESETS = {
    "tiny": "two CPU cores, ten to twenty minutes",
    "small": "one GPU",
    "paper": "the paper's sizes; one large GPU or more",
    "large": "about a billion parameters; eight GPUs or more",
}
"""What each preset is for."""


def preset(name: str) -> RunConfig:
    """Return the run of a preset."""
    return RunConfig.from_dict(fields_of(name))


def fields_of(name: str) -> dict[str, Any]:
    """Return the nested fields of a file, by its name without `.yaml`; none if there is no such."""
    file = files(__package__) / f"{name}.yaml"
    return yaml.safe_load(file.read_text()) if file.is_file() else {}
