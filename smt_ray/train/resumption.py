"""What a training goes on from: the whole checkpoints in its storage, and Ray Train's record.

Ray Train resumes from the latest checkpoint of its record, damaged or not, and refuses a record of
another Ray version. The record is therefore made anew from what lies in the storage.
"""

import json
import logging
import struct
from typing import Any

import ray

from smt_ray.data.storage import Location

logger = logging.getLogger(__name__)
RECORD = "checkpoint_manager_snapshot.json"
STATE = "state.json"
CHECKPOINTS = "step-"
"""How the names of a checkpoint's directory begin; the step follows."""


def last_whole(directory: Location, stage: str) -> int:
    """Leave the whole checkpoints of a training alone in Ray Train's record of it.

    A damaged one is named in a line and removed: its name is needed again. A storage that does not
    answer is an error, not a damage.

    Args:
        directory: where Ray Train keeps the training.
        stage: name of the stage, for the line.

    Returns:
        The step of the latest checkpoint, 0 without one.

    Raises:
        OSError: if the storage cannot be read.
    """
    results = []
    for location in _checkpoints(directory):
        try:
            results.append(_result(location))
        except ValueError as error:
            logger.warning("%s: skipped an unfinished or damaged checkpoint: %s", stage, error)
            location.delete_dir()
    record = directory / RECORD
    if results:
        record.write_json(_record(results))
    elif record.exists():
        record.delete()
    return max((result["metrics"]["step"] for result in results), default=0)


def _checkpoints(directory: Location) -> list[Location]:
    return [
        location for location in directory.directories() if location.name.startswith(CHECKPOINTS)
    ]


def _result(location: Location) -> dict[str, Any]:
    """Return a checkpoint as Ray Train's record has it.

    Raises:
        ValueError: naming the file that is missing, truncated or of another kind.
    """
    try:
        state = (location / STATE).read_json()
        metrics = {"step": state["step"], "validation/loss": state["loss"]}
        ranks = range(state["world"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{location / STATE}: missing, or not of a checkpoint") from error
    for rank in ranks:
        _check_tensors(location / f"weights-{rank:05d}.safetensors")
        stream = location / f"stream-{rank:05d}.safetensors"
        if state.get("stream") or stream.exists():  # older ones do not say
            _check_tensors(stream)
    return {"version": 0, "checkpoint_dir_name": location.name, "metrics": metrics}


def _check_tensors(file: Location) -> None:
    """Check that a safetensors file is as long as its header says.

    Raises:
        ValueError: naming the file.
    """
    try:
        size = file.size()
        with file.open() as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(min(length, size)))
        ends = [
            entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
        ]
        whole = size == 8 + length + max(ends, default=0)
    except (FileNotFoundError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"{file}: missing or damaged") from error
    if not whole:
        raise ValueError(f"{file}: truncated")


def _record(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what Ray Train reads when it begins: the worst checkpoint first."""
    by_step = sorted(results, key=lambda result: result["metrics"]["step"])
    index = {result["checkpoint_dir_name"]: number for number, result in enumerate(by_step)}
    ranked = sorted(by_step, key=lambda result: -result["metrics"]["validation/loss"])
    return {
        "ray_version": ray.__version__,
        "checkpoint_results": ranked,
        "checkpoint_report_indices": [index[result["checkpoint_dir_name"]] for result in ranked],
        "latest_checkpoint_result": by_step[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(results),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
