"""Nested settings as people write them: dotted keys, YAML, and errors with the nearest names."""

import difflib
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from autocomp.core.errors import ConfigError


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a value by dotted key, leaving the mappings that others hold as they are.

    Raises:
        ConfigError: If a part of the key holds a value.
    """
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {parent!r} holds a value, not settings of its own.")
        data[parent] = data = dict(inner)
    data[last] = value


def parse_yaml(text: str, where: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        ConfigError: If it is none; the message starts with ``where``.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error


def refuse_unknown(data: Mapping[str, Any], root: type[BaseModel]) -> None:
    """Refuse keys that a model of settings does not have.

    Raises:
        ConfigError: The message lists the nearest names, or the section that has the key.
    """
    _refuse(data, root, root, "")


def explain(error: ValidationError) -> str:
    """Return what is wrong with settings, in one line."""
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "settings"
        message = item["msg"].removeprefix("Value error, ")
        got = item["input"]
        shown = "" if item["type"] == "missing" or isinstance(got, dict) else f" (got {got!r})"
        parts.append(f"{where}: {message}{shown}")
    return "; ".join(parts)


def _refuse(
    data: Mapping[str, Any], model: type[BaseModel], root: type[BaseModel], prefix: str
) -> None:
    fields = model.model_fields
    for key, value in data.items():
        if key not in fields:
            raise ConfigError(
                f"unknown setting {prefix}{key!s}.{_suggest(str(key), fields, root)} "
                f"Allowed here: {', '.join(fields)}."
            )
        inner = fields[key].annotation
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            _refuse(value, inner, root, f"{prefix}{key}.")


def _suggest(key: str, fields: Mapping[str, Any], root: type[BaseModel]) -> str:
    """Return near names of this level, or the full path when the key exists one level down."""
    for section, info in root.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and key in inner.model_fields:
            return f" Did you mean '{section}.{key}'?"
    close = difflib.get_close_matches(key, list(fields), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(repr(item) for item in close)}?" if close else ""
