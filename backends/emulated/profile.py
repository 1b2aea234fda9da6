"""The profile of an engine: the file in which a calibration (`bench.calibrate`) leaves the step time it found."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson

from backends.emulated.model import StepTime

VERSION = 1


class ProfileError(ValueError):
    """A file that is no profile; the message begins with its name and the field."""


def read_step_time(path: Path) -> StepTime:
    """The step time of a profile; its other fields are for people. Raises ProfileError."""
    document = _document(path)
    version = _field(path, document, "version")
    if type(version) is not int or version != VERSION:
        raise ProfileError(f"{path}: version: this file has {version!r}, and version {VERSION} is needed")
    told = _field(path, document, "step_time")
    if not isinstance(told, dict):
        raise ProfileError(f"{path}: step_time: must be an object")
    names = [field.name for field in fields(StepTime)]
    if unknown := sorted(told.keys() - set(names)):
        raise ProfileError(f"{path}: step_time.{unknown[0]}: no such field (there are: {', '.join(names)})")
    step_time = StepTime(**{name: _seconds(path, told, name) for name in names})
    if not step_time.of(1, 1, 1) > 0:
        raise ProfileError(f"{path}: step_time: a step must take time, and all fields are 0")
    return step_time


def _document(path: Path) -> dict[str, Any]:
    try:
        document = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise ProfileError(f"{path}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ProfileError(f"{path}: must hold a JSON object")
    return document


def _field(path: Path, document: dict[str, Any], name: str, within: str = "") -> Any:
    if name not in document:
        raise ProfileError(f"{path}: {within}{name}: is missing")
    return document[name]


def _seconds(path: Path, told: dict[str, Any], name: str) -> float:
    value = _field(path, told, name, "step_time.")
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ProfileError(f"{path}: step_time.{name}: must be a number of seconds, not {value!r}")
    return float(value)
