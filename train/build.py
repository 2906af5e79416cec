"""The strict builder: composed YAML to frozen dataclasses, every mistake reported at once.

Unknown keys are refused with the nearest known one, values are checked against the fields' types,
and a missing key is named. Nothing is guessed beyond int to float and list to tuple.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from .errors import UserError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of a config dataclass.

    Raises:
        UserError: one message that lists every unknown, missing or ill-typed key.
    """
    problems: list[str] = []
    built = _dataclass(cls, values, "", problems, frozenset(known_keys(cls)))
    if problems:
        raise UserError("; ".join(problems))
    return typing.cast(T, built)


def known_keys(cls: type[Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config dataclass."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key = f"{prefix}{field.name}"
        yield key
        if dataclasses.is_dataclass(hints[field.name]):
            yield from known_keys(hints[field.name], f"{key}.")


def _dataclass(
    cls: type[Any], values: Any, path: str, problems: list[str], known: frozenset[str]
) -> Any:
    if not isinstance(values, Mapping):
        problems.append(f"{path.rstrip('.') or 'config'}={values!r} must be a mapping of settings")
        return None
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            problems.append(f"unknown key '{path}{key}'{_suggest(f'{path}{key}', fields, known)}")
    arguments: dict[str, Any] = {}
    before = len(problems)
    for name, field in fields.items():
        if name in values:
            arguments[name] = _value(hints[name], values[name], f"{path}{name}", problems, known)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"missing key '{path}{name}'")
    if len(problems) > before or any(name not in fields for name in values):
        return None
    try:
        return cls(**arguments)
    except ValueError as error:
        problems.append(str(error))
        return None


def _suggest(key: str, fields: Mapping[str, Any], known: frozenset[str]) -> str:
    prefix = key[: key.rfind(".") + 1]
    asked = key[len(prefix) :]
    near = [f"{prefix}{n}" for n in fields if "".join(p[0] for p in n.split("_")) == asked]
    near = near or difflib.get_close_matches(key, [f"{prefix}{name}" for name in fields], 1, 0.6)
    near = near or difflib.get_close_matches(key, known, 1, 0.5)
    near = near or [k for k in sorted(known) if k.endswith("." + key.rpartition(".")[2])][:1]
    return f"; did you mean '{near[0]}'?" if near else f"; known here: {', '.join(fields)}"


def _value(hint: Any, value: Any, path: str, problems: list[str], known: frozenset[str]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass(typing.cast(type[Any], hint), value, f"{path}.", problems, known)
    if origin is typing.Literal:
        if value not in arguments:
            near = difflib.get_close_matches(str(value), [str(a) for a in arguments], 1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            choices = ", ".join(str(a) for a in arguments)
            problems.append(f"{path}={value!r} must be one of {choices}{hint_text}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(
            next(a for a in arguments if a is not type(None)), value, path, problems, known
        )
    if origin is tuple:
        if not isinstance(value, list | tuple):
            problems.append(f"{path}={value!r} must be a list")
            return value
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(
                _value(arguments[0], v, f"{path}[{i}]", problems, known)
                for i, v in enumerate(value)
            )
        if len(arguments) != len(value):
            problems.append(f"{path}={value!r} must be a list of {len(arguments)} values")
            return value
        return tuple(
            _value(a, v, f"{path}[{i}]", problems, known)
            for i, (a, v) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            problems.append(f"{path}={value!r} must be a mapping")
            return value
        return {
            k: _value(arguments[1], v, f"{path}.{k}", problems, known) for k, v in value.items()
        }
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and value in (".inf", "inf"):  # YAML's infinity, which Hydra leaves as text
        return math.inf
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        problems.append(f"{path}={value!r} must be {_NAMES.get(hint, hint.__name__)}")
    return value


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
