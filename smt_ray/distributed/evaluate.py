"""The stage `evaluate`: a Ray task with the trainer's resources, never work of the driver."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as pq
import ray
import torch
from torch import Tensor, nn

from smt_ray.config import RunConfig
from smt_ray.data.export import ExportedRNN, load_rnn
from smt_ray.data.reader import Reader
from smt_ray.data.shards import open_shards
from smt_ray.data.storage import Location
from smt_ray.distributed.programs import load_weights
from smt_ray.evaluation.ngrams import NgramModel
from smt_ray.evaluation.scores import compare
from smt_ray.model.decoder import Decoder
from smt_ray.model.encoder import build_encoder
from smt_ray.model.rnn import RNN

BATCH = 256
ORDERS = (0, 1, 2)


def evaluate(config: RunConfig, places: dict[str, Location]) -> dict[str, Any]:
    """Score the run on validation sequences; `places` are the artifacts' by stage.

    Returns:
        `bits`, `curves` (bits per byte by position) and `drift` by name, and `sample`.
    """
    runtime = config.runtime
    task = _evaluate.options(
        num_cpus=1 if runtime.gpu else runtime.workers, num_gpus=1 if runtime.gpu else 0
    )
    return ray.get(task.remote(config, places))


@ray.remote
def _evaluate(config: RunConfig, places: dict[str, Location]) -> dict[str, Any]:
    torch.set_num_threads(config.runtime.threads * config.runtime.workers)
    device = torch.device("cuda" if config.runtime.gpu else "cpu")
    train = open_shards(places["tokens"] / "train", "tokens")
    batches = list(_validation(config, places["tokens"] / "validation"))
    vocabulary, length = train["vocabulary"], config.data.sequence_length
    covered = sum(int(batch["bytes"].sum()) for batch in batches)
    rows = sum(len(batch["inputs"]) for batch in batches)

    def network(kind: Callable[..., nn.Module], artifact: str, prefix: str) -> Any:
        module = kind(config.model, vocabulary)
        module.load_state_dict(load_weights(places[artifact], prefix))
        return module.to(device).eval()

    before = RNN(config.model, vocabulary)
    before.cell.load_state_dict(load_weights(places["transition"], "cell."))
    before.readout.load_state_dict(load_weights(places["teacher"], "decoder."))
    rnn = load_rnn(places["export"])
    scores, drifts = compare(
        network(build_encoder, "teacher", "encoder."),
        {
            "teacher": network(Decoder, "dmt", "teacher_readout."),
            "teacher_before_dmt": network(Decoder, "teacher", "decoder."),
        },
        {"rnn_before_dmt": before.to(device).eval(), "rnn": rnn.to(device)},
        batches,
        device,
    )
    per_byte = rows * length / covered
    bits = {name: score.bits / covered for name, score in scores.items()}
    curves = {name: (score.curve * per_byte).tolist() for name, score in scores.items()}

    model = NgramModel.fit(_windows(places["tokens"] / "train", train), vocabulary, max(ORDERS))
    windows = torch.cat([torch.cat((b["inputs"], b["targets"][:, -1:]), 1) for b in batches])
    for order in ORDERS:
        curve, total = model.bits(windows.numpy(), order)
        bits[f"order{order}"] = total / covered
        curves[f"order{order}"] = (curve * per_byte).tolist()
    return {
        "bits": bits,
        "curves": curves,
        "drift": {name: drift.nmse for name, drift in drifts.items()},
        "drift_curves": {name: drift.curve.tolist() for name, drift in drifts.items()},
        "sample": _sample(config, rnn, batches[0]["inputs"][0]),
        "parameters_rnn": sum(p.numel() for p in rnn.parameters()),
    }


def _validation(config: RunConfig, directory: Location) -> Iterator[dict[str, Tensor]]:
    """Yield batches of the validation sequences that are scored."""
    manifest = open_shards(directory, "tokens")
    count = min(config.evaluation.sequences, manifest["sequences"])
    size = min(BATCH, count)
    reader = Reader(directory, manifest, global_batch=size, lanes=1, seed=0)
    for step in range(count // size):
        yield reader.batch(step)


def _windows(directory: Location, manifest: dict[str, Any]) -> Iterator[Any]:
    """Yield the token windows of a split, a row group at a time."""
    for name in manifest["shards"]:
        with (directory / name).open() as stream:
            shard = pq.ParquetFile(stream)
            for batch in shard.iter_batches(columns=["tokens"]):
                flat = batch["tokens"].flatten().to_numpy()
                yield flat.reshape(len(batch), -1)


def _sample(config: RunConfig, rnn: ExportedRNN, sequence: Tensor) -> dict[str, str]:
    """Let the RNN write on after the beginning of a validation sequence."""
    settings = config.evaluation
    prompt = rnn.tokenizer.decode(sequence[: settings.prompt_length].numpy())
    random = torch.Generator(next(rnn.parameters()).device).manual_seed(config.data.seed)
    pieces = rnn.write(
        prompt, settings.sample_length, temperature=settings.temperature, generator=random
    )
    return {"prompt": prompt, "text": "".join(pieces)}
