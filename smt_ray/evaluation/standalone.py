"""Score an exported RNN on any source, without a cluster and without its teacher.

Shapes: N sequences, L inputs in a sequence.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from smt_ray.config import DataConfig, masked
from smt_ray.data import sources
from smt_ray.data.export import ExportedRNN
from smt_ray.data.shards import from_column, token_type
from smt_ray.data.source_plan import SourcePlan, plan_source
from smt_ray.evaluation.budget import rows_at_once
from smt_ray.evaluation.ngrams import NgramModel
from smt_ray.evaluation.scores import Score
from smt_ray.objectives.objective import hashed

ROWS = 1024
"""Sequences packed at once."""
ORDERS = (0, 1, 2)


def score_source(rnn: ExportedRNN, data: DataConfig, sequences: int) -> dict[str, Any]:
    """Score whole validation sequences, each from the empty memory, beside order-n models.

    Args:
        rnn: the model; it brings its own tokenizer.
        data: the source; the order-n models are fitted on its training split.
        sequences: how many are scored, at most; a hash of their identities draws them.

    Returns:
        Flat figures: `rnn_bits`, `order0_bits`... per byte, `rnn_tokens_per_s`, and counts.

    Raises:
        ValueError: naming the field at fault, if the source is unreadable or too short.
    """
    plan = plan_source(data)
    held = _draw(_tables(rnn, plan, "validation"), sequences)
    if held is None:
        raise sources.too_short(data, "validation", 0)
    windows, units = _windows(held, rnn.vocabulary), held["bytes"].to_numpy()
    length = data.sequence_length
    rows = rows_at_once(rnn.config, length, torch.device("cpu"))
    score, began = Score(), time.monotonic()
    with torch.inference_mode():
        for start in range(0, len(windows), rows):
            batch = torch.from_numpy(windows[start : start + rows])
            covered = int(units[start : start + rows].sum())
            score.add(rnn.rollout(batch[:, :-1]), rnn.readout, batch[:, 1:], covered)
    seconds = time.monotonic() - began
    train = (_windows(table, rnn.vocabulary) for table in _tables(rnn, plan, "train"))
    counts = NgramModel.fit(train, rnn.vocabulary, max(ORDERS))
    return {
        "source": masked(data.source),
        "sequences": len(windows),
        "sequence_length": length,
        "bytes": score.covered,
        "parameters_rnn": sum(parameter.numel() for parameter in rnn.parameters()),
        "rnn_bits": score.bits,
        **{
            f"order{order}_bits": counts.bits(windows, order)[1] / score.covered for order in ORDERS
        },
        "rnn_tokens_per_s": len(windows) * length / seconds,
    }


def with_tokenizer_of(model: str, data: DataConfig) -> DataConfig:
    """Return the source read with the tokenizer of the exported RNN at `model`.

    Raises:
        ValueError: if another tokenizer is asked for.
    """
    if data.tokenizer != DataConfig().tokenizer:
        raise ValueError(
            f"data.tokenizer={masked(data.tokenizer)!r}: the model brings its own; leave this out"
        )
    return replace(data, tokenizer=model)


def _tables(rnn: ExportedRNN, plan: SourcePlan, split: str) -> Iterator[pa.Table]:
    """Yield a split as tables of token windows."""
    for unit in plan.split(split):
        packer = sources.packer(unit, plan.config, rnn.tokenizer)
        yield from packer.tables(sources.read(unit, plan.config, rnn.tokenizer), ROWS)


def _draw(tables: Iterable[pa.Table], count: int) -> pa.Table | None:
    """Keep the `count` rows whose identities hash lowest, a table at a time; None of nothing."""
    kept: pa.Table | None = None
    for table in tables:
        kept = table if kept is None else pa.concat_tables([kept, table])
        ids = torch.tensor(kept["sequence_id"].to_numpy())
        kept = kept.take(np.sort(hashed(ids).argsort()[:count].numpy()))
    return kept


def _windows(table: pa.Table, vocabulary: int) -> Int[np.ndarray, "N L+1"]:
    return from_column(table["tokens"], token_type(vocabulary)).astype(np.int64)
