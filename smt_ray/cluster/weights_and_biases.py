"""Weights & Biases, where `runtime.wandb_project` asks for it: one of its runs for each stage."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from smt_ray.config import RunConfig
from smt_ray.data.storage import Location

EXTRA = "pip install 'smt-ray[wandb]'"


def check_wandb(project: str) -> None:
    """Check that what logs to a project is installed and logged in; "" asks for nothing.

    Raises:
        ValueError: in one line that names the field, the value and the mend.
    """
    if not project:
        return
    field = f"runtime.wandb-project={project}"
    try:
        from wandb import Settings  # not what a directory of the name `wandb` would give
    except ImportError:
        raise ValueError(f"{field}: needs the extra wandb; {EXTRA}") from None
    online = os.environ.get("WANDB_MODE", "online") == "online"
    url = os.environ.get("WANDB_BASE_URL", Settings().base_url)
    if online and not (os.environ.get("WANDB_API_KEY") or _in_netrc(url)):
        raise ValueError(
            f"{field}: not logged in to Weights & Biases; give WANDB_API_KEY or ~/.netrc to all "
            "nodes, or set WANDB_MODE=offline"
        )


def _in_netrc(url: str) -> bool:
    """Return whether `wandb login` has left a key for the server."""
    try:
        return netrc.netrc().authenticators(urlsplit(url).hostname or "") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


class WandbRun:
    """The W&B run of one stage of a run; a stage that goes on goes on in the same one.

    Offline, its directory lies beside the stage's artifact as `wandb/`, for `wandb sync`.
    """

    def __init__(self, config: RunConfig, stage: str, output: Location, local: Path) -> None:
        """Open the run.

        Args:
            config: the run that the stage belongs to; W&B keeps its fields.
            stage: name of the stage.
            output: the stage's artifact, whose name identifies the W&B run.
            local: where W&B may write.
        """
        import wandb

        self._output, self._local = output / "wandb", local
        self._run = wandb.init(
            project=config.runtime.wandb_project,
            id=output.name,
            resume="allow",
            name=f"{config.name} {stage}",
            group=config.name,
            job_type=stage,
            config=config.to_dict(),
            dir=local,
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Rows of an interrupted try come again; W&B's own step could not go back.
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Add one row of named figures."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Write everything."""
        import wandb

        self._run.finish()
        wandb.teardown()  # waits; `finish` alone returns before an offline run is on the disk
        if self._run.settings.mode == "offline":
            Location.of(self._local / "wandb").copy_to(self._output.make_dir())
