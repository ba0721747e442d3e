"""What a run will take, known before it starts: parameters, label bytes, memory, CPUs, GPUs."""

import torch

from smt_ray.cluster.session import cpus_needed, gpus_needed
from smt_ray.config import RunConfig, masked
from smt_ray.data import sources
from smt_ray.data.shards import DTYPES
from smt_ray.data.storage import Location
from smt_ray.model.rnn import RNN
from smt_ray.objectives.teacher import Teacher


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
    return int(tokens * config.labels.fraction * each)


def label_bytes_to_write(config: RunConfig, place: Location | None) -> int:
    """Return the bytes of labels that `place` lacks; 0 without one, or for a source of no size."""
    if place is None:
        return 0
    written = sum(file.size() for file in place.files(".parquet", recursive=True))
    return max(0, label_bytes(config, sources.size(config.data)) - written)


def plan(config: RunConfig) -> str:
    """Describe what a run takes: parameters, label bytes, memory of a worker, CPUs, GPUs.

    Raises:
        ValueError: naming the field at fault, if the source cannot be read.
    """
    sources.check(config.data)
    vocabulary = sources.load_tokenizer_of(config.data).vocabulary
    counts, tokens = parameters(config, vocabulary), sources.size(config.data)
    runtime, gib = config.runtime, 2**30
    unit = {"text": "bytes", "task": "tokens", "pixels": "pixels"}[config.data.kind]
    shared = runtime.workers if runtime.zero_stage == 3 else 1
    source = masked(config.data.source)
    training = counts["teacher"] * 16 / shared
    held = counts["encoder"] * 4 / runtime.gang_ranks
    lines = {
        "preset": config.preset,
        "source": f"{source} ({tokens:,} {unit})" if tokens else source,
        "parameters": ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        "state of the RNN": f"{config.model.memory_tokens * config.model.width:,} numbers",
        "labels": f"{label_bytes(config, tokens) / gib:.2f} GiB" if tokens else "unknown size",
        "weights, gradients and moments": f"{training / gib:.2f} GiB a training worker",
        "encoder weights": f"{held / gib:.2f} GiB a gang rank",
        "CPUs": f"{cpus_needed(runtime)} logical ones",
        "GPUs": str(gpus_needed(runtime)),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
