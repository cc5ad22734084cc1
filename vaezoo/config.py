"""Configs: frozen, typed, described, JSON-able. What JSON cannot hold is not config."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from vaezoo.errors import VaezooError, unknown

C = TypeVar("C", bound="BaseConfig")


class BaseConfig(BaseModel):
    """Base of every config. Fields are declared with `pydantic.Field(default, description=..., ge=...)`.

    Instances are immutable; unknown names, wrong types, NaN and values out of range are refused.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _from_json(cls, options: Any) -> Any:
        """Lists, which is what JSON makes of tuples, and numpy's numbers are as good as Python's own."""
        return {k: _plain(v) for k, v in options.items()} if isinstance(options, Mapping) else options

    @classmethod
    def parse(cls: type[C], options: Mapping[str, Any], where: str) -> C:
        """Validate `options`; on a mistake raise one sentence that names the option and what is possible."""
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            raise VaezooError("; ".join(_sentence(cls, e, where) for e in error.errors())) from None


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _sentence(cls: type[BaseConfig], error: Any, where: str) -> str:
    location = error["loc"]
    name = str(location[0]) if location else ""
    if error["type"] == "extra_forbidden" and len(location) == 1:
        return unknown(f"option of {where}", name, cls.model_fields)
    if error["type"] == "missing" and len(location) == 1:
        return f"{where} needs the option '{name}'"
    message = error["msg"].removeprefix("Value error, ")
    if not name:
        return f"{where}: {message}"
    path = name + "".join(f"[{part}]" for part in location[1:])
    if error["type"] == "missing":
        return f"{where}: {path} is missing"
    if error["type"] == "extra_forbidden":
        return f"{where}: {path} is not an option"
    help_text = cls.model_fields[name].description if name in cls.model_fields else None
    meaning = f" ({name}: {help_text})" if help_text else ""
    return f"{where}: {path}={reprlib.repr(error['input'])} is not valid: {message}{meaning}"


def split_options(options: Mapping[str, Any], *kinds: tuple[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sort options by the fields that know them: one dict for each kind; the first to know a name has it."""
    parts: list[dict[str, Any]] = [{} for _ in kinds]
    for name, value in options.items():
        for part, (_, fields) in zip(parts, kinds):
            if name in fields:
                part[name] = value
                break
        else:
            what = " or of ".join(kind for kind, _ in kinds)
            raise VaezooError(
                unknown(f"option of {what}", name, [field for _, fields in kinds for field in fields])
            )
    return parts


def check_options(method: Callable[..., Any], options: Mapping[str, Any], what: str) -> None:
    """Refuse options that are no keyword of a method, where its first arguments are given by position."""
    parameters = inspect.signature(method).parameters.values()
    optional = [p for p in parameters if p.default is not p.empty or p.kind is p.KEYWORD_ONLY]
    takes = [p.name for p in optional if p.name != "generator"]
    for name in options:
        if name not in takes:
            raise VaezooError(unknown(what, name, takes))


def describe_fields(cls: type[BaseConfig]) -> list[dict[str, str]]:
    """Name, type, default, limits and meaning of every field, in order of declaration."""
    rows = []
    for name, field in cls.model_fields.items():
        limits = ", ".join(
            f"{sign} {getattr(rule, attribute)}"
            for rule in field.metadata
            for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
            if getattr(rule, attribute, None) is not None
        )
        rows.append(
            {
                "name": name,
                "type": _type_name(field.annotation),
                "default": "required"
                if field.is_required()
                else repr(field.get_default(call_default_factory=True)),
                "limits": limits,
                "meaning": field.description or "",
            }
        )
    return rows


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) in (tuple, dict, list):
        inner = ", ".join("..." if a is Ellipsis else _type_name(a) for a in get_args(annotation))
        return f"{get_origin(annotation).__name__}[{inner}]"
    if get_args(annotation) and get_origin(annotation) is not Literal:
        return " | ".join(_type_name(a) for a in get_args(annotation))
    if isinstance(annotation, type):
        return "None" if annotation is type(None) else annotation.__name__
    return str(annotation).replace("typing.", "")
