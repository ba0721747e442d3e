"""What a run will take, known before it starts: parameters, label bytes, memory, CPUs, GPUs."""

import torch

from smt_ray.cluster.resources import cpus_needed, gpus_needed, here, resolved
from smt_ray.config import RunConfig, masked
from smt_ray.data.shards import DTYPES
from smt_ray.data.source_plan import SourcePlan, plan_source
from smt_ray.data.sources import SPLITS
from smt_ray.data.storage import Location
from smt_ray.model.rnn import RNN
from smt_ray.objectives.teacher import Teacher
from smt_ray.pipeline.artifacts import MANIFEST


def parameters(config: RunConfig, vocabulary: int) -> dict[str, int]:
    """Return the numbers of weights of the teacher, its encoder, and the RNN."""
    with torch.device("meta"):
        teacher = Teacher(config.model, config.loss, vocabulary, 0)
        rnn = RNN(config.rnn_model, vocabulary)
    modules = {"teacher": teacher, "encoder": teacher.encoder, "rnn": rnn}
    return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}


def label_bytes(config: RunConfig, tokens: int) -> int:
    """Return the bytes of the labels of `tokens` tokens: K * D numbers for each."""
    model, dtype = config.model, DTYPES[config.labels.dtype]
    each = model.memory_tokens * model.width * dtype.itemsize
    each += 2 * model.memory_tokens if config.labels.dtype == "int8" else 0  # the scales
    return int(tokens * config.labels.fraction * each)


def label_bytes_to_write(
    config: RunConfig, source: SourcePlan, locations: dict[str, Location]
) -> int:
    """Return the bytes of labels that are still to be written, as far as the source has a size.

    Args:
        config: the run.
        source: its source.
        locations: where its artifacts lie, as far as that is known.
    """
    if config.labels.mode == "stream":
        return 0
    expected, location = label_bytes(config, source.size), locations.get("labels")
    if location is None:
        return expected
    if (location / MANIFEST).exists():
        return 0
    written = sum(sum((location / split).sizes(".parquet").values()) for split in SPLITS)
    return max(0, expected - written)


def plan(config: RunConfig) -> str:
    """Describe what a run takes: parameters, label bytes, memory of a worker, CPUs, GPUs.

    Raises:
        ValueError: naming the field at fault, if the source cannot be read.
    """
    source = plan_source(config.data)
    config = resolved(config, here())
    counts, tokens = parameters(config, source.tokenizer.vocabulary), source.size
    runtime, gib = config.runtime, 2**30
    unit = {"text": "bytes", "task": "tokens", "pixels": "pixels"}[config.data.kind]
    shared = runtime.fewest_workers if runtime.zero_stage == 3 else 1
    name = masked(config.data.source)
    training = counts["teacher"] * 16 / shared
    held = counts["encoder"] * 4 / runtime.rank_count
    lines = {
        "preset": config.preset,
        "source": f"{name} ({tokens:,} {unit})" if tokens else name,
        "parameters": ", ".join(f"{part} {count:,}" for part, count in counts.items()),
        "state of the RNN": f"{config.model.memory_tokens * config.model.width:,} numbers",
        "labels": f"{label_bytes(config, tokens) / gib:.2f} GiB" if tokens else "unknown size",
        "weights, gradients and moments": f"{training / gib:.2f} GiB a training worker",
        "encoder weights": f"{held / gib:.2f} GiB a gang rank",
        "workers": f"{runtime.workers}, and {runtime.gangs} x {runtime.gang_ranks} gang ranks",
        "CPUs": f"{cpus_needed(config)} logical ones",
        "GPUs": str(gpus_needed(config)),
    }
    width = max(map(len, lines))
    return "\n".join(f"{label:<{width}}  {value}" for label, value in lines.items())
