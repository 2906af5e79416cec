"""The settings of a source transform: which there are, and which of them have an effect on which.

One entry of `data.derived` is one source: its name, and what stands here. Read next: `derive.py`.
"""

from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from ..errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformConfig:
    """How one source is derived from the documents of one or two languages of the corpus."""

    transform: Literal["pairs", "interleave", "code_switch", "romanize"]
    """What is done; the settings that it does not use must be left unset."""
    language: str
    """Code of the language that the source trains: it decides the family and the accounting."""
    other: str | None = None
    """Code of the second language (pairs, interleave, code_switch)."""
    links: str | None = None
    """Tab-separated file `id in language, id in other`; unset: equal ids (pairs, interleave)."""
    template: str | None = None
    """How a pair is written: {first}, {second} and, if wanted, {first_code}, {second_code}."""
    window_bytes: int | None = None
    """Bytes of text that fit one sequence: each such stretch holds both languages (interleave)."""
    dictionary: str | None = None
    """Tab-separated file `term, replacement, replacement, ...` (code_switch)."""
    share: float | None = None
    """Probability that an occurrence of a term is replaced (code_switch)."""
    ignore_case: bool | None = None
    """Whether terms are found in any case (code_switch)."""


REQUIRED: Final = object()
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "pairs": {"other": REQUIRED, "links": None, "template": "{first}\n\n{second}"},
    "interleave": {"other": REQUIRED, "links": None, "window_bytes": 2048},
    "code_switch": {
        "other": REQUIRED,
        "dictionary": REQUIRED,
        "share": 0.5,
        "ignore_case": False,
    },
    "romanize": {},
}
"""Transform -> the settings that have an effect on it, with their defaults."""


def effective(config: TransformConfig) -> dict[str, Any]:
    """The settings that have an effect, defaults filled in; a missing one stays None."""
    values: dict[str, Any] = {"transform": config.transform, "language": config.language}
    for setting, default in SETTINGS[config.transform].items():
        given = getattr(config, setting)
        values[setting] = default if given is None and default is not REQUIRED else given
    return values


def check_settings(name: str, config: TransformConfig) -> None:
    """Checks that the settings needed are set, and no others; raises DataError."""
    known = SETTINGS[config.transform]
    for field in fields(config):
        setting, given = field.name, getattr(config, field.name)
        if setting in ("transform", "language"):
            continue
        if setting not in known and given is not None:
            use = ", ".join(("language", *known))
            raise DataError(
                f"data.derived.{name}.{setting}={given!r} has no effect on "
                f"transform={config.transform}, which uses {use}: take it out"
            )
        if known.get(setting) is REQUIRED and given is None:
            raise DataError(
                f"data.derived.{name}.{setting} is not set, but transform={config.transform} "
                f"needs it: set data.derived.{name}.{setting}"
            )
