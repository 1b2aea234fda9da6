"""The values of a statement's parameters: read from a request, and held against what the statement asks for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.openai.errors import ill_formed, shown

Scalar = None | bool | int | float | str
Params = Sequence[Scalar] | Mapping[str, Scalar]

PARAMS_MOST = 1000
_BITS_64 = 2.0**63
_TOO_LONG = "must hold whole numbers of more than 64 bits as text: the engine casts '170141…'::HUGEINT exactly"


class Misfit(ValueError):
    """The values are not those that the statement asks for; the message says which are missing or too many."""


def read_params(document: Mapping[str, Any], text: str | bytes | None) -> Params:
    """The member `params`; `text` is what the document was read from, where that lost digits. Raises ApiError 400."""
    params = checked(document.get("params"))
    if text is not None and any(isinstance(one, float) and abs(one) >= _BITS_64 for one in _values(params)):
        checked(json.loads(text)["params"])  # our reader of JSON makes floats of longer numbers
    return params


def checked(params: object) -> Params:
    """Parameters as JSON has them, none where there is nothing. Raises ApiError 400."""
    if params is None:
        return ()
    if not isinstance(params, list | dict) or len(params) > PARAMS_MOST:
        raise ill_formed("params", f"must be a list or an object of at most {PARAMS_MOST} values")
    for value in _values(params):
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise ill_formed("params", "must hold null, booleans, numbers and texts only")
        if isinstance(value, float) and not math.isfinite(value):
            raise ill_formed("params", "must hold finite numbers: the engine casts 'NaN'::DOUBLE and 'inf'::DOUBLE")
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ill_formed("params", _TOO_LONG)
    return params


def bound(params: Params, wanted: Sequence[str]) -> dict[str, Scalar]:
    """The values by name, in lower case: to the engine `$Day` and `$day` are one. A list's values are `1`, `2`, ….

    Raises Misfit.
    """
    pairs = params.items() if isinstance(params, Mapping) else ((str(at), v) for at, v in enumerate(params, 1))
    values: dict[str, Scalar] = {}
    for name, value in pairs:
        if name.lower() in values:
            raise Misfit(f"params: ${shown(name)} is given twice")
        values[name.lower()] = value
    names = dict.fromkeys(name.lower() for name in wanted)
    if missing := [name for name in names if name not in values]:
        raise Misfit(f"params: there is no value for {_listed(missing)}")
    if extra := [name for name in values if name not in names]:
        raise Misfit(f"params: the statement has no {_listed(extra)}")
    return values


def _listed(names: Sequence[str]) -> str:
    more = ", …" if len(names) > 5 else ""
    return ", ".join(f"${shown(name)}" for name in names[:5]) + more


def _values(params: Params) -> Iterable[Scalar]:
    return params.values() if isinstance(params, Mapping) else params
