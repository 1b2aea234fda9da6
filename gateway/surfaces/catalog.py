"""Every surface whose calls are queued: the one list of their paths."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import get_args

from backends.capabilities import SURFACES
from gateway.openai.payload import Endpoint

PATHS: Mapping[Endpoint, str] = MappingProxyType({name: SURFACES[name] for name in get_args(Endpoint)})
