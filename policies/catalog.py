"""The one list of policies that a configuration can name: slot, name, class."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from policies.admission import PredictedWait, QueueBound
from policies.baselines.autellix import Atlas, Plas
from policies.baselines.hexagent import HexAgent
from policies.baselines.hexgen import HexGen, HexGenReleased
from policies.baselines.laxity import LeastLaxity
from policies.baselines.oracle import SrptOracle
from policies.baselines.pythia import Pythia
from policies.baselines.tail_aware import TailAware
from policies.borrowing import Always, Borrowing, Gated
from policies.budget import Adaptive, Budget, Fixed
from policies.gate import Aimd, GatePolicy, Open, PauseRestore, WorkingSet
from policies.priority import Edf, Fcfs, LeastSlack
from policies.protocols import Admission, Filter, Picker, Priority, Scorer
from policies.routing.filters import KvBelow, SpareForLost, Untried
from policies.routing.pickers import Best, TwoChoices
from policies.routing.pipeline import Pipeline
from policies.routing.scorers import FreeWork, LeastDelay, LeastRunning, OwnPool, PrefixAffinity, RoundRobin

CATALOG: Mapping[str, Mapping[str, type]] = MappingProxyType(
    {
        "priority": MappingProxyType(
            {
                "fcfs": Fcfs,
                "edf": Edf,
                "least_slack": LeastSlack,
                "llf": LeastLaxity,
                "hexgen": HexGen,
                "hexgen_released": HexGenReleased,
                "plas": Plas,
                "atlas": Atlas,
                "pythia": Pythia,
                "hexagent": HexAgent,
                "tail_aware": TailAware,
                "srpt_oracle": SrptOracle,
            }
        ),
        "admission": MappingProxyType({"queue_bound": QueueBound, "predicted_wait": PredictedWait}),
        "gate": MappingProxyType(
            {"open": Open, "aimd": Aimd, "pause_restore": PauseRestore, "working_set": WorkingSet}
        ),
        "budget": MappingProxyType({"fixed": Fixed, "adaptive": Adaptive}),
        "borrowing": MappingProxyType({"always": Always, "gated": Gated}),
        "filters": MappingProxyType({"untried": Untried, "kv_below": KvBelow, "spare_for_lost": SpareForLost}),
        "scorers": MappingProxyType(
            {
                "prefix_affinity": PrefixAffinity,
                "free_work": FreeWork,
                "least_delay": LeastDelay,
                "least_running": LeastRunning,
                "round_robin": RoundRobin,
                "own_pool": OwnPool,
            }
        ),
        "picker": MappingProxyType({"best": Best, "two_choices": TwoChoices}),
    }
)


class UnknownPolicy(ValueError):
    """A name or a parameter that the catalog does not have; the message lists what it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A policy as a configuration names it. `weight` is that of a scorer."""

    name: str
    params: tuple[tuple[str, float], ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet:
    """The policies of one pool, by name: what a journal needs to make them again."""

    priority: Named = Named(name="least_slack")
    admission: Named = Named(name="predicted_wait")
    filters: tuple[Named, ...] = ()
    scorers: tuple[Named, ...] = (Named(name="least_delay"),)
    picker: Named = Named(name="best")
    budget: Named = Named(name="fixed")
    borrowing: Named = Named(name="always")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The policies of one pool, made."""

    priority: Priority
    admission: Admission
    routing: Pipeline
    budget: Budget
    borrowing: Borrowing


def parameters(slot: str, name: str) -> dict[str, str]:
    """The parameters of a policy, each with its unit (`s` for seconds, empty for a plain number)."""
    fields = dataclasses.fields(_lookup(slot, name))
    return {field.name: str(field.metadata.get("unit", "")) for field in fields if field.init}


def make(slot: str, named: Named) -> object:
    """The policy that a configuration names. Raises UnknownPolicy."""
    made = _lookup(slot, named.name)
    known = parameters(slot, named.name)
    fields = {field.name: field for field in dataclasses.fields(made)}
    for param, value in named.params:
        if param not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UnknownPolicy(f"policy {named.name!r} has no parameter {param!r} ({has})")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UnknownPolicy(f"parameter {param!r} of policy {named.name!r} must be a number")
        if complaint := _out_of_range(fields[param].metadata, value):
            raise UnknownPolicy(f"parameter {param!r} of policy {named.name!r} must be {complaint}, and is {value:g}")
    try:
        return made(**dict(named.params))
    except ValueError as error:
        raise UnknownPolicy(f"policy {named.name!r}: {error}") from None


def _out_of_range(metadata: Mapping[str, Any], value: float) -> str | None:
    """What a parameter must be and is not. None is negative; a field's metadata may say more (`above`, `least`,
    `most`)."""
    least, most = metadata.get("least", 0.0), metadata.get("most", math.inf)
    if "above" in metadata and not value > metadata["above"]:
        return f"more than {metadata['above']:g}"
    if not (math.isfinite(value) and least <= value <= most):
        return f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
    return None


def make_all(chosen: PolicySet) -> Policies:
    """The policies of one pool. `untried` always filters: a failed engine is not asked again for the same call."""
    filters = [make("filters", named) for named in chosen.filters if named.name != "untried"]
    return Policies(
        priority=cast(Priority, make("priority", chosen.priority)),
        admission=cast(Admission, make("admission", chosen.admission)),
        routing=Pipeline(
            filters=(Untried(), *cast(Sequence[Filter], filters)),
            scorers=tuple((named.weight, cast(Scorer, make("scorers", named))) for named in chosen.scorers),
            picker=cast(Picker, make("picker", chosen.picker)),
        ),
        budget=cast(Budget, make("budget", chosen.budget)),
        borrowing=cast(Borrowing, make("borrowing", chosen.borrowing)),
    )


GATE = Named(name="working_set")
"""The gate of a configuration that names none."""


def make_gate(named: Named) -> GatePolicy:
    """The gate on runs, one for all pools."""
    return cast(GatePolicy, make("gate", named))


def _lookup(slot: str, name: str) -> Any:
    if slot not in CATALOG:
        raise UnknownPolicy(f"no policy slot {slot!r} (there are {', '.join(CATALOG)})")
    if name not in CATALOG[slot]:
        raise UnknownPolicy(f"no {slot} policy named {name!r} (there are {', '.join(CATALOG[slot])})")
    return CATALOG[slot][name]
