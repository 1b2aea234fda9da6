"""The kinds of value that a configuration holds, and how a wrong one is described."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from gateway import template, units
from gateway.template import Template
from gateway.yamlfile import Substituted

FAULT, MISSING = "fault", "missing_key"
"""The types of errors whose message is already in the words of this module."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What relative paths are relative to: the folder of the configuration file. Given as pydantic's context."""

    path: Path


class Part(BaseModel):
    """A mapping of the file with fixed keys. Its errors are put into words here, where its keys are known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    instead: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """What to say of a key that people will try although there is none."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, value: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            found = error.errors(include_url=False)
        if any(one["type"] == "extra_forbidden" for one in found):
            # A key that is missing is then most likely there under a wrong name, which is what to say.
            found = [one for one in found if one["type"] != "missing"]
        raise ValidationError.from_exception_data(cls.__name__, [cls._reworded(one) for one in found])

    @classmethod
    def _reworded(cls, error: ErrorDetails) -> InitErrorDetails:
        kind, message, key = error["type"], error["msg"], error["loc"][-1:]
        if kind == "extra_forbidden":
            keys = ", ".join(known.alias or name for name, known in cls.model_fields.items())
            message = cls.instead.get(str(key[0]), f"no such key (keys: {keys})")
        elif kind in _WORDING:
            message = _WORDING[kind].format(**{**error.get("ctx", {}), "found": _described(error["input"])})
        worded = MISSING if kind in {"missing", MISSING} else FAULT
        fault = PydanticCustomError(worded, "{message}", {"message": message})
        return InitErrorDetails(type=fault, loc=error["loc"], input=error["input"])


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy as the file names it: `params` as written (`30s` stays text), for the catalog to judge."""

    name: str
    params: Mapping[str, object]


_WORDING = {
    "missing": "missing, and has no default",
    "string_type": "must be text, not {found}",
    "int_type": "must be a whole number, not {found}",
    "float_type": "must be a number, not {found}",
    "bool_type": "must be true or false, not {found}",
    "model_type": "must be a mapping (key: value), not {found}",
    "mapping_type": "must be a mapping (key: value), not {found}",
    "dict_type": "must be a mapping (key: value), not {found}",
    "tuple_type": "must be a list, not {found}",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "finite_number": "must be a number, not {found}",
    "pattern_type": "must be a regular expression, not {found}",
    "is_instance_of": "must be a path, not {found}",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}, not {found}",
    "model_attributes_type": "must be a mapping (key: value), not {found}",
    "union_tag_not_found": "needs a name, as in {{name: vllm}}",
    "union_tag_invalid": "nothing is named '{tag}' here (names: {expected_tags})",
    "value_error": "{error}",
}


def _described(value: object) -> str:
    """A value as an error may quote it; long and nested ones are only named."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 40 else "a long text"
    return "a mapping" if isinstance(value, dict) else "a list"


def _plain(value: object) -> object:
    return value.plain if isinstance(value, Substituted) else value


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _one_or_many(value: object) -> object:
    return tuple(value) if isinstance(value, list) else (value,)


def _path(value: object, info: ValidationInfo) -> object:
    """The absolute path that a text stands for; other types are left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("must not be empty")
    folder = info.context.path if isinstance(info.context, Folder) else Path()
    return (folder / value).resolve()


def _optional_path(value: object, info: ValidationInfo) -> object:
    return _path(_plain(value), info)


def _existing_file(value: object, info: ValidationInfo) -> object:
    path = _optional_path(value, info)
    if isinstance(path, Path) and not path.is_file():
        raise ValueError(f"no such file: {value}")
    return path


def _template(value: object, info: ValidationInfo) -> object:
    path = _path(value, info)
    return template.read(path, name=str(value)) if isinstance(path, Path) else value


def _url(value: str) -> str:
    """The address of a server without the `/v1` that stands in the path of every request already."""
    try:
        parts = urlsplit(value)
        known = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known or re.search(r"\s", value):
        raise ValueError("must be an address such as http://gpu-a:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must be a plain address, without user, query or fragment; give a key as api_key")
    base = value.rstrip("/").removesuffix("/v1")
    if "v1" in urlsplit(base).path.split("/"):
        raise ValueError("must be the server's address, such as http://gpu-a:8000, and not that of one of its paths")
    return base


def _redis_url(value: str) -> str:
    host = r"(\[[0-9A-Fa-f:]+\]|[^@/:\s?#]+)(:(?P<port>[0-9]{1,5}))?"
    found = re.fullmatch(rf"rediss?://([^@/\s]*@)?{host}(/[0-9]*)?", value)
    if found is None or not 0 < int(found["port"] or 6379) < 65536:
        raise ValueError("must be an address such as redis://127.0.0.1:6379/0")
    return value


def _within_a_day(value: float) -> float:
    if value > units.SECONDS["h"] * 24:
        raise ValueError("must be at most 24h")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", value):
        raise ValueError("must be the name of a host, such as gateway.internal, without scheme and port")
    return value


def _pattern(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError(
            "a name has letters, digits, '.', '_' and '-', at most 64, beginning with one of the first two"
        )
    return value


def _spec(value: object) -> PolicySpec:
    if isinstance(value, PolicySpec):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping with a name, such as {{name: ...}}, not {_described(value)}")
    if not isinstance(value.get("name"), str):
        raise ValueError("needs a name, as in {name: ...}")
    params = {key: _deeply_plain(one) for key, one in value.items() if key != "name"}
    return PolicySpec(str(value["name"]), MappingProxyType(params))


def _deeply_plain(value: Any) -> object:
    """Untyped parameters take the type that their text has once variables are in it."""
    if isinstance(value, list):
        return [_deeply_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _deeply_plain(one) for key, one in value.items()}
    return _plain(value)


T = TypeVar("T")

Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, BeforeValidator(_plain)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_plain)]
Number = Annotated[float, BeforeValidator(_plain)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_plain)]
Flag = Annotated[bool, BeforeValidator(_plain)]
Seconds = Annotated[float, Field(gt=0), BeforeValidator(units.duration)]
SecondsOrZero = Annotated[float, BeforeValidator(units.duration)]
SecondsOfADay = Annotated[Seconds, AfterValidator(_within_a_day)]
Bytes = Annotated[int, Field(gt=0), BeforeValidator(units.size)]
BytesOrZero = Annotated[int, BeforeValidator(units.size)]
Name = Annotated[str, AfterValidator(_name)]
Url = Annotated[str, AfterValidator(_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
Host = Annotated[str, AfterValidator(_host)]
Pattern = Annotated[re.Pattern[str], BeforeValidator(_pattern)]
FilePath = Annotated[Path, BeforeValidator(_path)]
FilePathOrNone = Annotated[Path | None, BeforeValidator(_optional_path)]
ExistingFileOrNone = Annotated[Path | None, BeforeValidator(_existing_file)]
Prompt = Annotated[InstanceOf[Template], BeforeValidator(_template)]
Spec = Annotated[PolicySpec, BeforeValidator(_spec)]

Params = Annotated[Mapping[Text, object], BeforeValidator(_deeply_plain), AfterValidator(MappingProxyType)]

List = Annotated[tuple[T, ...], BeforeValidator(_listed)]
OneOrMany = Annotated[tuple[T, ...], BeforeValidator(_one_or_many)]
Frozen = AfterValidator(MappingProxyType)
Named = Annotated[Mapping[Name, T], Frozen]
Map = Annotated[Mapping[Text, T], Frozen]
