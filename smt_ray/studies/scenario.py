"""What a cost model prices: a plan, read from a YAML file such as `jobs/plan.yaml`."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smt_ray.cluster.resources import here, resolved
from smt_ray.config import RunConfig
from smt_ray.config.presets import PRESETS
from smt_ray.config.presets import preset as named
from smt_ray.data import sources
from smt_ray.data.fields import read_fields
from smt_ray.studies.measurements import ORDER


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is priced."""

    run: RunConfig
    """Sizes, batches, shares of labels, validations, precision, ZeRO stage."""
    vocabulary: int
    """V."""
    tokens: float
    """Training tokens of the source."""
    passes: Mapping[str, float]
    """Epochs by stage, of tokens or, for `transition` and `dmt`, of labels; 1 where not given."""
    workers: int
    """Training workers."""
    gangs: int
    """Encoder gangs."""
    worker_price: float = 0.0
    """Dollars an hour of one training worker."""
    rank_price: float = 0.0
    """Dollars an hour of one gang rank."""
    efficiency: float | None = None
    """Weak-scaling efficiency; by default the measured one of the most workers or gangs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan's scenarios, and what is known about the machine."""

    scenarios: tuple[Scenario, ...]
    rates: tuple[str, ...]
    """Files of measurements beside the study's own."""
    flops_per_s: float | None
    """What a process is said to reach, in place of any measurement."""


KEYS = ("tokens", "preset", "config", "passes", "workers", "gangs", "prices", "worker", "gang",
        "efficiency", "rates", "flops_per_s")  # fmt: skip


def read_plan(file: str, run: RunConfig) -> Plan:
    """Read a plan; what it does not say is as in `run`.

    Raises:
        ValueError: in one line that names the file, the key and the mend.
    """
    values = read_fields(file, "cost", "tokens: 1e9")
    if "tokens" not in values:
        raise ValueError(f"cost={file}: must hold at least `tokens: 1e9`")
    try:
        return _plan({str(key).replace("-", "_"): value for key, value in values.items()}, run)
    except ValueError as error:
        raise ValueError(f"cost={file}: {error}") from error


def _plan(values: dict[str, Any], run: RunConfig) -> Plan:
    for key in values:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)[0]
            raise ValueError(f"{key}: unknown key; did you mean {near}?")
    preset = values.get("preset")
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r}: must be one of {', '.join(PRESETS)}")
        own = {name: getattr(run.data, name) for name in ("source", "subset", "revision")}
        run = named(preset).update({"data": own})
    run = resolved(run.update(_mapping(values, "config")), here())
    prices = {name: _number(f"prices.{name}", p) for name, p in _mapping(values, "prices").items()}
    worker = _price(prices, "worker", values.get("worker"))
    passes = {name: _number(f"passes.{name}", n) for name, n in _mapping(values, "passes").items()}
    for name in passes:
        if name not in ORDER:
            raise ValueError(f"passes={name!r}: must be one of {', '.join(ORDER)}")
    tokens = values["tokens"]
    common: dict[str, Any] = {
        "run": run,
        "vocabulary": sources.load_tokenizer_of(run.data).vocabulary,
        "passes": passes,
        "workers": _count("workers", values.get("workers", run.runtime.workers)),
        "gangs": _count("gangs", values.get("gangs", run.runtime.gangs)),
        "worker_price": worker,
        "rank_price": _price(prices, "gang", values["gang"]) if "gang" in values else worker,
        "efficiency": _optional(values, "efficiency"),
    }
    if (common["efficiency"] or 0) > 1:
        raise ValueError(f"efficiency={common['efficiency']}: must be <= 1")
    rates = values.get("rates", [])
    return Plan(
        scenarios=tuple(
            Scenario(tokens=_number("tokens", count), **common)
            for count in (tokens if isinstance(tokens, list) else [tokens])
        ),
        rates=tuple(map(str, rates if isinstance(rates, list) else [rates])),
        flops_per_s=_optional(values, "flops_per_s"),
    )


def _mapping(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{key}={found!r}: must be a mapping")
    return found


def _number(key: str, value: Any) -> float:
    """Return a positive number, also of one in quotes."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{key}={value!r}: must be a number > 0")
    return number


def _count(key: str, value: Any) -> int:
    number = _number(key, value)
    if number != int(number):
        raise ValueError(f"{key}={value!r}: must be a whole number")
    return int(number)


def _optional(values: Mapping[str, Any], key: str) -> float | None:
    return _number(key, values[key]) if values.get(key) is not None else None


def _price(prices: Mapping[str, float], key: str, name: Any) -> float:
    if name is None and len(prices) <= 1:
        return next(iter(prices.values()), 0.0)
    if name not in prices:
        raise ValueError(f"{key}={name!r}: must be one of prices: {', '.join(prices) or 'none'}")
    return prices[name]
